package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"muster/agent/internal/tpm"
	"muster/internal/journal"
	"muster/internal/wire"
)

// stateActive is the head's word for a certificate that is in use. No other key of the node has one then.
const stateActive = "active"

// Renew renews the certificate, for the same key, when a head says that it is due; or, with newKey, at once for
// another key in the TPM. It returns the line that says what happened. A node without a certificate is an
// [*Outcome] of StatusFailed.
//
// The pair in use stays where it is, key and record, until the new one is accepted, read back from NV, and used; run
// clears away what is left of it. A power cut at any instant leaves one of both at least.
func (a *Agent) Renew(ctx context.Context, newKey bool) (string, error) {
	return (&boot{Agent: a, renewing: true, newKey: newKey}).alone(ctx)
}

// due says what the head thinks, by the head's clock.
func due(self *wire.Self) bool {
	return !self.RenewAt.IsZero() && !time.Unix(self.Time, 0).Before(self.RenewAt)
}

// confirmed goes on with a certificate that a head has confirmed.
func (b *boot) confirmed(ctx context.Context, id *identity, at *contact, self *wire.Self) (string, error) {
	switch {
	case b.newKey:
		line, err := b.renewKey(ctx, id, self)
		return line, b.enrollError(err, false)
	case !due(self):
		if !b.renewing {
			b.clearAway(id, self)
		}
		return b.finish(ctx, id, at, self)
	case b.renewing:
		line, err := b.renew(ctx, id, at, self)
		return line, b.enrollError(err, false)
	}
	soon, cancel := context.WithTimeout(ctx, offlineAfter)
	defer cancel()
	line, err := b.renew(soon, id, at, self)
	if err == nil || ctx.Err() != nil {
		return line, err
	}
	// The certificate is good yet.
	b.log.Warn("the certificate is not renewed", "event", journal.NotRenewed, "node", id.node(), "expires", day(id.leaf.NotAfter), "err", err)
	return b.finish(ctx, id, at, self)
}

// renew asks for another certificate for the key of id, which the TLS handshake proves.
func (b *boot) renew(ctx context.Context, id *identity, at *contact, self *wire.Self) (string, error) {
	c := b.client(b.present(id))
	defer c.close()
	e := &enrollment{boot: b, client: c, key: id.key, did: "renewed at"}
	body := wire.Encode(wire.RenewRequest{V: wire.Version})
	var answer wire.Enrolled
	err := c.call(ctx, wire.PathRenew, func() ([]byte, error) { return body, nil }, &answer, wire.NotEnabled, wire.Pending)
	if err != nil {
		return "", err
	}
	next, sent, err := e.accept(id.node(), &answer)
	if err != nil {
		return "", err
	}
	if bytes.Equal(next.leaf.Raw, id.leaf.Raw) { // another head, by another clock
		return b.finish(ctx, id, at, self)
	}
	return b.use(ctx, e, next, sent)
}

// renewKey is both legs for another key, over mTLS with the one of id.
func (b *boot) renewKey(ctx context.Context, id *identity, self *wire.Self) (string, error) {
	if self.State == stateDisabled {
		return "", refused("on the head: muster certs enable -i "+id.node(), "%s is disabled on the head", id.node())
	}
	key, err := b.nextKey(id, self)
	if err != nil {
		return "", err
	}
	c := b.client(b.present(id))
	defer c.close()
	e := b.enrollment(c, key)
	e.purpose, e.did = wire.PurposeRenew, "renewed with another key at"
	e.once = []wire.Code{wire.NotEnabled, wire.Pending}
	next, sent, err := e.prove(ctx)
	if err != nil {
		return "", err
	}
	return b.use(ctx, e, next, sent)
}

// nextKey is the key in the other slot that a renewal has begun with, or a new one there. While the certificate of
// id is in use no other key has one, so what is left of an earlier renewal makes room.
func (b *boot) nextKey(id *identity, self *wire.Self) (*tpm.Key, error) {
	slot := id.key.Slot()
	if self.State == stateActive && slot != tpm.PrimarySlot {
		if err := b.tpm.EvictSlot(b.slots, 1-slot); err != nil {
			return nil, err
		}
	}
	key, _, err := b.tpm.OtherKey(b.slots, b.alg, id.key)
	if err == nil && key.Slot() == tpm.PrimarySlot { // which programs could not use
		err = fmt.Errorf("%w: %w", tpm.ErrNoSlot, key.Why())
	}
	return key, err
}

// clearAway evicts the key that id's has replaced, once a head has said that id's is in use. The older record in NV
// says that there is one; id is written over it, so that later boots have nothing to look for.
func (b *boot) clearAway(id *identity, self *wire.Self) {
	for _, old := range b.records {
		slot := old.key.Slot()
		if self.State != stateActive || slot == id.key.Slot() || slot == tpm.PrimarySlot {
			continue
		}
		err := b.tpm.EvictSlot(b.slots, slot)
		if err == nil {
			b.tpm.KeepRecord(id.index)
			err = b.tpm.WriteRecord(b.slots, id.record())
		}
		if err != nil {
			b.log.Warn("the key before this one is still in the TPM", "slot", slot, "err", err)
		}
	}
}

// besides is a key of ours that the TPM has, in no slot of those that were tried; nil where there is none. Without NV
// only the head knows which has the certificate. The deterministic primary comes last: it has it where the TPM had no
// room for a key then, and has some now.
func (b *boot) besides(tried []*tpm.Key) *tpm.Key {
	untried := func(slot int) bool {
		return !slices.ContainsFunc(tried, func(k *tpm.Key) bool { return k.Slot() == slot })
	}
	keys, err := b.tpm.Keys(b.slots)
	if err != nil {
		return nil
	}
	for _, k := range keys {
		if untried(k.Slot()) {
			return k
		}
	}
	if !untried(tpm.PrimarySlot) {
		return nil
	}
	key, err := b.tpm.PrimaryKey(b.alg, nil)
	if err != nil {
		b.log.Warn("the primary key, which the head may have on record, cannot be derived", "err", err)
	}
	return key
}

// use keeps a certificate, installs it and shows it to a head.
func (b *boot) use(ctx context.Context, e *enrollment, id *identity, sent []*x509.Certificate) (string, error) {
	if err := b.keep(id); err != nil {
		return "", err
	}
	b.have = id
	return b.firstUse(ctx, e, id, sent)
}

// toRenew is what renew works on: NV's records, else what run has installed.
func (b *boot) toRenew(records []*identity) ([]*identity, error) {
	if len(records) > 0 {
		return records, nil
	}
	id, err := b.newest(b.tpm, nil)
	if err != nil {
		return nil, err
	}
	return []*identity{id}, nil
}

package signer

import (
	"bytes"
	"context"
	"crypto/x509"
	"time"

	"muster/internal/journal"
	"muster/internal/wire"
	"muster/signer/store"
)

// self answers /v1/self and, at the certificate's first use, closes the grant: issued becomes
// active, and the certificate before it ends.
func (h *Head) self(ctx context.Context, cert *x509.Certificate, who *peer) (*wire.Self, *refusal) {
	now := h.now()
	for {
		item, s, c, no := h.onRecord(ctx, cert, who, now)
		if no != nil {
			return nil, no
		}
		answer := &wire.Self{
			Node: s.Node, Serial: c.Serial, State: string(s.state(now)), Level: c.Level,
			Expires: c.NotAfter, RenewAt: h.renewAt(s, c), CAs: h.ring.Load().pins(), Ack: h.toAcknowledge(s), Time: now.Unix(),
		}
		if c.Activated {
			return answer, nil
		}
		err := h.activate(ctx, item, s, now)
		if err == nil {
			answer.State = string(StateActive)
			return answer, nil
		}
		// A failing store must not keep a good certificate from working: it stays issued, and the
		// next use tries again (I8).
		if no := storeRefusal(err); !no.conflict() {
			h.log.Warn("first use not recorded", "event", journal.Unrecorded, "node", s.Node, "err", err)
			return answer, nil
		}
	}
}

// onRecord finds the certificate that the connection proved possession of in the record of the node that it names.
func (h *Head) onRecord(ctx context.Context, cert *x509.Certificate, who *peer, now time.Time) (store.Item, *slot, *issued, *refusal) {
	return h.onRecordOf(ctx, classNode, cert, who, now)
}

// onRecordOf finds the certificate that the connection proved possession of, byte for byte, in the
// record that it names, which must be of a class. It runs on every request, so an end takes effect on the next
// one, on kept-alive connections too (I7).
func (h *Head) onRecordOf(ctx context.Context, want class, cert *x509.Certificate, who *peer, now time.Time) (store.Item, *slot, *issued, *refusal) {
	name := cert.Subject.CommonName
	if len(name) > maxNodeName { // anybody can show a certificate with a name that fills our memory
		return store.Item{}, nil, nil, refuse(wire.NotEnabled, whyUnknown, "no node's name has %d characters", len(name))
	}
	who.node = name
	item, s, no := h.anySlot(ctx, name)
	if no != nil {
		if no.reason == whyUnknown {
			h.quarantine(ctx, cert, who, now)
		}
		return item, nil, nil, no
	}
	for _, c := range []*issued{s.Cert, s.Old} {
		if c == nil || !bytes.Equal(c.DER, cert.Raw) {
			continue
		}
		who.proven, who.ek = true, s.EK
		switch {
		case s.class() != want:
			return item, nil, nil, refuse(wire.Refused, whyClass, "the certificate is of class %s, and this is for class %s", s.class(), want)
		case s.Revoked:
			return item, nil, nil, refuse(wire.Revoked, whyRevoked, "%s is revoked", s.Node)
		case !h.ring.Load().lives(c.CA):
			return item, nil, nil, refuse(wire.NotEnabled, whyCAEnded, "the CA %s was ended with all that it signed", c.CA)
		case !now.Before(c.NotAfter):
			return item, nil, nil, refuse(wire.NotEnabled, whyExpired, "the certificate of %s is over", s.Node)
		}
		return item, s, c, nil
	}
	h.quarantine(ctx, cert, who, now)
	return item, nil, nil, refuse(wire.NotEnabled, whyNotOnRecord, "certificate %s is not on record for %s",
		serialHex(cert.SerialNumber), s.Node)
}

// activate records the first use of the newest certificate. The use of an old one changes nothing.
func (h *Head) activate(ctx context.Context, item store.Item, s *slot, now time.Time) error {
	next, cert := *s, *s.Cert
	cert.Activated = true
	next.Cert, next.Old = &cert, nil
	tx := store.Tx{
		Guards: []store.Guard{item.Guard()},
		Puts:   []store.Put{put(item.Key, next)},
		Events: []store.Event{event(now, "active", s.Node, map[string]string{"serial": cert.Serial})},
	}
	if s.Old != nil {
		tx.Puts = append(tx.Puts, s.Old.end(now, superseded))
	}
	if err := h.store.Commit(ctx, tx); err != nil {
		return err
	}
	if s.Old != nil {
		h.crlDue()
	}
	return nil
}

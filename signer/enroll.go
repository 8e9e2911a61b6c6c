package signer

import (
	"context"
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/store"
)

// enroll is leg 2: the proof, then the certificate. The claim of the grant and the certificate
// become durable in one transaction, before anything leaves the process (I2).
func (h *Head) enroll(ctx context.Context, body []byte, who *peer) (*wire.Enrolled, *refusal) {
	failpoint("parse")
	answer, err := attest.ParseAnswer(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	who.node, who.ek = answer.Slot, answer.EK.Fingerprint
	now := h.now()
	item, s, no := h.slot(ctx, answer.Slot)
	if no != nil && no.reason == whyUnknown {
		// The answer for a wrong proof: who proves nothing must not learn which names are known.
		return nil, refuse(wire.StaleChallenge, whyUnknown, "%s", no.detail)
	}
	if no != nil {
		return nil, no
	}
	at, err := h.verifier.Verify(answer, h.terms(s, answer.EK.Fingerprint, answer.Level), now)
	if err != nil {
		return nil, refuse(wire.StaleChallenge, whyStale, "%v", err)
	}
	who.proven = true
	failpoint("proven")
	bound := free(at)
	if s.EK != "" {
		if bound, no = h.bindings(ctx, at); no != nil {
			return nil, no
		}
	}
	for {
		cert, no := h.settle(ctx, at, item, s, bound, who, now)
		if no == nil {
			failpoint("reply")
			return h.enrolled(cert, now), nil
		}
		if !no.conflict() {
			return nil, no
		}
		// Somebody changed the record in between, or the CAs: look again. The proof stands for the grant that
		// it named, and for that one only.
		if err := h.followRing(ctx); err != nil {
			return nil, storeRefusal(err)
		}
		if item, s, no = h.slot(ctx, at.Slot()); no != nil {
			return nil, no
		}
		if bound, no = h.bindings(ctx, at); no != nil {
			return nil, no
		}
		if s.grantID() != at.Grant() || s.level(at.EK(), at.Level()) != at.Level() {
			return nil, refuse(wire.StaleChallenge, whyStale, "the grant of %s changed meanwhile", s.Node)
		}
	}
}

// settle gives the stored certificate to the key that it was made for, or makes one.
// bound is where the bindings of EK and key stand, or are believed to.
func (h *Head) settle(ctx context.Context, at *attest.Attested, item store.Item, s *slot, bound bindings, who *peer, now time.Time) (*issued, *refusal) {
	stored, over, no := h.decide(at, s, now)
	if stored != nil || no != nil {
		return stored, no
	}
	if no := bound.barring(at); no != nil {
		return nil, no
	}
	if over != nil {
		key := attested(at)
		if before := s.level(at.EK(), over.Level); before.Rank() > key.level.Rank() {
			key.level = before // as in renewTerms
		}
		return h.renewal(ctx, renewal{of: over, key: key, ek: at.EK(), how: "over", bound: &bound}, item, s, now)
	}
	if s.holds() {
		return nil, h.hold(ctx, at, item, s, bound, who, now)
	}
	if no := h.maySign(now); no != nil {
		return nil, no
	}
	failpoint("claim")
	r := h.ring.Load() // the transaction guards that it is still the one: nothing is signed by a CA that has ended
	cert, err := h.certify(r.byRole(roleActive), attested(at), s, now)
	if err != nil {
		return nil, refuse(wire.Busy, whySigning, "%v", err)
	}
	failpoint("signed")
	err = h.store.Commit(ctx, store.Tx{
		Guards: []store.Guard{item.Guard(), bound.ek.Guard(), bound.key.Guard(), bound.barred.Guard(), r.item.Guard()},
		Puts: append(s.ending(now),
			put(item.Key, s.with(cert, at.EK())),
			store.Put{Key: bound.ek.Key, Value: []byte(s.Node)},
			store.Put{Key: bound.key.Key, Value: []byte(s.Node)},
			put(prefixCert+cert.Serial, certRecord{Class: classNode, Name: s.Node, CA: cert.CA, Key: cert.Key, NotAfter: cert.NotAfter}),
		),
		Events: []store.Event{event(now, "issue", s.Node, map[string]string{
			"serial": cert.Serial, "ek": at.EK(), "key": at.Key(), "level": string(at.Level()), "grant": at.Grant(),
		})},
	})
	if err != nil {
		return nil, storeRefusal(err)
	}
	failpoint("stored")
	h.signed(now)
	if len(s.ending(now)) > 0 {
		h.crlDue()
	}
	return cert, nil
}

// decide looks at the record alone: a certificate to give again, one that is over and that the same key of the
// same TPM renews, a refusal, or none of these, which means that a new one may be made.
func (h *Head) decide(at *attest.Attested, s *slot, now time.Time) (stored, over *issued, no *refusal) {
	if s.Revoked {
		return nil, nil, refuse(wire.Revoked, whyRevoked, "%s is revoked", s.Node)
	}
	if s.EK != "" && s.EK != at.EK() {
		return nil, nil, refuse(wire.NotEnabled, whyOtherTPM, "%s is bound to the EK %s", s.Node, s.EK)
	}
	if s.EK == "" && slices.Contains(s.Replaced, at.EK()) {
		return nil, nil, refuse(wire.NotEnabled, whyReplaced, "%s is to get another TPM than the EK %s", s.Node, at.EK())
	}
	no = mayIssue(s, at.Level(), now)
	for _, c := range []*issued{s.Cert, s.Old} {
		// With an open grant a key whose level has risen since, by --ek say, gets a certificate that says so.
		better := no == nil && c == s.Cert && c != nil && at.Level().Rank() > c.Level.Rank()
		if h.good(c, now) && c.Key == at.Key() && !better {
			return c, nil, nil
		}
	}
	if no == nil || no.reason == whyDisabled && !h.good(s.Cert, now) && !h.good(s.Old, now) {
		return nil, nil, no
	}
	for _, c := range []*issued{s.Cert, s.Old} {
		if no.reason != whyDisabled && c != nil && c.Key == at.Key() {
			return nil, c, nil
		}
	}
	// The other key may be in that TPM too. A node that was told to wait would not try it.
	switch {
	case s.Cert == nil:
	case no.reason == whyLevel:
		no.code = wire.Refused
	default:
		no = refuse(wire.Refused, whyOtherKey, "%s has its certificate for the key %s", s.Node, s.Cert.Key)
	}
	return nil, nil, no
}

// bindings are the items that say to which names an EK and a node key belong, and whether the key is barred.
type bindings struct{ ek, key, barred store.Item }

// free are the bindings of a TPM that was never seen, as most that enrol are: nothing need be read to
// guard that. Where it is wrong, the transaction conflicts, and they are read.
func free(at *attest.Attested) bindings {
	return bindings{
		ek: store.Item{Key: prefixEK + at.EK()}, key: store.Item{Key: prefixKey + at.Key()},
		barred: store.Item{Key: prefixBarred + at.Key()},
	}
}

// bindings reads them; EK and key must be free, or this slot's.
func (h *Head) bindings(ctx context.Context, at *attest.Attested) (bindings, *refusal) {
	b := free(at)
	for _, item := range []*store.Item{&b.ek, &b.key, &b.barred} {
		got, err := h.store.Get(ctx, item.Key)
		if err != nil {
			return b, storeRefusal(err)
		}
		*item = got
	}
	if b.ek.Revision != 0 && string(b.ek.Value) != at.Slot() {
		return b, refuse(wire.Refused, whyEKTaken, "the EK is bound to %s", b.ek.Value)
	}
	if b.key.Revision != 0 && string(b.key.Value) != at.Slot() {
		return b, refuse(wire.Refused, whyKeyTaken, "the key is bound to %s", b.key.Value)
	}
	return b, nil
}

// barring refuses a key that was revoked.
func (b bindings) barring(at *attest.Attested) *refusal {
	if b.barred.Revision == 0 {
		return nil
	}
	return refuse(wire.KeyBarred, whyKeyBarred, "the key %s was revoked with a certificate of %s", at.Key(), b.barred.Value)
}

// with returns the record after cert was made by a grant: that is used, and the EK bound.
func (s *slot) with(cert *issued, ek string) *slot {
	next, g := s.replaced(cert), *s.Grant
	g.Used = true
	next.Grant = &g
	next.take(ek, s.Pinned)
	return next
}

// replaced returns the record with a newer certificate. The one before stays good until the new one's first use.
func (s *slot) replaced(cert *issued) *slot {
	next := *s
	if s.Cert != nil && s.Cert.Activated {
		next.Old = s.Cert
	}
	next.Cert = cert
	return &next
}

// ending records the end of a certificate that was never used when a new key takes its place.
func (s *slot) ending(now time.Time) []store.Put {
	if s.Cert == nil || s.Cert.Activated {
		return nil
	}
	return []store.Put{s.Cert.end(now, superseded)}
}

// clockSlack is how far the clock may step back, as time services make it, before signing stops.
const clockSlack = time.Minute

// clockLeap is how far past the last record a clock may be that nothing disciplines: a dead clock that jumped
// would give certificates a life in the future, and then be before the last record for ever.
const clockLeap = 24 * time.Hour

// maySign refuses while the store is older than its witness (I9), and while the clock is before its floor,
// the last moment on record, or has jumped (I8).
func (h *Head) maySign(now time.Time) *refusal {
	if h.setBack != nil {
		return h.setBack
	}
	if err := h.book.Load().failed(); err != nil {
		return refuse(wire.Busy, whyStore, "%v", err)
	}
	floor := time.Unix(h.floor.Load(), 0).UTC()
	if now.Before(floor.Add(-clockSlack)) {
		return refuse(wire.Busy, whyClock, "the head's clock is before the last record, %s", floor.Format(time.RFC3339))
	}
	if now.After(floor.Add(clockLeap)) && !h.inSync() {
		return refuse(wire.Busy, whyClock, "the head's clock is not synchronised, and more than a day past the last record, %s", floor.Format(time.RFC3339))
	}
	return nil
}

// signed raises the clock's floor.
func (h *Head) signed(now time.Time) {
	for {
		floor := h.floor.Load()
		if now.Unix() <= floor || h.floor.CompareAndSwap(floor, now.Unix()) {
			return
		}
	}
}

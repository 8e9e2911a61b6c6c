package signer

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"net"
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/store"
)

// Bounds of what the administrator may set for a node.
const (
	MinLife      = time.Minute
	MaxLife      = 5 * 365 * 24 * time.Hour
	MinRefreshAt = 1 // percent
	MaxRefreshAt = 99
)

const (
	defaultRefreshAt = 33 // percent of the life left: a third
	// rekeyEvery is how often a node may change its key by itself: each change is a row more, and a line more
	// in the CRL.
	rekeyEvery = 24 * time.Hour
	// A cluster that enrolled at once renews over a part of what is then left, a day by default and at most.
	spread    = 30
	maxSpread = 24 * time.Hour
)

// life is what the next certificate lives.
func (s *slot) life() time.Duration {
	if s.Life == 0 {
		return nodeLife
	}
	return s.Life
}

// refreshAt is at how many percent of its life left a certificate is renewed.
func (s *slot) refreshAt() int {
	if s.RefreshAt == 0 {
		return defaultRefreshAt
	}
	return s.RefreshAt
}

// renewAt is from when on c, of the record s, is renewed; zero: not at all. It is later for some than for
// others, by the certificate's serial number, which is random.
func (h *Head) renewAt(s *slot, c *issued) time.Time {
	r := h.ring.Load()
	ca, by := r.byRole(roleActive), r.byID(c.CA)
	switch {
	case s.Disabled, s.Revoked, !c.ended.IsZero():
		return time.Time{}
	case c != s.Cert && c.Key == s.Cert.Key: // it has been, and the node does not know yet
		return s.Cert.Issued.Truncate(time.Second)
	case !c.names(s): // they are waited for
		return c.Issued.Truncate(time.Second)
	case ca == by && !c.NotAfter.Before(ca.cert.NotAfter): // the next one could live no longer
		return time.Time{}
	}
	left := c.NotAfter.Sub(c.Issued) / 100 * time.Duration(s.refreshAt())
	at := c.NotAfter.Add(c.some(min(left/spread, maxSpread)).Truncate(time.Minute) - left)
	// After a rotation the old CA waits for the last of its certificates.
	if by != nil && by.role == roleRetired {
		at = earlier(at, by.since.Add(c.some(maxSpread)))
	}
	return at.Truncate(time.Second)
}

// names says whether c has the names and addresses of the record, as certify would put them there.
func (c *issued) names(s *slot) bool {
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return true // another one would not come of it, see subject
	}
	return slices.Equal(cert.DNSNames, s.DNS) &&
		slices.EqualFunc(cert.IPAddresses, s.IP, func(have net.IP, want string) bool { return have.Equal(net.ParseIP(want)) })
}

// some is a part of d that stays the same for a certificate.
func (c *issued) some(d time.Duration) time.Duration {
	b, err := hex.DecodeString(c.Serial)
	if err != nil || len(b) < 2 {
		return 0
	}
	return d * time.Duration(binary.BigEndian.Uint16(b)) / (1 << 16)
}

func (h *Head) due(s *slot, c *issued, now time.Time) bool {
	at := h.renewAt(s, c)
	return !at.IsZero() && !now.Before(at)
}

// renew answers /v1/renew over mTLS. No grant is used. The certificate that was shown stays good until the new
// one is used, so an answer that was lost can be had again: the identical certificate.
func (h *Head) renew(ctx context.Context, body []byte, cert *x509.Certificate, who *peer) (*wire.Enrolled, *refusal) {
	var same wire.RenewRequest
	if wire.Decode(body, &same) != nil {
		return h.renewNewKey(ctx, body, cert, who)
	}
	if same.V != wire.Version {
		return nil, refuse(wire.BadRequest, whyForm, "v: %d is not %d", same.V, wire.Version)
	}
	now := h.now()
	for {
		item, s, c, no := h.inUse(ctx, cert, who, now)
		if no != nil {
			return nil, no
		}
		if c.Key == s.Cert.Key && c != s.Cert && h.good(s.Cert, now) {
			return h.enrolled(s.Cert, now), nil
		}
		if !h.due(s, c, now) {
			return h.enrolled(c, now), nil
		}
		key, err := c.subject()
		if err != nil {
			return nil, storeRefusal(err)
		}
		next, no := h.renewal(ctx, renewal{of: c, key: key, ek: s.EK, how: "same-key"}, item, s, now)
		if no == nil {
			failpoint("renew-reply")
			return h.enrolled(next, now), nil
		}
		if !no.conflict() {
			return nil, no
		}
	}
}

// inUse finds the certificate that was shown. To show it is to use it, as in self.
func (h *Head) inUse(ctx context.Context, cert *x509.Certificate, who *peer, now time.Time) (store.Item, *slot, *issued, *refusal) {
	for {
		item, s, c, no := h.onRecord(ctx, cert, who, now)
		if no == nil && s.Disabled {
			no = refuse(wire.NotEnabled, whyDisabled, "%s is disabled", s.Node)
		}
		if no != nil || c != s.Cert || c.Activated {
			return item, s, c, no
		}
		if err := h.activate(ctx, item, s, now); err != nil {
			if no := storeRefusal(err); !no.conflict() {
				return item, nil, nil, no
			}
		}
	}
}

// renewal is a certificate that takes the place of another, and what justifies it.
type renewal struct {
	of    *issued // the one that was shown, or is over
	key   subject
	ek    string
	how   string    // same-key, new-key or over, in the journal
	bound *bindings // of EK and key, where they were proven
}

// renewal signs, stores and returns a certificate in the place of the newest one of s.
func (h *Head) renewal(ctx context.Context, r renewal, item store.Item, s *slot, now time.Time) (*issued, *refusal) {
	if no := h.maySign(now); no != nil {
		return nil, no
	}
	failpoint("renew-claim")
	ring := h.ring.Load() // guarded, as in settle
	cert, err := h.certify(ring.byRole(roleActive), r.key, s, now)
	if err != nil {
		return nil, refuse(wire.Busy, whySigning, "%v", err)
	}
	failpoint("renew-signed")
	next := s.replaced(cert)
	if r.how == "new-key" {
		next.Rekeyed = now.UTC()
	}
	tx := store.Tx{
		Guards: []store.Guard{item.Guard(), ring.item.Guard()},
		Puts: append(s.ending(now), put(item.Key, next),
			put(prefixCert+cert.Serial, certRecord{Class: classNode, Name: s.Node, CA: cert.CA, Key: cert.Key, NotAfter: cert.NotAfter})),
		Events: []store.Event{event(now, "renew", s.Node, map[string]string{
			"serial": cert.Serial, "ek": r.ek, "key": cert.Key, "level": string(cert.Level), "old": r.of.Serial, "how": r.how,
		})},
	}
	if r.bound != nil {
		tx.Guards = append(tx.Guards, r.bound.ek.Guard(), r.bound.key.Guard(), r.bound.barred.Guard())
		tx.Puts = append(tx.Puts, store.Put{Key: r.bound.ek.Key, Value: []byte(s.Node)}, store.Put{Key: r.bound.key.Key, Value: []byte(s.Node)})
	}
	if err := h.store.Commit(ctx, tx); err != nil {
		return nil, h.notStored(ctx, err)
	}
	failpoint("renew-stored")
	h.signed(now)
	if len(s.ending(now)) > 0 {
		h.crlDue()
	}
	return cert, nil
}

// renewChallenge is leg 1 for a new key: as for enrolment, but that the certificate says whose it is, and that
// only the bound EK is challenged.
func (h *Head) renewChallenge(ctx context.Context, body []byte, cert *x509.Certificate, who *peer) (*wire.Challenge, *refusal) {
	claim, err := attest.ParseClaim(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	now := h.now()
	_, s, c, no := h.inUse(ctx, cert, who, now)
	if no != nil {
		return nil, no
	}
	i := slices.IndexFunc(claim.EKs, func(ek attest.Key) bool { return ek.Fingerprint == s.EK })
	if i < 0 {
		return nil, refuse(wire.Refused, whyOtherTPM, "%s is bound to the EK %s", s.Node, s.EK)
	}
	if no := h.mayRekey(s, c, claim.Key.Fingerprint, now); no != nil {
		return nil, no
	}
	done, no := h.admit(ctx)
	if no != nil {
		return nil, no
	}
	defer done()
	if err := claim.CheckCSR(); err != nil {
		return nil, refuse(wire.BadRequest, whyCSR, "%v", err)
	}
	answer, err := h.verifier.Challenge(claim, claim.EKs[i], h.renewTerms(s, c), now)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	return &answer, nil
}

// renewTerms bind a proof to the certificate under which it was asked for. What a maker vouched for at the enrolment
// holds for the EK, and so for another key of its TPM.
func (h *Head) renewTerms(s *slot, c *issued) attest.Terms {
	return attest.Terms{Cluster: h.cluster.ID, Purpose: wire.PurposeRenew, Grant: c.Serial, Slot: s.Node, Level: s.level(s.EK, c.Level)}
}

// mayRekey bounds the keys that a node goes through by itself. The key that it has may be certified again.
func (h *Head) mayRekey(s *slot, c *issued, key string, now time.Time) *refusal {
	next := s.Rekeyed.Add(rekeyEvery)
	// To the certificate before, which stays due until the new one is used, that is no exception.
	if key == s.Cert.Key || !now.Before(next) || c == s.Cert && h.due(s, c, now) {
		return nil
	}
	return refuse(wire.Refused, whyTooSoon, "%s has changed its key at %s, and may again at %s", s.Node, day(s.Rekeyed), day(next))
}

// renewNewKey is leg 2 for a new key.
func (h *Head) renewNewKey(ctx context.Context, body []byte, cert *x509.Certificate, who *peer) (*wire.Enrolled, *refusal) {
	answer, err := attest.ParseAnswer(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	now := h.now()
	for {
		item, s, c, no := h.inUse(ctx, cert, who, now)
		if no != nil {
			return nil, no
		}
		at, err := h.verifier.Verify(answer, h.renewTerms(s, c), now)
		if err != nil || at.EK() != s.EK {
			return nil, refuse(wire.StaleChallenge, whyStale, "%v", attest.ErrStale)
		}
		if at.Key() == s.Cert.Key && h.good(s.Cert, now) {
			return h.enrolled(s.Cert, now), nil
		}
		if no := h.mayRekey(s, c, at.Key(), now); no != nil {
			return nil, no
		}
		bound, no := h.bindings(ctx, at)
		if no == nil {
			no = bound.barring(at)
		}
		if no != nil {
			return nil, no
		}
		next, no := h.renewal(ctx, renewal{of: c, key: attested(at), ek: at.EK(), how: "new-key", bound: &bound}, item, s, now)
		if no == nil {
			failpoint("renew-reply")
			return h.enrolled(next, now), nil
		}
		if !no.conflict() {
			return nil, no
		}
	}
}

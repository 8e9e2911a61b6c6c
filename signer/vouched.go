package signer

import (
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
)

// vouched is what the EK's certificates prove: level vendor, or no more than without them. A node without an EK on
// record may bring several; the first with a certificate that is good is the one, else the first.
//
// Certificates are looked at only where that can raise the level: each costs public-key work.
func (h *Head) vouched(claim *attest.Claim, ek attest.Key, s *slot, now time.Time) (attest.Key, wire.Level, *refusal) {
	if s.EK == ek.Fingerprint && s.Pinned {
		return ek, wire.Pinned, nil
	}
	look := h.makers.Look(now) // one for all the EKs: what they cost is bounded together
	if s.EK == ek.Fingerprint {
		err := look.Check(ek.Certs, ek.Public.Key)
		switch {
		case err == nil:
			return ek, wire.Vendor, nil
		case s.open(now) && s.Grant.Level == wire.Vendor && !h.has(s, claim.Key.Fingerprint, now):
			return ek, wire.TOFU, refuse(wire.NotEnabled, whyVendor, "%v", err)
		}
		return ek, wire.TOFU, nil // what it may get so is told after the proof
	}
	var why error
	for _, one := range claim.EKs {
		if slices.Contains(s.Replaced, one.Fingerprint) {
			continue
		}
		err := look.Check(one.Certs, one.Public.Key)
		if err == nil {
			return one, wire.Vendor, nil
		}
		if why == nil || len(one.Certs) > 0 {
			why = err
		}
	}
	if s.Grant.Level == wire.Vendor {
		return ek, wire.TOFU, refuse(wire.NotEnabled, whyVendor, "%v", why)
	}
	return ek, wire.TOFU, mayIssue(s, wire.TOFU, now)
}

// has says whether s holds a certificate for key that is good.
func (h *Head) has(s *slot, key string, now time.Time) bool {
	return s.Cert != nil && s.Cert.Key == key && h.good(s.Cert, now) || s.Old != nil && s.Old.Key == key && h.good(s.Old, now)
}

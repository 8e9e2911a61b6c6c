package signer

import (
	"context"
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/inventory"
	"muster/signer/store"
)

// challenge is leg 1. It writes nothing: any head can finish what another began, and a storm costs
// no memory. The order is cheap first; the CSR's signature and the challenge itself, which cost
// public-key work, come after the look at the grant.
func (h *Head) challenge(ctx context.Context, body []byte, who *peer) (*wire.Challenge, *refusal) {
	// 1. Form: strict encoding, templates, points on their curves.
	claim, err := attest.ParseClaim(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	who.node = claim.Node
	now := h.now()
	// 2. One EK, and the one slot that it leads to.
	ek, s, no := h.find(ctx, claim)
	if no != nil {
		return nil, no
	}
	who.node, who.ek = s.Node, ek.Fingerprint
	// 3. The grant.
	if no := admissible(s, ek.Fingerprint, now); no != nil {
		return nil, no
	}
	// 4. Possession of the key, what the EK's certificate proves, then the challenge.
	done, no := h.admit(ctx)
	if no != nil {
		return nil, no
	}
	defer done()
	if err := claim.CheckCSR(); err != nil {
		return nil, refuse(wire.BadRequest, whyCSR, "%v", err)
	}
	ek, level, no := h.vouched(claim, ek, s, now)
	who.ek = ek.Fingerprint
	if no != nil {
		return nil, no
	}
	c, err := h.verifier.Challenge(claim, ek, h.terms(s, ek.Fingerprint, level), now)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	return &c, nil
}

// find chooses one EK of those that the claim brings, and with it the name, the level and the
// binding. An EK of the record leads to its slot; else name and hints do. An EK of somebody else,
// sent beside one's own, so lends nothing: the challenge goes to that EK's TPM.
func (h *Head) find(ctx context.Context, claim *attest.Claim) (attest.Key, *slot, *refusal) {
	for _, ek := range claim.EKs {
		owner, err := h.store.Get(ctx, prefixEK+ek.Fingerprint)
		if err != nil {
			return ek, nil, storeRefusal(err)
		}
		if owner.Revision != 0 {
			_, s, no := h.slot(ctx, string(owner.Value))
			return ek, s, no
		}
	}
	s, no := h.claimed(ctx, claim.Node, claim.Hints)
	return claim.EKs[0], s, no
}

// claimed is the slot of a machine whose TPM was never seen: that of the name it gives, unless what is recorded of
// its board says otherwise; else the only one that a MAC or the UUID fits. Anybody can claim any of these: they say
// which slot is meant, and never raise a level.
func (h *Head) claimed(ctx context.Context, name string, hints wire.Hints) (*slot, *refusal) {
	_, s, no := h.slot(ctx, name)
	if no == nil {
		no = contradicts(s, hints)
	}
	if no == nil || no.reason != whyUnknown && no.reason != whyOtherBoard {
		return s, no
	}
	fitting, failed := h.fitting(ctx, hints)
	switch {
	case failed != nil:
		return nil, failed
	case len(fitting) == 0:
		return nil, no
	case len(fitting) > 1:
		return nil, refuse(wire.NotEnabled, whyAmbiguous, "its MACs and UUID are on record for %s", fold(fitting))
	}
	_, s, no = h.slot(ctx, fitting[0])
	return s, no
}

// contradicts refuses a machine that cannot be s by what is recorded of its board. What either side does not say
// contradicts nothing.
func contradicts(s *slot, hints wire.Hints) *refusal {
	macs := known(hints.MACs, inventory.ReadMAC)
	if len(s.MAC) > 0 && len(macs) > 0 && len(minus(macs, s.MAC)) == len(macs) {
		return refuse(wire.NotEnabled, whyOtherBoard, "its MAC is %s, and %s is on record with %s", commas(macs), s.Node, commas(s.MAC))
	}
	uuid := commas(known([]string{hints.UUID}, inventory.ReadUUID))
	if s.UUID != "" && uuid != "" && uuid != s.UUID {
		return refuse(wire.NotEnabled, whyOtherBoard, "its UUID is %s, and %s is on record with %s", uuid, s.Node, s.UUID)
	}
	return nil
}

// fitting are the nodes that a hint names, each once.
func (h *Head) fitting(ctx context.Context, hints wire.Hints) (names []string, no *refusal) {
	var keys []string
	for _, mac := range known(hints.MACs, inventory.ReadMAC) {
		keys = append(keys, prefixMAC+mac)
	}
	for _, uuid := range known([]string{hints.UUID}, inventory.ReadUUID) {
		keys = append(keys, prefixUUID+uuid)
	}
	for _, key := range keys {
		owner, err := h.store.Get(ctx, key)
		if err != nil {
			return nil, storeRefusal(err)
		}
		if owner.Revision != 0 && !slices.Contains(names, string(owner.Value)) {
			names = append(names, string(owner.Value))
		}
	}
	return names, nil
}

// known are the hints that say something, in their one spelling.
func known(hints []string, read func(string) (string, bool)) []string {
	var values []string
	for _, hint := range hints {
		if value, ok := read(hint); ok {
			values = append(values, value)
		}
	}
	return values
}

// slot reads the record of a node. A host's is none: whoever has proved nothing must not learn of it.
func (h *Head) slot(ctx context.Context, name string) (store.Item, *slot, *refusal) {
	item, s, no := h.anySlot(ctx, name)
	if no == nil && s.Host {
		return item, nil, refuse(wire.NotEnabled, whyUnknown, "%q is an EST client, and no node", name)
	}
	return item, s, no
}

// anySlot reads the record of a name.
func (h *Head) anySlot(ctx context.Context, name string) (store.Item, *slot, *refusal) {
	item, err := h.store.Get(ctx, prefixSlot+name)
	if err != nil {
		return item, nil, storeRefusal(err)
	}
	if item.Revision == 0 {
		return item, nil, refuse(wire.NotEnabled, whyUnknown, "no node %q is known", name)
	}
	s, err := parse[slot](item)
	if err != nil {
		return item, nil, storeRefusal(err)
	}
	return item, s, nil
}

// admissible says whether an EK may be challenged for s, but for the level. A bound EK always may: what it
// then gets depends on the record, and the truth about that is told after the proof only.
func admissible(s *slot, ek string, now time.Time) *refusal {
	switch {
	case s.EK == ek:
		return nil
	case slices.Contains(s.Replaced, ek):
		return refuse(wire.NotEnabled, whyReplaced, "%s is to get another TPM than the EK %s", s.Node, ek)
	case s.EK != "":
		return refuse(wire.NotEnabled, whyOtherTPM, "%s is bound to the EK %s", s.Node, s.EK)
	}
	return mayIssue(s, wire.Pinned, now)
}

// mayIssue says whether the grant of s allows a new certificate at level.
func mayIssue(s *slot, level wire.Level, now time.Time) *refusal {
	switch {
	case s.Revoked:
		return refuse(wire.Revoked, whyRevoked, "%s is revoked", s.Node)
	case s.Disabled:
		return refuse(wire.NotEnabled, whyDisabled, "%s is disabled", s.Node)
	case s.Grant == nil || s.Grant.Used:
		return refuse(wire.NotEnabled, whyNotEnabled, "%s has no open grant", s.Node)
	case s.knows():
		return refuse(wire.NotEnabled, whyNotEnabled, "the grant of %s is to learn its TPM, which is on record", s.Node)
	case !now.Before(s.Grant.Until):
		return refuse(wire.NotEnabled, whyWindowOver, "the window of %s was over at %s", s.Node, day(s.Grant.Until))
	case level.Rank() < s.Grant.Level.Rank():
		return refuse(wire.NotEnabled, whyLevel, "%s is at level %s, and the grant asks for %s", s.Node, level, s.Grant.Level)
	}
	return nil
}

// terms are what the record gives an EK now. Both legs compute them, and the proof binds them. Leg 2 takes the level
// that was proven from the answer, since the certificates are in leg 1 only: an answer that claims another than leg 1
// bound fits no challenge.
func (h *Head) terms(s *slot, ek string, proven wire.Level) attest.Terms {
	return attest.Terms{Cluster: h.cluster.ID, Purpose: wire.PurposeEnroll, Grant: s.grantID(), Slot: s.Node, Level: s.level(ek, proven)}
}

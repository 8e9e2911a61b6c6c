package signer

import (
	"context"
	"maps"
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/store"
)

// Candidate is a TPM that proved itself under a grant that holds it back. There is one of a kind for each node:
// the first. Another one neither takes its place nor is kept from being chosen: approve --ek names it.
type Candidate struct {
	EK    string     `json:"ek"`
	Level wire.Level `json:"level"` // proven, at the last time that it rose
	Since time.Time  `json:"since"`
	Addr  string     `json:"addr"` // that it asked from first
}

// holds says whether a TPM that proved itself waits for the administrator. One that is on record does not.
func (s *slot) holds() bool {
	return s.EK == "" && s.Grant != nil && !s.Grant.Used && (s.Grant.Approve || s.Grant.Learn)
}

// waits says whether it does so for approval.
func (s *slot) waits() bool { return s.holds() && s.Grant.Approve && !s.Grant.Learn }

// hold notes the first TPM that proves itself, on record; nothing of it stands there before the proof (I10).
func (h *Head) hold(ctx context.Context, at *attest.Attested, item store.Item, s *slot, bound bindings, who *peer, now time.Time) *refusal {
	next, kind := *s, "pending"
	first, answer := &next.Pending, refuse(wire.Pending, whyPending, "%s waits for approval, with the EK %s", s.Node, at.EK())
	if s.Grant.Learn {
		first, kind = &next.Learned, "learn"
		answer = refuse(wire.Pending, whyLearned, "the EK %s was noted for %s", at.EK(), s.Node)
	}
	one := Candidate{EK: at.EK(), Level: at.Level(), Since: now.UTC().Truncate(time.Second), Addr: who.addr}
	if was := *first; was != nil {
		if was.EK != one.EK {
			return refuse(wire.Pending, whyAnother, "the EK %s was there before it", was.EK)
		}
		if was.Level.Rank() >= one.Level.Rank() {
			return answer
		}
		one.Since, one.Addr = was.Since, was.Addr
	}
	*first = &one
	err := h.store.Commit(ctx, store.Tx{
		Guards: []store.Guard{item.Guard(), bound.ek.Guard()},
		Puts:   []store.Put{put(item.Key, next)},
		Events: []store.Event{event(now, kind, s.Node, map[string]string{"ek": one.EK, "level": string(one.Level), "addr": who.addr})},
	})
	if err != nil {
		return storeRefusal(err)
	}
	return answer
}

// ApproveRequest is `muster certs approve`.
type ApproveRequest struct {
	IDs      []string      `json:"ids,omitempty"`
	Selector string        `json:"selector,omitempty"` // of package selector: narrows IDs
	For      time.Duration `json:"for"`                // how long the TPM has to come and get its certificate, from now
	// Expect are the EKs that the administrator saw, by name; a node that another one waits for is refused.
	// With it IDs may be left out: all its names.
	Expect map[string]string `json:"expect,omitempty"`
	EK     string            `json:"ek,omitempty"` // this one, waiting or not, and pin it; for one node only
	// TakeBack: also one that `certs replace` took out of the node.
	TakeBack bool `json:"take_back,omitempty"`
}

// adminApprove binds each node to the TPM that waits for it, which gets its certificate when it asks next.
func (h *Head) adminApprove(ctx context.Context, req ApproveRequest, out *stream) (any, error) {
	if err := checkWindow(req.For); err != nil {
		return nil, err
	}
	if req.EK != "" && !isFingerprint(req.EK) {
		return nil, notFingerprint(req.EK)
	}
	ids := req.IDs
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(req.Expect))
	}
	names, err := h.resolve(ctx, which{ids: ids, expr: req.Selector}, false)
	if err != nil {
		return nil, err
	}
	if len(names) != 1 && req.EK != "" {
		return nil, adminError(KindUsage, "name one node, or leave --ek out", "--ek is for one node, not for %d", len(names))
	}
	now := h.now()
	// All is looked at before anything is changed, so that a refusal changes nothing at all.
	whose := map[string]string{}
	for _, name := range names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		_, ek, _, err := h.mayApprove(ctx, item, req)
		if err != nil {
			return nil, err
		}
		if other, twice := whose[ek]; twice {
			return nil, adminError(KindPolicy, "muster certs approve -i "+name, "one TPM, with the EK %s, waits for %s and for %s", ek, other, name)
		}
		whose[ek] = name
	}
	var last time.Time
	eks := map[string]string{}
	result, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		s, ek, owner, err := h.mayApprove(ctx, item, req)
		if err != nil {
			return edit{}, err
		}
		e := s.approve(ek, req.EK != "", now, now.Add(req.For).UTC())
		e.tx.Guards = []store.Guard{owner.Guard()}
		e.tx.Puts = []store.Put{{Key: owner.Key, Value: []byte(s.Node)}}
		e.tx.Events = []store.Event{event(now, "approve", s.Node, map[string]string{
			"ek": ek, "grant": e.slot.Grant.ID, "until": e.slot.Grant.Until.Format(time.RFC3339), "by": byWhom(ctx),
		})}
		last = later(last, e.slot.Grant.Until)
		eks[s.Node] = ek
		return e, nil
	})
	result.EKs = eks
	result.Until = last.UTC().Truncate(time.Second)
	return result, err
}

// mayApprove refuses what no transaction may do. It returns the record, the EK that is meant, and the item that
// says whose that is.
func (h *Head) mayApprove(ctx context.Context, item store.Item, req ApproveRequest) (s *slot, ek string, owner store.Item, err error) {
	if s, err = parse[slot](item); err != nil {
		return nil, "", owner, err
	}
	name := s.Node
	if s.Pending != nil {
		ek = s.Pending.EK
	}
	if req.EK == "" && ek != "" && req.Expect[name] != ek {
		return nil, "", owner, adminError(KindPolicy, "muster certs list --state pending", "who waits for %s is not who was shown", name)
	}
	if req.EK != "" {
		ek = req.EK
	}
	switch {
	case s.Revoked:
		return nil, "", owner, adminError(KindPolicy, "muster certs enable --again --approve -i "+name, "%s is revoked", name)
	case s.Disabled || !s.waits():
		return nil, "", owner, adminError(KindPolicy, notWaitedFor(s), "nothing of %s waits for approval", name)
	case ek == "":
		return nil, "", owner, adminError(KindPolicy, "boot it; to name its TPM beforehand: muster certs approve -i "+name+" --ek SHA256", "no TPM has asked to be %s yet", name)
	}
	if err := mayComeBack(s, ek, req.TakeBack, "muster certs approve"); err != nil {
		return nil, "", owner, err
	}
	owner, err = h.owned(ctx, ek, name)
	return s, ek, owner, err
}

func notWaitedFor(s *slot) string {
	if s.Learned != nil {
		return "its EK was learned; to let that in: muster certs enable --learned -i " + s.Node
	}
	return "muster certs list --state pending"
}

// approve makes ek the one of the record: from now on it is the only one that gets in, by the grant that it waited for,
// or by a new one where that was over.
func (s *slot) approve(ek string, pin bool, now, until time.Time) edit {
	e := edit{slot: *s, what: approved}
	g := *s.Grant
	if !s.open(now) {
		g.ID = newID()
	}
	g.Approve, g.Until = false, later(g.Until, until)
	e.slot.Grant = &g
	e.slot.take(ek, pin)
	return e
}

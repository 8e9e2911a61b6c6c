package signer

import (
	"context"
	"errors"
	"iter"
	"strings"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// NodeView is one node of a listing, as the admin socket carries it.
type NodeView struct {
	Node        string     `json:"node"`
	State       State      `json:"state"`
	Level       wire.Level `json:"level,omitempty"`
	Serial      string     `json:"serial,omitempty"`
	EK          string     `json:"ek,omitempty"`
	Key         string     `json:"key,omitempty"`
	Issued      time.Time  `json:"issued,omitzero"`
	Expires     time.Time  `json:"expires,omitzero"` // the certificate's end, or its CA's where that came first
	Ended       bool       `json:"ended,omitempty"`  // with its CA
	WindowUntil time.Time  `json:"window_until,omitzero"`
	Class       string     `json:"class"` // node or host
	// Only of whole records, as in `certs show`:
	Pinned bool     `json:"pinned,omitempty"`
	MAC    []string `json:"mac,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Groups []string `json:"groups,omitempty"`
	DNS    []string `json:"dns,omitempty"`
	IP     []string `json:"ip,omitempty"`
	Cert   string   `json:"cert,omitempty"` // PEM
	Old    string   `json:"old,omitempty"`  // serial of the certificate that lives until Cert is used
	// From when on Cert is renewed; zero: not at all.
	RenewAt   time.Time     `json:"renew_at,omitzero"`
	Life      time.Duration `json:"life,omitempty"`       // of the next certificate
	RefreshAt int           `json:"refresh_at,omitempty"` // percent of it left
	// Also in a listing of those that wait:
	Pending *Candidate `json:"pending,omitempty"` // waits for approval
	Learned *Candidate `json:"learned,omitempty"` // was seen by `enable --learn`
}

func (s *slot) view(now time.Time, whole bool) NodeView {
	v := NodeView{Node: s.Node, Class: string(s.class()), State: s.state(now), EK: s.EK}
	if s.open(now) {
		v.WindowUntil, v.Level = s.Grant.Until, s.Grant.Level
		if s.Pinned { // nothing less can come of it
			v.Level = wire.Pinned
		}
	}
	if c := s.Cert; c != nil {
		v.Serial, v.Key, v.Level = c.Serial, c.Key, c.Level
		v.Issued, v.Expires = c.Issued.Truncate(time.Second), c.over().Truncate(time.Second)
		v.Ended = !c.ended.IsZero()
	}
	if v.State == StatePending {
		v.Pending = s.Pending
	}
	for _, c := range []*Candidate{s.Learned, v.Pending} {
		if c != nil && s.EK == "" {
			v.EK, v.Level = c.EK, c.Level
		}
	}
	if whole {
		v.Learned = s.Learned
		v.Pinned, v.DNS, v.IP = s.Pinned, s.DNS, s.IP
		v.MAC, v.UUID, v.Groups = s.MAC, s.UUID, s.Groups
		v.Life, v.RefreshAt = s.life(), s.refreshAt()
		if s.Cert != nil {
			v.Cert = string(certificatePEM(s.Cert.DER))
		}
		if s.Old != nil {
			v.Old = s.Old.Serial
		}
	}
	v.WindowUntil = v.WindowUntil.Truncate(time.Second)
	return v
}

// IsNode says whether the record is a node's, and no EST client's.
func (v NodeView) IsNode() bool { return v.Class == string(classNode) }

// ListRequest is `muster certs list`, `certs show` and `nodes list`.
type ListRequest struct {
	IDs   []string `json:"ids,omitempty"`
	State State    `json:"state,omitempty"`
	Whole bool     `json:"whole,omitempty"`

	Selector string `json:"selector,omitempty"` // of package selector: narrows IDs, or all
}

// Listed ends a listing.
type Listed struct {
	Count   int    `json:"count"`
	Damaged string `json:"damaged,omitempty"` // nodes whose record cannot be read, folded
}

// adminList streams a NodeView for each node that was asked for. Every id must be known. A damaged
// record is named at the end, and keeps none of the others back (I8).
func (h *Head) adminList(ctx context.Context, req ListRequest, out *stream) (any, error) {
	if req.State == StateUnknown {
		return h.listUnknown(ctx, req, out)
	}
	now := h.now()
	var done Listed
	var damaged []string
	for item, err := range h.asked(ctx, which{ids: req.IDs, expr: req.Selector}) {
		var s *slot
		if err == nil {
			s, err = h.readSlot(item)
		}
		switch {
		case errors.Is(err, store.ErrDamaged):
			damaged = append(damaged, strings.TrimPrefix(item.Key, prefixSlot))
			continue
		case err != nil:
			return nil, err
		case req.State != "" && s.state(now) != req.State:
			continue
		}
		done.Count++
		v := s.view(now, req.Whole)
		if req.Whole && s.Cert != nil {
			v.RenewAt = h.renewAt(s, s.Cert)
		}
		if err := out.item(v); err != nil {
			return nil, err
		}
	}
	done.Damaged = fold(damaged)
	return done, nil
}

// asked yields the records of the nodes that w names, or all; a damaged one with its key alone.
func (h *Head) asked(ctx context.Context, w which) iter.Seq2[store.Item, error] {
	if len(w.ids) == 0 && w.expr == "" {
		return h.store.List(ctx, prefixSlot)
	}
	return func(yield func(store.Item, error) bool) {
		names, err := h.resolve(ctx, w, false)
		if err != nil {
			yield(store.Item{}, err)
			return
		}
		for _, name := range names {
			item, err := h.store.Get(ctx, prefixSlot+name)
			item.Key = prefixSlot + name
			if !yield(item, err) {
				return
			}
		}
	}
}

package signer

import (
	"context"
	"fmt"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// NodeView is one node in `certs list --json`; its field names are stable.
type NodeView struct {
	Node        string     `json:"node"`
	State       State      `json:"state"`
	Level       wire.Level `json:"level,omitempty"`
	Serial      string     `json:"serial,omitempty"`
	EK          string     `json:"ek,omitempty"`
	Key         string     `json:"key,omitempty"`
	Issued      time.Time  `json:"issued,omitzero"`
	Expires     time.Time  `json:"expires,omitzero"`
	WindowUntil time.Time  `json:"window_until,omitzero"`
	// Only in `certs show`:
	Pinned bool     `json:"pinned,omitempty"`
	DNS    []string `json:"dns,omitempty"`
	IP     []string `json:"ip,omitempty"`
	Cert   string   `json:"cert,omitempty"` // PEM
	Old    string   `json:"old,omitempty"`  // serial of the certificate that lives until Cert is used
}

func (s *slot) view(now time.Time, whole bool) NodeView {
	v := NodeView{Node: s.Node, State: s.state(now), EK: s.EK}
	if s.open(now) {
		v.WindowUntil, v.Level = s.Grant.Until, s.Grant.Level
		if s.Pinned { // nothing less can come of it
			v.Level = wire.Pinned
		}
	}
	if c := s.Cert; c != nil {
		v.Serial, v.Key, v.Level = c.Serial, c.Key, c.Level
		v.Issued, v.Expires = c.Issued.Truncate(time.Second), c.NotAfter
	}
	if whole {
		v.Pinned, v.DNS, v.IP = s.Pinned, s.DNS, s.IP
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

// ListRequest is `muster certs list` and `certs show`.
type ListRequest struct {
	IDs   []string `json:"ids,omitempty"`
	State State    `json:"state,omitempty"`
	Whole bool     `json:"whole,omitempty"`
}

// adminList streams a NodeView for each node that was asked for. Every id must be known.
func (h *Head) adminList(ctx context.Context, req ListRequest, out *stream) (any, error) {
	now := h.now()
	send := func(item store.Item) (bool, error) {
		s, err := parse[slot](item)
		if err != nil {
			return false, err
		}
		if req.State != "" && s.state(now) != req.State {
			return false, nil
		}
		return true, out.item(s.view(now, req.Whole))
	}
	if len(req.IDs) > 0 {
		return h.listNamed(ctx, req.IDs, send)
	}
	n := 0
	for item, err := range h.store.List(ctx, prefixSlot) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", item.Key, err)
		}
		sent, err := send(item)
		if err != nil {
			return nil, err
		}
		if sent {
			n++
		}
	}
	return n, nil
}

func (h *Head) listNamed(ctx context.Context, ids []string, send func(store.Item) (bool, error)) (any, error) {
	names, err := h.resolve(ctx, ids, false, false)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, name := range names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		sent, err := send(item)
		if err != nil {
			return nil, err
		}
		if sent {
			n++
		}
	}
	return n, nil
}

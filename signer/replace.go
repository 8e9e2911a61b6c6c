package signer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// ReplaceRequest is `muster certs replace`: the node's board, and so its TPM, is another one now.
type ReplaceRequest struct {
	ID      string        `json:"id"`
	Reason  string        `json:"reason,omitempty"` // one of Reasons; empty: superseded
	For     time.Duration `json:"for"`
	Level   wire.Level    `json:"level,omitempty"`
	EK      string        `json:"ek,omitempty"` // of the new board, to pin
	Approve bool          `json:"approve,omitempty"`
	// TakeBack: EK may be of a board that was taken out of the node before.
	TakeBack bool `json:"take_back,omitempty"`
}

// maxReplaced bounds how many boards that were taken out of a node it refuses. Beyond, the oldest is forgotten.
const maxReplaced = 16

// adminReplace ends what the old TPM had, and opens one grant for another. The old TPM is free to be another node's;
// this name does not take it back, and its keys are barred for ever. MACs and UUID go with the board.
func (h *Head) adminReplace(ctx context.Context, req ReplaceRequest, out *stream) (any, error) {
	why, ok := crlReasons[req.Reason]
	if req.Reason == "" {
		why, ok = superseded, true
	}
	if !ok {
		return nil, adminError(KindUsage, "one of "+strings.Join(Reasons(), ", "), "%q is no reason for a CRL", req.Reason)
	}
	grant := EnableRequest{For: req.For, Level: req.Level, EK: req.EK, Approve: req.Approve, Again: true, TakeBack: req.TakeBack}
	if err := grant.check(); err != nil {
		return nil, err
	}
	if err := h.reachable(req.Level); err != nil {
		return nil, err
	}
	name, err := h.oneName(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	item, err := h.store.Get(ctx, prefixSlot+name)
	if err != nil {
		return nil, err
	}
	if item.Revision == 0 {
		return nil, adminError(KindNone, "muster certs list", "no such node: %s", name)
	}
	now := h.now()
	if _, err := h.replace(ctx, item, grant, why, now); err != nil {
		return nil, err
	}
	// An agent that finds a key of an earlier grant in the old board makes another when it is told that this one is barred.
	past, err := h.barPast(ctx, []string{name}, now, byWhom(ctx))
	if err != nil {
		return nil, err
	}
	if err := h.endLostOf(ctx, []string{name}, now, why); err != nil {
		return nil, err
	}
	var until time.Time
	done, err := h.changeOne(ctx, name, func(item store.Item) (edit, error) {
		if err := past.barSince(ctx, h, item, now, byWhom(ctx)); err != nil {
			return edit{}, err
		}
		e, err := h.replace(ctx, item, grant, why, now)
		if err == nil {
			until = e.slot.Grant.Until
		}
		return e, err
	})
	done.Until = until.Truncate(time.Second)
	return done, errors.Join(err, h.listRevoked(ctx))
}

// replace is revoke, and then enable of a record that knows no TPM.
func (h *Head) replace(ctx context.Context, item store.Item, req EnableRequest, why crlReason, now time.Time) (edit, error) {
	s, err := parse[slot](item)
	if err != nil {
		return edit{}, err
	}
	old := s.EK
	switch old {
	case "":
		return edit{}, adminError(KindPolicy, "muster certs enable -i "+s.Node, "%s has no TPM on record that could be replaced", s.Node)
	case req.EK:
		return edit{}, adminError(KindPolicy, "for another key of the same TPM: muster certs revoke, then enable --again", "%s is bound to just this EK", s.Node)
	}
	if err := mayComeBack(s, req.EK, req.TakeBack, "muster certs replace"); err != nil {
		return edit{}, err
	}
	if req.Level == "" && req.EK == "" && !req.Approve { // the new board is to be no less than the old one had to
		if s.Pinned {
			return edit{}, adminError(KindPolicy, "muster certs replace -i "+s.Node+" --ek SHA256, which muster-agent ek prints on the new board; or for the first TPM that asks: --level tofu",
				"%s is pinned, so the EK of its new board is to be named, too", s.Node)
		}
		if s.Grant != nil && s.Grant.Level == wire.Vendor {
			req.Level = wire.Vendor
		}
	}
	was, err := h.owned(ctx, old, s.Node)
	if err != nil {
		return edit{}, err
	}
	ended := s.revoke(now, why, byWhom(ctx))
	bare := ended.slot
	bare.take("", false)
	bare.MAC, bare.UUID, bare.Acked, bare.Rekeyed = nil, "", "", time.Time{}
	fields := map[string]string{"ek": old, "by": byWhom(ctx)}
	out := append(minus(s.Replaced, []string{old}), old)
	if more := len(out) - maxReplaced; more > 0 {
		fields["forgotten"] = commas(out[:more])
		out = out[more:]
	}
	bare.Replaced = out
	e, err := h.enable(ctx, store.Item{Key: item.Key, Value: put(item.Key, bare).Value, Revision: item.Revision}, req, now)
	if err != nil {
		return edit{}, err
	}
	e.what = replaced
	e.tx.Guards = append(e.tx.Guards, was.Guard())
	e.tx.Deletes = append(e.tx.Deletes, was.Key)
	e.tx.Puts = append(e.tx.Puts, ended.tx.Puts...)
	for _, mac := range s.MAC {
		e.tx.Deletes = append(e.tx.Deletes, prefixMAC+mac)
	}
	if s.UUID != "" {
		e.tx.Deletes = append(e.tx.Deletes, prefixUUID+s.UUID)
	}
	for _, c := range []*issued{s.Cert, s.Old} {
		if c != nil && !slices.Contains(e.tx.Deletes, prefixKey+c.Key) {
			e.tx.Deletes = append(e.tx.Deletes, prefixKey+c.Key)
		}
	}
	gone := event(now, "replace", s.Node, fields)
	e.tx.Events = slices.Concat(ended.tx.Events, []store.Event{gone}, e.tx.Events)
	return e, nil
}

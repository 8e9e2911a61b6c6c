package signer

import (
	"context"
	"time"

	"muster/signer/store"
)

// LogRequest is `muster log`. Zero fields do not filter.
type LogRequest struct {
	IDs      []string  `json:"ids,omitempty"`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"`
	Kinds    []string  `json:"kinds,omitempty"`
	Selector string    `json:"selector,omitempty"`
	Follow   bool      `json:"follow,omitempty"` // go on with what comes
}

// followEvery is how soon a follower sees an entry.
const followEvery = 200 * time.Millisecond

func (h *Head) adminLog(ctx context.Context, req LogRequest, out *stream) (any, error) {
	wanted, err := h.chosen(ctx, which{ids: req.IDs, expr: req.Selector})
	if err != nil {
		return nil, err
	}
	kinds := map[string]bool{}
	for _, kind := range req.Kinds {
		kinds[kind] = true
	}
	n, next := 0, uint64(1)
	for {
		for e, err := range h.store.Journal(ctx, next) {
			if err != nil {
				return nil, damagedJournal(e, err)
			}
			next = e.Seq + 1
			over := !req.Until.IsZero() && e.Time.After(req.Until)
			if over || e.Time.Before(req.Since) || !wanted(e.Node) || len(kinds) > 0 && !kinds[e.Kind] {
				continue
			}
			n++
			if err := out.item(e); err != nil {
				return nil, err
			}
		}
		if !req.Follow {
			return n, nil
		}
		if err := out.flush(); err != nil {
			return nil, err
		}
		if err := h.awaitEntry(ctx, next); err != nil {
			return nil, err
		}
	}
}

func damagedJournal(e store.Entry, err error) error {
	return adminError(KindFailed, "the journal was changed by hand or by a failing disk: restore a backup", "journal entry %d: %v", e.Seq, err)
}

// awaitEntry returns when there is an entry seq.
func (h *Head) awaitEntry(ctx context.Context, seq uint64) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		tail, err := h.store.Tail(ctx)
		if err != nil || tail.Seq >= seq {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

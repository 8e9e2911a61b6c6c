package signer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"muster/signer/store"
)

// RemoveRequest is `muster nodes remove`.
type RemoveRequest struct {
	IDs      []string `json:"ids,omitempty"`
	All      bool     `json:"all,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

// adminRemove ends the certificates of nodes, and forgets the nodes: name, EK, MACs and UUID are free. Their keys
// are barred, so that what was certified as one node is never certified as another.
func (h *Head) adminRemove(ctx context.Context, req RemoveRequest, out *stream) (any, error) {
	names, err := h.resolve(ctx, which{ids: req.IDs, all: req.All, expr: req.Selector}, false)
	if err != nil {
		return nil, err
	}
	// Keys of long ago first: there may be more of them than one transaction takes.
	now, by := h.now(), byWhom(ctx)
	past, err := h.barPast(ctx, names, now, by)
	if err != nil {
		return nil, err
	}
	if err := h.endLostOf(ctx, names, now, cessationOfOperation); err != nil {
		return nil, err
	}
	done, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		if err := past.barSince(ctx, h, item, now, by); err != nil {
			return edit{}, err
		}
		s, err := parse[slot](item)
		if err != nil {
			return edit{}, err
		}
		e := s.remove(now, by)
		held := s.Held
		if !s.Host {
			held = []string{nameKey(s.Node)}
		}
		names, err := h.release(ctx, s.Node, held)
		e.tx = joinTx(e.tx, names)
		return e, err
	})
	for _, name := range names {
		h.seen.forget(name)
	}
	return done, errors.Join(err, h.listRevoked(ctx))
}

// remove forgets a node. What it had ends first, unless it was revoked before.
func (s *slot) remove(now time.Time, by string) edit {
	e := edit{slot: *s}
	if !s.Revoked {
		e = s.revoke(now, cessationOfOperation, by)
	}
	e.what = removed
	keys := map[string]bool{}
	for _, c := range []*issued{s.Cert, s.Old} {
		if c != nil {
			keys[prefixKey+c.Key] = true
		}
	}
	e.tx.Deletes = slices.Collect(maps.Keys(keys))
	if s.EK != "" {
		e.tx.Deletes = append(e.tx.Deletes, prefixEK+s.EK)
	}
	for _, mac := range s.MAC {
		e.tx.Deletes = append(e.tx.Deletes, prefixMAC+mac)
	}
	if s.UUID != "" {
		e.tx.Deletes = append(e.tx.Deletes, prefixUUID+s.UUID)
	}
	e.tx.Events = append(e.tx.Events, event(now, "remove", s.Node, map[string]string{"ek": s.EK, "by": by}))
	return e
}

// barredAt are the revisions of records whose past keys have been barred: those that were bound to the name and are in
// no certificate of it that lives. A key is bound in the transaction that writes the record, so at that revision there
// are no others.
type barredAt map[string]uint64 // by name

// barPast bars the past keys of names.
func (h *Head) barPast(ctx context.Context, names []string, now time.Time, by string) (barredAt, error) {
	done := barredAt{}
	past, err := h.pastKeys(ctx, names, done)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for chunk := range slices.Chunk(past[name], perTx/2) {
			if err := h.store.Commit(ctx, bar(name, chunk, now, by)); err != nil {
				return nil, err
			}
		}
	}
	return done, nil
}

// barSince bars the past keys of a record that has changed since. The caller's transaction guards item.
func (b barredAt) barSince(ctx context.Context, h *Head, item store.Item, now time.Time, by string) error {
	name := item.Key[len(prefixSlot):]
	if b[name] == item.Revision {
		return nil
	}
	again, err := h.barPast(ctx, []string{name}, now, by)
	if err == nil {
		b[name] = again[name]
	}
	return err
}

// pastKeys are the past keys of each of names, and notes the records' revisions. All is read from one state.
func (h *Head) pastKeys(ctx context.Context, names []string, at barredAt) (map[string][]string, error) {
	view, err := h.store.View(ctx)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	past := map[string][]string{}
	current := map[string]bool{}
	for _, name := range names {
		item, err := view.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		s, err := parse[slot](item)
		if err != nil {
			return nil, err
		}
		past[name], at[name] = nil, item.Revision
		for _, c := range []*issued{s.Cert, s.Old} {
			if c != nil {
				current[c.Key] = true
			}
		}
	}
	for item, err := range view.List(ctx, prefixKey) {
		if err != nil {
			return nil, err
		}
		name, key := string(item.Value), item.Key[len(prefixKey):]
		if _, asked := past[name]; asked && !current[key] {
			past[name] = append(past[name], key)
		}
	}
	return past, nil
}

// bar makes keys of a node useless for ever, and its no more.
func bar(node string, keys []string, now time.Time, by string) store.Tx {
	tx := store.Tx{Events: []store.Event{event(now, "bar", node, map[string]string{"keys": commas(keys), "by": by})}}
	for _, key := range keys {
		tx.Puts = append(tx.Puts, store.Put{Key: prefixBarred + key, Value: []byte(node)})
		tx.Deletes = append(tx.Deletes, prefixKey+key)
	}
	return tx
}

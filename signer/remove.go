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
	keys, err := h.pastKeys(ctx, names)
	if err != nil {
		return nil, err
	}
	now, by := h.now(), byWhom(ctx)
	// Keys of long ago first: there may be more of them than one transaction takes.
	for _, name := range names {
		for chunk := range slices.Chunk(keys[name], perTx/2) {
			if err := h.store.Commit(ctx, bar(name, chunk, now, by)); err != nil {
				return nil, err
			}
		}
	}
	done, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		s, err := parse[slot](item)
		if err != nil {
			return edit{}, err
		}
		return s.remove(now, by), nil
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

// pastKeys are the keys that were bound to each of names, and are no more in a certificate of theirs that lives.
func (h *Head) pastKeys(ctx context.Context, names []string) (map[string][]string, error) {
	past := map[string][]string{}
	current := map[string]bool{}
	for _, name := range names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		s, err := parse[slot](item)
		if err != nil {
			return nil, err
		}
		past[name] = nil
		for _, c := range []*issued{s.Cert, s.Old} {
			if c != nil {
				current[c.Key] = true
			}
		}
	}
	for item, err := range h.store.List(ctx, prefixKey) {
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

package signer

import (
	"context"
	"errors"

	"muster/signer/store"
)

// What became of names, TPMs and keys since a backup is told by the store that it replaces, and by nothing else: a
// CRL has serial numbers alone.

// addBarred notes the keys that are barred. One whose record cannot be read is barred all the same.
func (seen *evidence) addBarred(ctx context.Context, current store.Reader) {
	for item, err := range current.List(ctx, prefixBarred) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return
		}
		if len(item.Key) > len(prefixBarred) {
			seen.barred[item.Key] = item.Value
		}
	}
}

// carried is what a slot takes over from the store that is replaced.
type carried struct {
	changed bool
	freed   string // EK of a board that was changed since: it is the name's no more
}

// carry closes s where the same name is closed now, c. What was opened since stays as it was.
func (s *slot) carry(c *slot) (did carried) {
	if c.Revoked && !s.Revoked {
		s.Revoked, s.Grant, s.Pending, did.changed = true, nil, nil, true
	}
	if c.Disabled && !s.Disabled {
		s.Disabled, s.Pending, did.changed = true, nil, true
	}
	// A name without a TPM may also be that of a store which was restored from before it had one.
	if s.EK != "" && s.EK != c.EK && (c.EK != "" || len(c.Replaced) > 0) {
		did.freed, did.changed = s.EK, true
		s.take("", false)
		s.Cert, s.Old, s.MAC, s.UUID, s.Acked = nil, nil, nil, "", ""
	}
	if len(c.Replaced) > 0 {
		s.Replaced, did.changed = c.Replaced, true
	}
	return did
}

// carrySlot is carry, with the records that lead to a board which was changed.
func (r *Restored) carrySlot(b *batch, s *slot, current store.Reader) (changed bool, err error) {
	if current == nil {
		return false, nil
	}
	item, err := current.Get(b.ctx, prefixSlot+s.Node)
	if err == nil && item.Revision == 0 {
		return false, nil // removed since, or made after a restore: certificates and keys say so
	}
	var c *slot
	if err == nil {
		c, err = parse[slot](item)
	}
	if err != nil {
		r.Unread = append(r.Unread, s.Node)
		return false, nil
	}
	mac, uuid := s.MAC, s.UUID
	did := s.carry(c)
	if did.freed == "" {
		return did.changed, nil
	}
	r.freed[s.Node] = true
	gone := []string{prefixEK + did.freed}
	for _, m := range mac {
		gone = append(gone, prefixMAC+m)
	}
	if uuid != "" {
		gone = append(gone, prefixUUID+uuid)
	}
	for _, key := range gone {
		if err := b.dropOf(key, s.Node); err != nil {
			return true, err
		}
	}
	return true, nil
}

// addRevoked closes the names that the backup does not know and that were revoked since, with their TPMs.
func (r *Restored) addRevoked(b *batch, current store.Reader) error {
	if current == nil {
		return nil
	}
	if err := b.flush(); err != nil {
		return err
	}
	for item, err := range current.List(b.ctx, prefixSlot) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return nil // it is read as far as it can be
		}
		c, err := parse[slot](item)
		if err != nil || !c.Revoked {
			continue
		}
		have, err := b.st.Get(b.ctx, item.Key)
		if err != nil || have.Revision != 0 {
			continue
		}
		s := slot{Node: c.Node, Host: c.Host, Revoked: true, Replaced: c.Replaced}
		if owner, err := b.st.Get(b.ctx, prefixEK+c.EK); c.EK != "" && err == nil && owner.Revision == 0 {
			s.EK, s.Pinned = c.EK, c.Pinned
			if err := b.put(store.Put{Key: prefixEK + c.EK, Value: []byte(c.Node)}); err != nil {
				return err
			}
		}
		if err := b.put(put(item.Key, s)); err != nil {
			return err
		}
	}
	return nil
}

// dropKeys takes the keys of changed boards from their names.
func (r *Restored) dropKeys(b *batch) error {
	if len(r.freed) == 0 {
		return nil
	}
	for item, err := range b.st.List(b.ctx, prefixKey) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err == nil && r.freed[string(item.Value)] {
			if err := b.drop(item.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropOf removes a record that leads to node.
func (b *batch) dropOf(key, node string) error {
	item, err := b.st.Get(b.ctx, key)
	if errors.Is(err, store.ErrDamaged) {
		return nil
	}
	if err != nil || string(item.Value) != node {
		return err
	}
	return b.drop(key)
}

package signer

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"muster/signer/store"
)

// failing is a store that fails, or lets something happen, at one place.
type failing struct {
	store.Store
	before  func(store.Tx) error
	after   func(store.Tx)
	damaged string // key
}

// failing opens the head anew over such a store.
func (s *site) failing() *failing {
	f := &failing{}
	s.wrap = func(st store.Store) store.Store { f.Store = st; return f }
	s.open()
	return f
}

func (f *failing) Commit(ctx context.Context, tx store.Tx) error {
	if f.before != nil {
		if err := f.before(tx); err != nil {
			return err
		}
	}
	err := f.Store.Commit(ctx, tx)
	if err == nil && f.after != nil {
		f.after(tx)
	}
	return err
}

func (f *failing) Get(ctx context.Context, key string) (store.Item, error) {
	if key == f.damaged {
		return store.Item{Key: key}, fmt.Errorf("%s: %w", key, store.ErrDamaged)
	}
	return f.Store.Get(ctx, key)
}

func (f *failing) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	return func(yield func(store.Item, error) bool) {
		for item, err := range f.Store.List(ctx, prefix) {
			if item.Key == f.damaged {
				item, err = store.Item{Key: item.Key}, fmt.Errorf("%s: %w", item.Key, store.ErrDamaged)
			}
			if !yield(item, err) {
				return
			}
		}
	}
}

// puts says whether a transaction writes below prefix.
func puts(tx store.Tx, prefix string) bool {
	for _, p := range tx.Puts {
		if strings.HasPrefix(p.Key, prefix) {
			return true
		}
	}
	return false
}

// listings is a store that counts them.
type listings struct {
	store.Store
	n int
}

func (c *listings) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	c.n++
	return c.Store.List(ctx, prefix)
}

package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"

	"go.etcd.io/bbolt"

	"muster/signer/store"
)

// View implements [store.Store].
func (s *Store) View(ctx context.Context) (store.View, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	snap := s.snapshot.acquire()
	if snap == nil {
		return nil, store.ErrClosed
	}
	return &view{snap, sync.OnceFunc(func() { s.snapshot.release(snap) })}, nil
}

// view is a snapshot in use.
type view struct {
	*snapshot
	release func()
}

// Close implements [store.View].
func (v *view) Close() { v.release() }

// Get implements [store.Reader].
func (s *Store) Get(ctx context.Context, key string) (store.Item, error) {
	v, err := s.View(ctx)
	if err != nil {
		return store.Item{}, err
	}
	defer v.Close()
	return v.Get(ctx, key)
}

// Get implements [store.Reader].
func (v *view) Get(ctx context.Context, key string) (store.Item, error) {
	if err := ctx.Err(); err != nil {
		return store.Item{}, err
	}
	item, err := lookup(v.tx, key)
	if err != nil {
		if found, ok := rescue(v.tx, key); ok {
			return found, nil
		}
	}
	return item, err
}

// lookup reads one record of the state, its value copied.
func lookup(tx *bbolt.Tx, key string) (item store.Item, err error) {
	defer guard(&err, key)()
	c := tx.Bucket([]byte(stateBucket)).Cursor()
	k, record := c.Seek([]byte(key))
	if string(k) != key {
		return store.Item{Key: key}, checkAbsent(c, []byte(key))
	}
	value, revision, err := unframe(stateBucket, k, record)
	if err != nil {
		return store.Item{}, err
	}
	return store.Item{Key: key, Value: bytes.Clone(value), Revision: revision}, nil
}

// guard turns what a damaged page makes of bbolt, a panic or a touch of memory that is not there,
// into ErrDamaged for key.
func guard(err *error, key string) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = damaged([]byte(key), p)
		}
	}
}

// absenceWindow is more than the number of records of a page, absenceCheck that of records whose
// checksums decide.
const (
	absenceWindow = 128
	absenceCheck  = 2
)

// checkAbsent is told that key is not there, and looks whether damage may be why. A record whose key
// was damaged still stands next to where it belongs, and fails its checksum; a page that was put in
// the place of another breaks the order of keys at one of its ends. Absence matters as much as a
// value: it is what allows a record to be made.
//
// The limit: a damaged element count in a page's header, or page number in a branch page, can hide the records at
// a page's end, or a whole page, from Get and List. About one changed byte in five thousand does.
// Never does it give a wrong value; and a claim, whose guard names the revision of a record that is
// there, is then refused.
func checkAbsent(c *bbolt.Cursor, key []byte) error {
	landing, v := c.Seek(key)
	last := key
	for i, k := 0, landing; k != nil && i < absenceWindow; i++ {
		if err := checkNeighbour(i, k, v, bytes.Compare(last, k)); err != nil {
			return err
		}
		last = k
		k, v = c.Next()
	}
	c.Seek(key)
	k, v := c.Prev()
	if landing == nil {
		k, v = c.Last()
	}
	last = key
	for i := 0; k != nil && i < absenceWindow; i++ {
		if err := checkNeighbour(i, k, v, bytes.Compare(k, last)); err != nil {
			return err
		}
		last = k
		k, v = c.Prev()
	}
	return nil
}

// rescue looks one by one for a sound record where a damaged key has misled the search. It is for readers
// only: bbolt would write to where the search leads.
func rescue(tx *bbolt.Tx, key string) (item store.Item, ok bool) {
	var err error
	defer guard(&err, key)()
	c := tx.Bucket([]byte(stateBucket)).Cursor()
	for _, step := range []func() ([]byte, []byte){c.Next, c.Prev} {
		k, record := c.Seek([]byte(key))
		if k == nil {
			k, record = c.Last()
		}
		for i := 0; k != nil && i < absenceWindow; i++ {
			if string(k) == key {
				value, revision, err := unframe(stateBucket, k, record)
				return store.Item{Key: key, Value: bytes.Clone(value), Revision: revision}, err == nil
			}
			k, record = step()
		}
	}
	return store.Item{}, false
}

func checkNeighbour(i int, k, v []byte, order int) error {
	if order >= 0 {
		return damaged(k, "keys out of order")
	}
	if i >= absenceCheck {
		return nil
	}
	_, _, err := unframe(stateBucket, k, v)
	return err
}

// List implements [store.Reader].
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	return func(yield func(store.Item, error) bool) {
		v, err := s.View(ctx)
		if err != nil {
			yield(store.Item{}, err)
			return
		}
		defer v.Close()
		v.List(ctx, prefix)(yield)
	}
}

// List implements [store.Reader].
func (v *view) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	return func(yield func(store.Item, error) bool) {
		l := listing{tx: v.tx, prefix: []byte(prefix)}
		for {
			item, ok, err := l.next()
			if !ok {
				return
			}
			if ctx.Err() != nil {
				yield(store.Item{}, ctx.Err())
				return
			}
			if !yield(item, err) {
				return
			}
		}
	}
}

// listing walks the records with a prefix, and those beside them that are damaged, since a damaged key
// may have had the prefix.
type listing struct {
	tx     *bbolt.Tx
	c      *bbolt.Cursor // nil before the first step
	prefix []byte
	broken bool
	last   []byte // key of the last sound record
}

// next returns the next item or its damage; ok is false at the end.
func (l *listing) next() (item store.Item, ok bool, err error) {
	if l.broken {
		return store.Item{}, false, nil
	}
	defer func() { // a cursor that panicked has no next
		if err != nil && !ok {
			ok, l.broken = true, true
		}
	}()
	defer guard(&err, string(l.prefix))()
	for {
		k, record := l.step()
		if k == nil {
			return store.Item{}, false, nil
		}
		value, revision, err := unframe(stateBucket, k, record)
		if err == nil && bytes.Compare(k, l.last) <= 0 && l.last != nil {
			err = damaged(k, "keys out of order")
		}
		if err != nil {
			return store.Item{Key: string(k)}, true, err
		}
		l.last = bytes.Clone(k)
		if bytes.HasPrefix(k, l.prefix) {
			return store.Item{Key: string(k), Value: bytes.Clone(value), Revision: revision}, true, nil
		}
		if bytes.Compare(k, l.prefix) > 0 {
			return store.Item{}, false, nil
		}
	}
}

// step begins one record before the prefix.
func (l *listing) step() (k, record []byte) {
	if l.c != nil {
		return l.c.Next()
	}
	l.c = l.tx.Bucket([]byte(stateBucket)).Cursor()
	if k, _ := l.c.Seek(l.prefix); k == nil {
		return l.c.Last()
	}
	if k, record := l.c.Prev(); k != nil {
		return k, record
	}
	return l.c.First()
}

// Journal implements [store.Reader].
func (s *Store) Journal(ctx context.Context, from uint64) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		v, err := s.View(ctx)
		if err != nil {
			yield(store.Entry{}, err)
			return
		}
		defer v.Close()
		v.Journal(ctx, from)(yield)
	}
}

// Journal implements [store.Reader].
func (v *view) Journal(ctx context.Context, from uint64) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		chain := v.tail.chain
		for seq := max(from, 1); seq <= chain.Seq; seq++ {
			if ctx.Err() != nil {
				yield(store.Entry{}, ctx.Err())
				return
			}
			e, err := readEntry(v.tx, seq)
			if err == nil && seq == chain.Seq && e.Hash != chain.Hash {
				e, err = store.Entry{Seq: seq}, damaged(nil, "the journal's last entry is another one")
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Tail implements [store.Reader].
func (s *Store) Tail(ctx context.Context) (store.Chain, error) {
	v, err := s.View(ctx)
	if err != nil {
		return store.Chain{}, err
	}
	defer v.Close()
	return v.Tail(ctx)
}

// Tail implements [store.Reader].
func (v *view) Tail(context.Context) (store.Chain, error) { return v.tail.chain, nil }

func readEntry(tx *bbolt.Tx, seq uint64) (e store.Entry, err error) {
	name := fmt.Sprintf("journal %d", seq)
	defer func() {
		if err != nil {
			e = store.Entry{Seq: seq}
		}
	}()
	defer guard(&err, name)()
	key := entryKey(seq)
	value, _, err := unframe(journalBucket, key, tx.Bucket([]byte(journalBucket)).Get(key))
	if err != nil {
		return e, damaged([]byte(name), "checksum")
	}
	if e, err = store.ParseEntry(value); err != nil {
		return e, damaged([]byte(name), err)
	}
	return e, nil
}

func entryKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, seq)
}

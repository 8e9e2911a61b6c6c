// Package store is what a head remembers, behind an interface small enough for an embedded file
// (store/bolt) and for etcd. Its invariant: a [Tx] is applied whole, on exactly the state its guards
// name, together with its journal entries, and durably before [Store.Commit] returns nil.
//
// There are no locks to take: whoever needs "read, decide, write" reads, decides, and commits with
// a guard on each record the decision rests on.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"
)

// The errors a caller branches on. Each comes wrapped, with the key or path it is about.
var (
	// ErrConflict: a guard did not hold; nothing was written.
	ErrConflict = errors.New("changed meanwhile")
	// ErrDamaged: what the disk holds under a key is not what was written there. From Commit, a
	// guard's record is damaged, and nothing was written.
	ErrDamaged = errors.New("damaged record")
	// ErrInvalid: the Tx breaks a rule of [Tx.Check]; nothing was written.
	ErrInvalid = errors.New("invalid transaction")
	// ErrFull: no room on the disk; nothing was written. Commits work again once there is room.
	ErrFull = errors.New("no space for the store")
	// ErrFailed: an earlier commit failed in a way that cannot be made good by trying again (an I/O
	// error); nothing was written. Reads go on with what was durable before. Only a restart, after
	// the disk was looked at, ends this.
	ErrFailed = errors.New("store has failed")
	// ErrClosed: the store was closed; nothing was written.
	ErrClosed = errors.New("store is closed")

	// ErrAbsent: open found no store. Opening never creates one.
	ErrAbsent = errors.New("no store")
	// ErrExists: create found a file in its place. Creating never replaces one.
	ErrExists = errors.New("store exists already")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("store is in use by another process")
	// ErrNewer: the store was written by a newer program.
	ErrNewer = errors.New("store was written by a newer version of muster")
)

// Store is the durable state of a cluster's heads. All methods may be called concurrently.
type Store interface {
	Reader

	// View returns one state of the store, to be read at leisure. The caller closes it, soon: what
	// changes meanwhile is kept beside it.
	View(ctx context.Context) (View, error)

	// Commit applies tx, or nothing of it. It returns when tx is durable (nil), or refused: ErrConflict,
	// ErrDamaged, ErrInvalid, ErrFull, ErrFailed, ErrClosed, or ctx's error if ctx ended while tx was
	// still waiting. After any other error the outcome is unknown: read back what is there.
	Commit(ctx context.Context, tx Tx) error

	// Close waits for the commits under way, and refuses those still waiting with ErrClosed.
	Close() error
}

// Reader reads what is durable; each call from the newest state.
type Reader interface {
	// Get returns the item under key; the zero Revision if there is none. A damaged record is
	// ErrDamaged. What Get returns is durable.
	Get(ctx context.Context, key string) (Item, error)

	// List yields the items whose key begins with prefix, in key order, from one snapshot. A damaged
	// record yields an Item with its key alone (as far as it can be read) and ErrDamaged, and
	// the listing goes on; any other error ends it.
	List(ctx context.Context, prefix string) iter.Seq2[Item, error]

	// Journal yields the entries of this head's chain from sequence number from on (the first is
	// 1), in order. A damaged or missing entry yields an Entry with its number alone and ErrDamaged,
	// and the listing goes on.
	Journal(ctx context.Context, from uint64) iter.Seq2[Entry, error]

	// Tail returns the end of this head's chain: the newest entry's number and hash, zero before the first.
	Tail(ctx context.Context) (Chain, error)
}

// View is a Reader of which all calls read the same state.
type View interface {
	Reader
	Close()
}

// Item is a stored value and the revision at which it was last written. Revisions grow with each
// commit and are never used again, not even after a delete; 0 means that the key is absent.
type Item struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Put sets a key's value, whatever it was before; a [Guard] says what it must have been.
type Put struct {
	Key   string
	Value []byte
}

// Guard is a condition of a Tx: the key stands at this revision, or is absent if that is 0.
type Guard struct {
	Key      string
	Revision uint64
}

// Guard returns the condition that the item is still as it was read.
func (i Item) Guard() Guard { return Guard{i.Key, i.Revision} }

// Tx is one atomic change. All guards are checked before anything is written; a Tx of guards alone
// checks them. Deleting an absent key is no error.
type Tx struct {
	Guards  []Guard
	Puts    []Put
	Deletes []string
	Events  []Event
}

// Event is one line of the journal, as its author sees it; the store makes it an [Entry].
type Event struct {
	Time   time.Time         `json:"time"`
	Kind   string            `json:"kind"`
	Node   string            `json:"node,omitempty"`
	Fields map[string]string `json:"fields,omitempty"`
}

// Limits of one Tx, chosen so that it fits an etcd request (1.5 MiB, 128 operations).
const (
	MaxKey = 1 << 10 // bytes of a key
	MaxTx  = 1 << 20 // bytes of all keys, values and events
	MaxOps = 128 - 2 // guards and writes each; the journal's tail and entry take two
)

// Check returns ErrInvalid unless every key is UTF-8 of 1 to MaxKey bytes, none is written twice,
// every event has a kind, and the whole is within the limits. Every store calls it in Commit.
func (tx Tx) Check() error {
	if len(tx.Guards) > MaxOps || len(tx.Puts)+len(tx.Deletes)+len(tx.Events) > MaxOps {
		return fmt.Errorf("%w: more than %d guards or writes", ErrInvalid, MaxOps)
	}
	for _, g := range tx.Guards {
		if err := checkKey(g.Key); err != nil {
			return err
		}
	}
	written := make(map[string]bool, len(tx.Puts)+len(tx.Deletes))
	write := func(key string) error {
		if written[key] {
			return fmt.Errorf("%w: key %q is written twice", ErrInvalid, key)
		}
		written[key] = true
		return checkKey(key)
	}
	for _, p := range tx.Puts {
		if err := write(p.Key); err != nil {
			return err
		}
	}
	for _, key := range tx.Deletes {
		if err := write(key); err != nil {
			return err
		}
	}
	for _, e := range tx.Events {
		if e.Kind == "" {
			return fmt.Errorf("%w: event without a kind", ErrInvalid)
		}
	}
	if size := tx.Size(); size > MaxTx {
		return fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, size, MaxTx)
	}
	return nil
}

// Size is the number of bytes of all keys, values and events to be written.
func (tx Tx) Size() int {
	size := 0
	for _, p := range tx.Puts {
		size += len(p.Key) + len(p.Value)
	}
	for _, key := range tx.Deletes {
		size += len(key)
	}
	for _, e := range tx.Events {
		size += e.size()
	}
	return size
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKey || !utf8.ValidString(key) {
		return fmt.Errorf("%w: key %.40q", ErrInvalid, key)
	}
	return nil
}

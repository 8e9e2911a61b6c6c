package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// Under load a group waits for more, as long as they keep coming. In a live server requests come one by
// one, about as far apart as a sync takes: who does not wait commits each of them alone. The wait costs no
// throughput, since those that do not wait yet have the CPU.
const (
	commitGap  = 3 * time.Millisecond  // nobody came for so long: go
	commitWait = 40 * time.Millisecond // the first one has waited for so long: go
	fullGroup  = 64                    // so many share the syncs already: go
	maxGroup   = 1024                  // of those that wait anyway
	underLoad  = 8                     // after so many groups of one, commits come alone again
)

// request is a Commit on its way. The caller may withdraw it (state queued → withdrawn) until
// the writer has taken it (queued → taken); from then on only the outcome counts.
type request struct {
	tx    store.Tx
	state atomic.Int32
	err   error
	done  chan struct{}
}

const (
	queued int32 = iota
	taken
	withdrawn
)

func (r *request) take() bool     { return r.state.CompareAndSwap(queued, taken) }
func (r *request) withdraw() bool { return r.state.CompareAndSwap(queued, withdrawn) }

func (r *request) answer(err error) {
	r.err = err
	close(r.done)
}

// committer is the one goroutine that writes. All its fields but the channels are its own.
type committer struct {
	queue   chan *request
	quit    chan struct{} // closed by stop
	stopped chan struct{} // closed when the writer is gone
	closing atomic.Bool

	store  *Store
	load   int   // groups until commits are taken to come alone
	failed error // why there are no more commits
	wedged bool  // bbolt panicked and holds its lock
	space  space
	stats  counters
}

func (c *committer) start(s *Store) {
	c.store = s
	c.queue = make(chan *request, maxGroup)
	c.quit = make(chan struct{})
	c.stopped = make(chan struct{})
	go c.run()
}

func (c *committer) stop() {
	if c.closing.CompareAndSwap(false, true) {
		close(c.quit)
	}
	<-c.stopped
}

// Commit implements [store.Store].
func (s *Store) Commit(ctx context.Context, tx store.Tx) error {
	if err := tx.Check(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{tx: tx, done: make(chan struct{})}
	c := &s.commits
	select {
	case c.queue <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stopped:
		return store.ErrClosed
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		if r.withdraw() {
			return ctx.Err()
		}
	case <-c.stopped:
		if r.withdraw() {
			return store.ErrClosed
		}
	}
	<-r.done
	return r.err
}

func (c *committer) run() {
	defer close(c.stopped)
	debug.SetPanicOnFault(true) // see guard; this goroutine is ours
	for {
		group := c.collect()
		if group == nil {
			return
		}
		c.commit(group)
	}
}

// collect waits for a request and takes those that wait with it, and under load those that come soon.
// nil: the store is closing.
func (c *committer) collect() []*request {
	var group []*request
	for len(group) == 0 {
		select {
		case r := <-c.queue:
			group = c.drain(r, group)
		case <-c.quit:
			return nil
		}
	}
	if len(group) > 1 {
		c.load = underLoad
	}
	if c.load == 0 {
		return group
	}
	for deadline := time.Now().Add(commitWait); len(group) < fullGroup; {
		select {
		case r := <-c.queue:
			group = c.drain(r, group)
			continue
		case <-time.After(min(commitGap, time.Until(deadline))):
		case <-c.quit:
		}
		break
	}
	if len(group) == 1 {
		c.load--
	}
	return group
}

// drain takes r and those that wait behind it, but for those withdrawn.
func (c *committer) drain(r *request, group []*request) []*request {
	for {
		if r.take() {
			group = append(group, r)
		}
		if len(c.queue) == 0 || len(group) >= maxGroup {
			return group
		}
		r = <-c.queue
	}
}

// commit applies a group in one bbolt transaction and answers each of its requests.
func (c *committer) commit(group []*request) {
	if c.failed != nil {
		answerAll(group, fmt.Errorf("%w: %v", store.ErrFailed, c.failed))
		return
	}
	if err := c.reserve(group); err != nil {
		answerAll(group, err)
		return
	}
	tx, err := c.store.db.Begin(true)
	if err != nil {
		answerAll(group, c.fail(err))
		return
	}
	errs, next, err := c.applyAll(tx, group)
	switch {
	case errors.Is(err, store.ErrDamaged) && len(group) > 1: // one of them met a damaged page
		tx.Rollback()
		for _, r := range group {
			c.commit([]*request{r})
		}
		return
	case errors.Is(err, store.ErrDamaged):
		tx.Rollback()
		answerAll(group, err)
		return
	case err != nil:
		tx.Rollback()
		answerAll(group, c.fail(err))
		return
	case next == c.store.snapshot.current.tail: // all were refused, or asked for nothing
		tx.Rollback()
	default:
		if err := c.finish(tx, next); err != nil {
			answerAll(group, err)
			return
		}
	}
	for i, r := range group {
		if errs[i] == nil {
			c.stats.commits.Add(1)
		}
		r.answer(errs[i])
	}
}

func answerAll(group []*request, err error) {
	for _, r := range group {
		r.answer(err)
	}
}

// fail ends all commits. It returns the cause, for those whose outcome it leaves unknown.
func (c *committer) fail(cause error) error {
	c.failed = cause
	return fmt.Errorf("commit: %v", cause)
}

// applyAll returns what became of each request and the tail after them. Its error is about all of them.
func (c *committer) applyAll(tx *bbolt.Tx, group []*request) (errs []error, next tail, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged(nil, p)
		}
	}()
	before := c.store.snapshot.current.tail
	next, err = readTail(tx)
	if err != nil {
		return nil, next, err
	}
	if next != before {
		return nil, next, errors.New("another process has written to the store")
	}
	for _, r := range group {
		refused, err := apply(tx, &next, r.tx)
		if err != nil {
			return nil, next, err
		}
		errs = append(errs, refused)
	}
	if next != before {
		err = next.put(tx)
	}
	return errs, next, err
}

// apply checks a Tx's guards against the state with the earlier ones of the group, and applies it. A
// refusal leaves tx and t as they were.
func apply(tx *bbolt.Tx, t *tail, change store.Tx) (refused, err error) {
	for _, g := range change.Guards {
		item, err := lookup(tx, g.Key)
		if err != nil {
			return err, nil
		}
		if item.Revision != g.Revision {
			return fmt.Errorf("%w: key %q is at revision %d, not %d", store.ErrConflict, g.Key, item.Revision, g.Revision), nil
		}
	}
	if len(change.Puts)+len(change.Deletes)+len(change.Events) == 0 {
		return nil, nil
	}
	t.revision++
	state := tx.Bucket([]byte(stateBucket))
	for _, p := range change.Puts {
		key := []byte(p.Key)
		if err := state.Put(key, frame(stateBucket, key, t.revision, p.Value)); err != nil {
			return nil, err
		}
	}
	for _, key := range change.Deletes {
		if err := state.Delete([]byte(key)); err != nil {
			return nil, err
		}
	}
	journal := tx.Bucket([]byte(journalBucket))
	journal.FillPercent = 1 // only ever appended to
	for _, ev := range change.Events {
		e := t.chain.Append(ev)
		key := entryKey(e.Seq)
		if err := journal.Put(key, frame(journalBucket, key, t.revision, e.Marshal())); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// finish makes the transaction durable and then visible.
//
// What an error means depends on where it comes from. A write that the disk refused for lack of room
// (*fs.PathError; bbolt returns those of fdatasync bare) has changed nothing that a valid meta page
// leads to: bbolt has rolled back, and the next commit starts from the same state. After
// anything else, a failed sync above all, the kernel may have marked pages clean that never
// reached the disk, ENOSPC of a delayed allocation included; no second sync would tell. So the store takes no
// more commits, and readers keep the last snapshot that is certain.
func (c *committer) finish(tx *bbolt.Tx, next tail) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.wedged = true
			err = c.fail(fmt.Errorf("bbolt: %v", p))
		}
	}()
	if err := tx.Commit(); err != nil {
		if isFull(err) {
			return fmt.Errorf("%w: %v", store.ErrFull, err)
		}
		return c.fail(err)
	}
	c.stats.groups.Add(1)
	read, err := c.store.db.Begin(false)
	if err != nil {
		return c.fail(err)
	}
	c.store.snapshot.advance(&snapshot{tx: read, tail: next})
	return nil
}

func isFull(err error) bool {
	var write *fs.PathError
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		return true
	}
	return errors.As(err, &write) && (errors.Is(write.Err, unix.ENOSPC) || errors.Is(write.Err, unix.EDQUOT))
}

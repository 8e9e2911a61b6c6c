// Package bolt keeps a [store.Store] in one file of the embedded database bbolt. Its invariant:
// nobody is told of a state before it is on the disk, neither by Commit nor by a read, and nobody is
// given a record that is not the one written.
//
// The file holds three buckets: "state" (key → record), "journal" (sequence number, 8 bytes
// big-endian → record) and "meta": the record "store" (schema, store id, head) and the record "tail" (last
// revision, end of the journal), which is rewritten by every transaction.
//
// Reads come from a snapshot that is moved on only when a commit's last sync has returned (bbolt's own
// View shows a transaction before that). It is a read transaction that is always open, and bbolt cannot
// enlarge its memory map while one is; so the map has its final size from the start: 16 GiB of
// address space, not of memory.
package bolt

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// Schema is the version of the layout that this program reads and writes. An older one is made this
// one when it is opened: see upgrade.
const Schema = 2

const (
	stateBucket   = "state"
	journalBucket = "journal"
	metaBucket    = "meta"
	identityKey   = "store"
	tailKey       = "tail"
)

// pageSize is not the machine's, so that a file can move: and the two meta pages, one of which must
// survive a torn write of the other, never share a disk's 4 KiB sector.
const pageSize = 4096

// mapSize is the largest file: 16 GiB, five million enrolments; 1 GiB where an int has 32 bits.
const mapSize = 1 << (30 + 4*(strconv.IntSize/64))

// Store is an open file. Make one with [Open].
type Store struct {
	identity identity
	db       *bbolt.DB
	file     *os.File // bbolt's own
	snapshot snapshots
	commits  committer
}

var _ store.Store = (*Store)(nil)

// Open opens the store at path, waiting up to wait for another process to let go of it. It never
// creates one. Errors: ErrAbsent, ErrLocked, ErrNewer, ErrDamaged.
func Open(path string, wait time.Duration) (*Store, error) {
	s, err := open(path, wait)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	return s, nil
}

func open(path string, wait time.Duration) (_ *Store, err error) {
	s := &Store{}
	// bbolt takes pages at their word: a damaged file makes it panic, or touch memory beyond the file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", store.ErrDamaged, p)
		}
		if err != nil && s.file != nil {
			// Where bbolt panicked it has left its map, which keeps the lock beyond the file's close. Where
			// it has closed the file itself, both calls fail, and do no harm.
			unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
			s.file.Close()
		}
	}()
	s.db, err = bbolt.Open(path, 0o600, options(wait, s.openFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, store.ErrAbsent
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, store.ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("%w: %v", store.ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	err = s.stillAt(path)
	if err == nil {
		err = s.upgrade()
	}
	if err == nil {
		err = s.start()
	}
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

// stillAt finds out whether the file that we waited for was replaced meanwhile, by a restore say.
func (s *Store) stillAt(path string) error {
	mine, err := s.file.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(mine, there) {
		return fmt.Errorf("%w, which has replaced it", store.ErrLocked)
	}
	return nil
}

// options are for reading what Create wrote, hence the same for both. The free list is kept on
// disk: one page more per commit, against a scan of all pages at each start, which moreover would
// refuse the whole file for one damaged page.
func options(wait time.Duration, openFile func(string, int, fs.FileMode) (*os.File, error)) *bbolt.Options {
	return &bbolt.Options{
		Timeout:         max(wait, time.Millisecond), // bbolt takes 0 for ever
		FreelistType:    bbolt.FreelistMapType,
		PageSize:        pageSize,
		InitialMmapSize: mapSize,
		MaxSize:         mapSize,
		OpenFile:        openFile,
	}
}

// openFile opens for bbolt what exists already, and makes sure that what we shall read is on the disk:
// a process killed between write and sync leaves pages that only the cache has (fdatasync), and
// one that saw a sync fail leaves pages that the cache takes for written (dropped, so that
// they are read again).
func (s *Store) openFile(path string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag&^os.O_CREATE, mode)
	if err != nil {
		return nil, err
	}
	s.file = f
	info, err := f.Stat()
	if err == nil && info.Size() < 4*pageSize {
		err = fmt.Errorf("%w: the file has only %d bytes", store.ErrDamaged, info.Size())
	}
	if err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// start reads the meta records and sets the writer going.
func (s *Store) start() error {
	tx, err := s.db.Begin(false)
	if err != nil {
		return err
	}
	t, err := s.readMeta(tx)
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	s.snapshot.advance(&snapshot{tx: tx, tail: t})
	s.commits.start(s)
	return nil
}

func (s *Store) readMeta(tx *bbolt.Tx) (tail, error) {
	info, err := s.file.Stat()
	if err != nil {
		return tail{}, err
	}
	if info.Size() < tx.Size() {
		return tail{}, fmt.Errorf("%w: the file has %d bytes, not %d", store.ErrDamaged, info.Size(), tx.Size())
	}
	for _, name := range []string{stateBucket, journalBucket, metaBucket} {
		if tx.Bucket([]byte(name)) == nil {
			return tail{}, fmt.Errorf("%w: no bucket %q", store.ErrDamaged, name)
		}
	}
	if s.identity, err = readIdentity(tx); err != nil {
		return tail{}, err
	}
	return readTail(tx)
}

// ID is a random number, in hex, given to the store when it was created: two stores with the same
// one are copies.
func (s *Store) ID() string { return hex.EncodeToString(s.identity.id[:]) }

// Head is the head whose journal this store holds.
func (s *Store) Head() string { return s.identity.head }

// Close implements [store.Store].
func (s *Store) Close() error {
	s.commits.stop()
	if s.commits.wedged {
		return nil // bbolt's writer lock is held for ever; the process's end frees the rest
	}
	s.snapshot.advance(nil)
	return s.db.Close() // waits for the readers of older snapshots
}

// identity is the record "store".
type identity struct {
	schema uint32
	id     [16]byte
	head   string
}

func newIdentity(schema uint32, head string) identity {
	i := identity{schema: schema, head: head}
	rand.Read(i.id[:])
	return i
}

func (i identity) put(tx *bbolt.Tx) error {
	value := binary.BigEndian.AppendUint32(nil, i.schema)
	value = append(append(value, i.id[:]...), i.head...)
	return tx.Bucket([]byte(metaBucket)).Put([]byte(identityKey), frame(metaBucket, []byte(identityKey), 1, value))
}

// readIdentity looks at the schema before anything that a newer one may have changed.
func readIdentity(tx *bbolt.Tx) (identity, error) {
	record := tx.Bucket([]byte(metaBucket)).Get([]byte(identityKey))
	value, _, err := unframe(metaBucket, []byte(identityKey), record)
	if err != nil {
		return identity{}, err
	}
	if len(value) < 4 {
		return identity{}, damaged([]byte(identityKey), "too short")
	}
	i := identity{schema: binary.BigEndian.Uint32(value)}
	if i.schema > Schema {
		return identity{}, fmt.Errorf("%w: schema %d, this program knows %d", store.ErrNewer, i.schema, Schema)
	}
	if i.schema == 0 || len(value) < 20 {
		return identity{}, damaged([]byte(identityKey), "too short")
	}
	copy(i.id[:], value[4:])
	i.head = string(value[20:])
	return i, nil
}

// tail is the record "tail". The revision is the last one given to a Tx.
type tail struct {
	revision uint64
	chain    store.Chain // its Head is not stored
}

func (t tail) put(tx *bbolt.Tx) error {
	return tx.Bucket([]byte(metaBucket)).Put([]byte(tailKey), frame(metaBucket, []byte(tailKey), t.revision+1, t.marshal()))
}

func (t tail) marshal() []byte {
	value := binary.BigEndian.AppendUint64(nil, t.revision)
	value = binary.BigEndian.AppendUint64(value, t.chain.Seq)
	return append(value, t.chain.Hash[:]...)
}

func readTail(tx *bbolt.Tx) (tail, error) {
	id, err := readIdentity(tx)
	if err != nil {
		return tail{}, err
	}
	value, _, err := unframe(metaBucket, []byte(tailKey), tx.Bucket([]byte(metaBucket)).Get([]byte(tailKey)))
	if err != nil {
		return tail{}, err
	}
	t := tail{chain: store.Chain{Head: id.head}}
	if len(value) != 16+len(t.chain.Hash) {
		return tail{}, damaged([]byte(tailKey), "wrong length")
	}
	t.revision = binary.BigEndian.Uint64(value)
	t.chain.Seq = binary.BigEndian.Uint64(value[8:])
	copy(t.chain.Hash[:], bytes.Clone(value[16:]))
	return t, nil
}

// snapshot is the state after a durable commit. It is shared by all readers, which bbolt allows as
// long as none of them ends the transaction while another uses it.
type snapshot struct {
	tx   *bbolt.Tx
	tail tail
	refs int // readers, and one while it is the current one
}

// snapshots hands out the current snapshot.
type snapshots struct {
	mu      sync.Mutex
	current *snapshot // nil once closed
}

// acquire returns the current snapshot, or nil; release must follow.
func (s *snapshots) acquire() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.refs++
	}
	return s.current
}

func (s *snapshots) release(snap *snapshot) {
	s.mu.Lock()
	snap.refs--
	last := snap.refs == 0
	s.mu.Unlock()
	if last {
		snap.tx.Rollback()
	}
}

// advance replaces the current snapshot.
func (s *snapshots) advance(next *snapshot) {
	s.mu.Lock()
	old := s.current
	if next != nil {
		next.refs = 1
	}
	s.current = next
	s.mu.Unlock()
	if old != nil {
		s.release(old)
	}
}

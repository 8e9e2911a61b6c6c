package signer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"muster/internal/durable"
	"muster/internal/journal"
	"muster/internal/wire"
	"muster/signer/store"
)

// The witness tells, outside the store, how far the store had come, so that an older copy of it that is put
// back is noticed (I9). It has two slots, each a line: a mark in JSON, a blank, and its HMAC in hex under
// a key that is in no store and no backup.
//
// A mark is written after its commit is durable and before anybody is told of that: it may lag behind the
// store, and never leads. It is written without a sync, which the second after makes up for: a copy that is
// put back while the machine runs is always noticed, and after a power cut one that is older than the last
// second. Between two syncs one slot alone is written to, so that a power cut leaves the other.
const (
	witnessFile    = "ca/witness"
	witnessKeyFile = "ca/witness.key"
	witnessSlot    = 4096 // bytes from one slot to the next
	witnessSync    = time.Second
)

// mark is how far a store had come. Epoch grows with each restore; Hash is that of the journal's entry Seq.
type mark struct {
	Schema string       `json:"schema"`
	Epoch  uint64       `json:"epoch"`
	Seq    uint64       `json:"seq"`
	Hash   store.Digest `json:"hash"`
	CRL    crlRecord    `json:"crl"`
}

const markSchema = "muster.witness/v1"

// after says that m is of a later moment than o.
func (m mark) after(o mark) bool {
	if m.Epoch != o.Epoch {
		return m.Epoch > o.Epoch
	}
	return m.Seq > o.Seq || m.Seq == o.Seq && m.CRL.Number > o.CRL.Number
}

// generation is the record of the store's epoch: how often it was restored, from 1 on. A store
// without one is of a release that had no witness.
type generation struct {
	Epoch uint64 `json:"epoch"`
}

func readGeneration(ctx context.Context, st store.Reader) (generation, error) {
	item, err := st.Get(ctx, keyEpoch)
	if err != nil || item.Revision == 0 {
		return generation{}, err
	}
	g, err := parse[generation](item)
	if err != nil {
		return generation{}, err
	}
	return *g, nil
}

var (
	errNoWitness     = errors.New("there is no " + witnessFile)
	errFalseWitness  = errors.New(witnessFile + " is not what was written there")
	errWitnessFailed = errors.New("the witness cannot be written")
	errWitnessGone   = errors.New(witnessFile + " was taken away, or another is in its place")
)

// witnessBook writes the witness of one head. It holds the file open, so that strangers who take all descriptors
// stop no signature.
type witnessBook struct {
	path string
	key  []byte

	mu    sync.Mutex
	file  *os.File
	id    fs.FileInfo // which file that is
	last  mark        // to be written, or written
	slot  int64       // the one that is written to; what the other holds is on the disk
	dirty bool
	err   error // why last is not written. All but errWitnessGone is tried again by the second
}

// openWitness reads the witness of a state directory: errNoWitness, errFalseWitness. What it has read is durable.
func openWitness(dir string) (*witnessBook, error) {
	b := &witnessBook{path: filepath.Join(dir, witnessFile)}
	var err error
	if b.key, err = os.ReadFile(filepath.Join(dir, witnessKeyFile)); err != nil {
		return nil, absence(err)
	}
	if err := b.open(); err != nil {
		return nil, absence(err)
	}
	whole := make([]byte, 2*witnessSlot)
	n, err := b.file.ReadAt(whole, 0)
	if err == nil || errors.Is(err, io.EOF) {
		err = unix.Fdatasync(int(b.file.Fd()))
	}
	found := false
	for slot := range int64(2) {
		if m, err := b.parse(whole[:n], slot); err == nil && (!found || m.after(b.last)) {
			b.last, b.slot, found = m, 1-slot, true
		}
	}
	if err == nil && !found {
		err = errFalseWitness
	}
	if err != nil {
		b.file.Close()
		return nil, err
	}
	return b, nil
}

// open takes the file that lies there for the one to write.
func (b *witnessBook) open() (err error) {
	if b.file, err = os.OpenFile(b.path, os.O_RDWR, 0); err != nil {
		return err
	}
	if b.id, err = b.file.Stat(); err != nil {
		b.file.Close()
	}
	return err
}

func absence(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errNoWitness
	}
	return err
}

// writeWitness replaces the witness, durably, and makes its key where there is none.
func writeWitness(dir string, m mark) (*witnessBook, error) {
	b := &witnessBook{path: filepath.Join(dir, witnessFile), last: m}
	b.last.Schema = markSchema
	keyPath := filepath.Join(dir, witnessKeyFile)
	var err error
	if b.key, err = os.ReadFile(keyPath); errors.Is(err, fs.ErrNotExist) {
		b.key = make([]byte, sha256.Size)
		rand.Read(b.key)
		err = durable.WriteFile(keyPath, b.key, 0o600)
	}
	if err != nil {
		return nil, err
	}
	if err := b.replace(); err != nil {
		return nil, err
	}
	return b, nil
}

// replace makes a whole new file with last in it: after a failed write or sync, nobody knows what the old one holds.
func (b *witnessBook) replace() error {
	whole := bytes.Repeat([]byte("\n"), 2*witnessSlot)
	copy(whole, b.line(b.last))
	err := durable.WriteFile(b.path, whole, 0o600)
	// Also where that failed: it may have got as far as the new file's name.
	if id, lost := os.Stat(b.path); lost == nil {
		b.id = id
	}
	if err != nil {
		return err
	}
	b.file.Close() // nil at first, which it takes
	if err := b.open(); err != nil {
		return err
	}
	b.slot, b.dirty = 1, false
	return nil
}

func (b *witnessBook) line(m mark) []byte {
	text, err := json.Marshal(m)
	if err != nil {
		panic("signer: " + err.Error())
	}
	return fmt.Appendf(nil, "%s %x\n", text, b.mac(text))
}

func (b *witnessBook) mac(text []byte) []byte {
	h := hmac.New(sha256.New, b.key)
	h.Write(text)
	return h.Sum(nil)
}

func (b *witnessBook) parse(whole []byte, slot int64) (m mark, err error) {
	whole = whole[min(slot*witnessSlot, int64(len(whole))):]
	line, _, _ := bytes.Cut(whole, []byte("\n"))
	text, sum, _ := bytes.Cut(line, []byte(" "))
	got, err := hex.DecodeString(string(sum))
	if err != nil || !hmac.Equal(got, b.mac(text)) {
		return mark{}, errFalseWitness
	}
	if err := json.Unmarshal(text, &m); err != nil || m.Schema != markSchema {
		return mark{}, errFalseWitness
	}
	return m, nil
}

// note writes m, unless what is there is of a later moment.
func (b *witnessBook) note(m mark) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.Schema = markSchema
	if m.CRL.Number < b.last.CRL.Number {
		m.CRL = b.last.CRL
	}
	if !m.after(b.last) {
		return b.err
	}
	b.last = m // also where it cannot be written now
	if b.err == nil {
		b.err = b.withFile(func() error {
			_, err := b.file.WriteAt(b.line(m), b.slot*witnessSlot)
			return err
		})
		b.dirty = true
	}
	return b.err
}

// sync makes what was noted durable, and goes on in the other slot; or tries again what failed.
func (b *witnessBook) sync() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(b.err, errWitnessGone):
	case b.err != nil:
		b.err = b.withFile(b.replace)
	case b.dirty:
		b.err = b.withFile(func() error { return unix.Fdatasync(int(b.file.Fd())) })
		if b.err == nil {
			b.dirty, b.slot = false, 1-b.slot
		}
	}
	return b.err
}

// withFile does what it does to the file only if that still is the one in its place: who takes the witness away
// may be about to put an older store back.
func (b *witnessBook) withFile(do func() error) error {
	there, err := os.Stat(b.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(there, b.id):
		err = errWitnessGone
	case err == nil:
		err = do()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errWitnessFailed, err)
	}
	return nil
}

// failed is why there is no witness of what is signed; nil: there is one.
func (b *witnessBook) failed() error {
	if b == nil {
		return errWitnessFailed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// crl is the newest CRL that was witnessed, of whichever CA: zero where there was none.
func (b *witnessBook) crl() crlRecord {
	if b == nil {
		return crlRecord{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last.CRL
}

// witnessing is a store whose commits the witness sees before anybody is told of them.
type witnessing struct {
	store.Store
	head *Head
}

func (w witnessing) Commit(ctx context.Context, tx store.Tx) error {
	if err := w.Store.Commit(ctx, tx); err != nil {
		return err
	}
	if len(tx.Events) > 0 {
		w.head.witnessed(ctx, crlRecord{})
	}
	return nil
}

// witnessed notes how far the store has come. What is committed stays so whatever becomes of that; but
// without a witness nothing more is signed.
func (h *Head) witnessed(ctx context.Context, crl crlRecord) {
	book := h.book.Load()
	if book == nil || h.setBack != nil {
		return // a witness must not be led by the store that it speaks against
	}
	tail, err := h.store.Tail(context.WithoutCancel(ctx))
	if err == nil {
		err = book.note(mark{Epoch: h.epoch.Load(), Seq: tail.Seq, Hash: tail.Hash, CRL: crl})
	}
	h.try("witness not written", err)
}

// loadWitness holds the store against its witness. What they differ in stops every signature and nothing
// else (I8); how to go on is in the refusal. It writes nothing.
func (h *Head) loadWitness(ctx context.Context) error {
	g, err := readGeneration(ctx, h.store)
	if err != nil && !errors.Is(err, store.ErrDamaged) {
		return err
	}
	tail, tailErr := h.store.Tail(ctx)
	if tailErr != nil {
		return tailErr
	}
	book, openErr := openWitness(h.dir)
	if err == nil && g.Epoch == 0 && errors.Is(openErr, errNoWitness) {
		return nil // beginWitness makes one
	}
	if err = errors.Join(err, openErr); err == nil {
		err = judge(ctx, h.store, book.last, g, tail)
	}
	if err != nil {
		h.setBack = refuse(wire.Busy, whyRollback, "%v", err)
		h.log.Error("the store is not held by its witness", "event", journal.NotSigning, "reason", string(whyRollback), "err", err)
		return nil
	}
	h.epoch.Store(g.Epoch)
	h.book.Store(book)
	return nil
}

// beginWitness makes a first witness, and lets it catch up. A store of epoch 1 or more has had a witness; so
// that no crash leaves one without, the witness is there before the epoch.
func (h *Head) beginWitness(ctx context.Context) error {
	if h.setBack != nil {
		return nil
	}
	if h.book.Load() == nil {
		tail, err := h.store.Tail(ctx)
		if err != nil {
			return err
		}
		book, err := writeWitness(h.dir, mark{Seq: tail.Seq, Hash: tail.Hash})
		if err != nil {
			return err
		}
		h.book.Store(book)
	}
	if h.epoch.Load() == 0 {
		first := generation{Epoch: 1}
		err := h.store.Commit(ctx, store.Tx{Guards: []store.Guard{{Key: keyEpoch}}, Puts: []store.Put{put(keyEpoch, first)}})
		if err != nil {
			return err
		}
		h.epoch.Store(first.Epoch)
	}
	h.witnessed(ctx, crlRecord{})
	return nil
}

// judge says in what a store is not the one of its witness, nil if it may be.
func judge(ctx context.Context, st store.Reader, m mark, g generation, tail store.Chain) error {
	switch {
	case g.Epoch > m.Epoch:
		return nil // a restore, or the first start, was cut short before it wrote the witness
	case g.Epoch < m.Epoch:
		return fmt.Errorf("the store is of epoch %d, its witness has seen epoch %d", g.Epoch, m.Epoch)
	case tail.Seq < m.Seq:
		return fmt.Errorf("the store's journal ends with entry %d, its witness has seen entry %d", tail.Seq, m.Seq)
	case m.Seq == 0 || tail.Seq == m.Seq && tail.Hash == m.Hash: // the entry itself may be damaged
		return nil
	}
	for e, err := range st.Journal(ctx, m.Seq) {
		if err != nil {
			return fmt.Errorf("entry %d of the store's journal, which its witness has seen, cannot be read: %v", m.Seq, err)
		}
		if e.Hash != m.Hash {
			return fmt.Errorf("entry %d of the store's journal is not the one that its witness has seen", m.Seq)
		}
		break
	}
	return nil
}

// keepWitness makes the witness durable by the second, until ctx ends.
func (h *Head) keepWitness(ctx context.Context) error {
	tick := time.NewTicker(witnessSync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			h.tendWitness(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			h.tendWitness(ctx)
		}
	}
}

// tendWitness syncs the witness, or makes good what failed: a disk may have been full for a moment.
func (h *Head) tendWitness(ctx context.Context) {
	if h.setBack != nil {
		return
	}
	book, begun := h.book.Load(), h.epoch.Load() != 0
	was, err := book.failed(), error(nil)
	if book == nil || !begun {
		err = h.beginWitness(ctx)
	} else {
		err = book.sync()
	}
	switch {
	case was == nil && begun:
		h.try("witness not synced", err)
	case err == nil:
		h.log.Info("the witness is written again", "event", journal.Upkeep)
		h.crlDue() // and what else waits for a signature
	}
}

// rollbackHint is how to go on with a store that its witness speaks against.
const rollbackHint = "put the newest store back, or a backup (muster restore FILE); if there is no newer one: muster restore --accept"

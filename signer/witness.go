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
)

// witnessBook writes the witness of one head.
type witnessBook struct {
	path string
	key  []byte

	mu    sync.Mutex
	last  mark
	slot  int64 // the one that is written to; what the other holds is on the disk
	dirty bool
	err   error // of a write that failed; there are no more
}

// openWitness reads the witness of a state directory: errNoWitness, errFalseWitness.
func openWitness(dir string) (*witnessBook, error) {
	b := &witnessBook{path: filepath.Join(dir, witnessFile)}
	var err error
	if b.key, err = os.ReadFile(filepath.Join(dir, witnessKeyFile)); err != nil {
		return nil, absence(err)
	}
	whole, err := os.ReadFile(b.path)
	if err != nil {
		return nil, absence(err)
	}
	found := false
	for slot := range int64(2) {
		if m, err := b.parse(whole, slot); err == nil && (!found || m.after(b.last)) {
			b.last, b.slot, found = m, 1-slot, true
		}
	}
	if !found {
		return nil, errFalseWitness
	}
	return b, nil
}

func absence(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errNoWitness
	}
	return err
}

// writeWitness replaces the witness, durably, and makes its key where there is none.
func writeWitness(dir string, m mark) (*witnessBook, error) {
	b := &witnessBook{path: filepath.Join(dir, witnessFile), last: m, slot: 1}
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
	whole := bytes.Repeat([]byte("\n"), 2*witnessSlot)
	copy(whole, b.line(b.last))
	return b, durable.WriteFile(b.path, whole, 0o600)
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
	if b.err != nil || !m.after(b.last) {
		return b.err
	}
	b.err = b.withFile(func(f *os.File) error {
		_, err := f.WriteAt(b.line(m), b.slot*witnessSlot)
		return err
	})
	if b.err == nil {
		b.last, b.dirty = m, true
	}
	return b.err
}

// sync makes what was noted durable, and goes on in the other slot.
func (b *witnessBook) sync() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || !b.dirty {
		return b.err
	}
	b.err = b.withFile(func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) })
	if b.err == nil {
		b.dirty, b.slot = false, 1-b.slot
	}
	return b.err
}

// withFile opens the file each time, so that one that was taken away is missed.
func (b *witnessBook) withFile(do func(*os.File) error) error {
	f, err := os.OpenFile(b.path, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(do(f), f.Close())
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errWitnessFailed, err)
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
	if h.book == nil || h.setBack != nil {
		return // a witness must not be led by the store that it speaks against
	}
	tail, err := h.store.Tail(context.WithoutCancel(ctx))
	if err == nil {
		err = h.book.note(mark{Epoch: h.generation.Epoch, Seq: tail.Seq, Hash: tail.Hash, CRL: crl})
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
	h.generation, h.book = g, book
	return nil
}

// beginWitness makes a first witness, and lets it catch up. A store of epoch 1 or more has had a witness; so
// that no crash leaves one without, the witness is there before the epoch.
func (h *Head) beginWitness(ctx context.Context) error {
	if h.setBack != nil {
		return nil
	}
	if h.book == nil {
		tail, err := h.store.Tail(ctx)
		if err != nil {
			return err
		}
		book, err := writeWitness(h.dir, mark{Seq: tail.Seq, Hash: tail.Hash})
		if err != nil {
			return err
		}
		h.book = book
	}
	if h.generation.Epoch == 0 {
		first := generation{Epoch: 1}
		err := h.store.Commit(ctx, store.Tx{Guards: []store.Guard{{Key: keyEpoch}}, Puts: []store.Put{put(keyEpoch, first)}})
		if err != nil {
			return err
		}
		h.generation = first
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
	case m.Seq == 0:
		return nil
	}
	for e, err := range st.Journal(ctx, m.Seq) {
		if err == nil && e.Hash != m.Hash { // one that is damaged is reported as such
			return fmt.Errorf("entry %d of the store's journal is not the one that its witness has seen", m.Seq)
		}
		break
	}
	return nil
}

// keepWitness makes the witness durable by the second, until ctx ends.
func (h *Head) keepWitness(ctx context.Context) error {
	if h.book == nil {
		return nil
	}
	tick := time.NewTicker(witnessSync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			h.try("witness not synced", h.book.sync())
			return nil
		case <-tick.C:
			if h.book.failed() == nil {
				h.try("witness not synced", h.book.sync())
			}
		}
	}
}

// rollbackHint is how to go on with a store that its witness speaks against.
const rollbackHint = "put the newest store back, or a backup (muster restore FILE); if there is no newer one: muster restore --accept"

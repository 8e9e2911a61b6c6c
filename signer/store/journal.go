package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
)

// Digest is a SHA-256 hash; as text, lower-case hex.
type Digest [sha256.Size]byte

func (d Digest) String() string               { return hex.EncodeToString(d[:]) }
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of [Digest.MarshalText].
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != string(text) {
		return fmt.Errorf("%q is not a SHA-256 hash in lower-case hex", text)
	}
	copy(d[:], b)
	return nil
}

// Entry is an event with its place in a head's chain. Hash is the SHA-256 of Prev and the entry's
// canonical encoding, so it stands for the entry and all before it; Prev of the first entry is zero.
type Entry struct {
	Head string `json:"head"`
	Seq  uint64 `json:"seq"` // 1, 2, 3, … without a gap
	Event
	Prev Digest `json:"prev"`
	Hash Digest `json:"hash"`
}

// Chain is the tail of a head's journal: its last sequence number and hash, zero before the first.
type Chain struct {
	Head string
	Seq  uint64
	Hash Digest
}

// Append makes the event the chain's next entry. The store writes the entry and the new tail in the
// transaction of the change that the event tells of.
func (c *Chain) Append(ev Event) Entry {
	ev.Time = ev.Time.UTC().Round(0) // as it will be read back: no zone, no monotonic clock
	e := Entry{Head: c.Head, Seq: c.Seq + 1, Event: ev, Prev: c.Hash}
	e.Hash = e.sum()
	c.Seq, c.Hash = e.Seq, e.Hash
	return e
}

func (e Entry) sum() Digest {
	return sha256.Sum256(e.encode(e.Prev[:]))
}

// ErrBroken: a journal is not the one that was written.
var ErrBroken = errors.New("journal is broken")

// Verify reads a chain to its end and returns ErrBroken naming the first entry that does not follow from
// the one before, or cannot be read. A chain may be given from any entry on; the first one's Prev
// is then taken on trust. That the end is missing cannot be seen from the entries: the store
// knows its tail, and Journal reports it.
func Verify(entries iter.Seq2[Entry, error]) error {
	var last *Entry
	for e, err := range entries {
		switch {
		case err != nil:
			return fmt.Errorf("%w at entry %d: %w", ErrBroken, e.Seq, err)
		case e.Seq == 0:
			return fmt.Errorf("%w at entry 0: numbers begin with 1", ErrBroken)
		case last == nil && e.Seq == 1 && e.Prev != Digest{}:
			return fmt.Errorf("%w at entry 1: it follows a hash, and should be the first", ErrBroken)
		case last != nil && e.Seq != last.Seq+1:
			return fmt.Errorf("%w at entry %d: found entry %d in its place", ErrBroken, last.Seq+1, e.Seq)
		case last != nil && e.Head != last.Head:
			return fmt.Errorf("%w at entry %d: it is of head %q, not %q", ErrBroken, e.Seq, e.Head, last.Head)
		case last != nil && e.Prev != last.Hash:
			return fmt.Errorf("%w at entry %d: it does not follow entry %d", ErrBroken, e.Seq, last.Seq)
		case e.Hash != e.sum():
			return fmt.Errorf("%w at entry %d: its contents were changed", ErrBroken, e.Seq)
		}
		last = &e
	}
	return nil
}

// entryV1 begins each encoding, so that a later one cannot be taken for it.
const entryV1 = 1

// Marshal returns the entry as a store keeps it: Prev, canonical encoding, Hash. The canonical encoding is injective:
// the version, seq, and time as fixed-width integers, then each string behind its length, fields
// in key order behind their number; all integers big-endian.
func (e Entry) Marshal() []byte {
	b := e.encode(append(make([]byte, 0, 160+e.size()), e.Prev[:]...))
	return append(b, e.Hash[:]...)
}

func (e Entry) encode(b []byte) []byte {
	b = append(b, entryV1)
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(e.Time.Nanosecond()))
	for _, s := range []string{e.Head, e.Kind, e.Node} {
		b = appendString(b, s)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Fields)))
	for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
		b = appendString(appendString(b, k), e.Fields[k])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// size is about what an event adds to a transaction.
func (e Event) size() int {
	n := len(e.Kind) + len(e.Node)
	for k, v := range e.Fields {
		n += len(k) + len(v) + 8
	}
	return n
}

// ParseEntry is the inverse of [Entry.Marshal]. It accepts nothing but what Marshal makes, and
// does not check the hash: that is for [Verify].
func ParseEntry(b []byte) (Entry, error) {
	r := &reader{b: b}
	var e Entry
	copy(e.Prev[:], r.take(len(e.Prev)))
	if v := r.take(1); v != nil && v[0] != entryV1 {
		return Entry{}, fmt.Errorf("journal entry: unknown version %d", v[0])
	}
	e.Seq = r.uint64()
	sec, nsec := int64(r.uint64()), r.uint32()
	e.Time = time.Unix(sec, int64(nsec)).UTC()
	e.Head, e.Kind, e.Node = r.string(), r.string(), r.string()
	last := ""
	for i, n := uint32(0), r.uint32(); i < n && !r.short; i++ {
		k, v := r.string(), r.string()
		if i > 0 && k <= last {
			return Entry{}, errors.New("journal entry: fields out of order")
		}
		if e.Fields == nil {
			e.Fields = make(map[string]string)
		}
		e.Fields[k], last = v, k
	}
	copy(e.Hash[:], r.take(len(e.Hash)))
	if r.short || len(r.b) != 0 || nsec >= 1e9 || e.Time.Unix() != sec {
		return Entry{}, errors.New("journal entry: wrong length or time")
	}
	return e, nil
}

// reader takes fields from the front of b; once b is too short it gives zeros.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return nil
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) string() string {
	return string(r.take(int(r.uint32())))
}

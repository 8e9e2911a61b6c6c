package tpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"reflect"
	"testing"

	"muster/internal/template"
)

func TestRecordLayout(t *testing.T) {
	r := Record{Slot: 1, Algorithm: template.P384, Flags: FlagAlone, Sequence: 0x01020304, Pin: [32]byte{0xAA}, Leaf: []byte("leaf")}
	b, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	head := []byte{'M', 'S', 'T', 'R', 1, 1, 2, 1, 1, 2, 3, 4, 0, 4, 0, 0, 0xAA}
	if !bytes.HasPrefix(b, head) || string(b[48:52]) != "leaf" || len(b) != 60 {
		t.Errorf("record: %x", b)
	}
	for _, tail := range [][]byte{nil, {0xFF}, bytes.Repeat([]byte{0xFF}, 1024-60)} {
		if got, err := ParseRecord(append(bytes.Clone(b), tail...)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("with %d bytes behind it: %+v, %v", len(tail), got, err)
		}
	}
	for i := range b { // every byte counts
		damaged := bytes.Clone(b)
		damaged[i] ^= 0x10
		if got, err := ParseRecord(damaged); !errors.Is(err, ErrRecord) || !reflect.DeepEqual(got, Record{}) {
			t.Errorf("byte %d changed: %+v, %v", i, got, err)
		}
		if _, err := ParseRecord(b[:i]); !errors.Is(err, ErrRecord) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
	if _, err := ParseRecord(append(bytes.Clone(b), make([]byte, 1024)...)); !errors.Is(err, ErrRecord) {
		t.Error("more than an index holds is a record")
	}
}

func TestRecordLimits(t *testing.T) {
	good := Record{Algorithm: template.P256, Leaf: make([]byte, MaxLeaf)}
	if b, err := good.Marshal(); err != nil || len(b) != indexSize {
		t.Errorf("the longest record: %d bytes, %v", len(b), err)
	}
	usual := Record{Algorithm: template.P256, Leaf: make([]byte, 690)}
	if b, err := usual.Marshal(); err != nil || len(b) > usualTransfer {
		t.Errorf("a usual record: %d bytes, %v", len(b), err)
	}
	for _, change := range []func(*Record){
		func(r *Record) { r.Leaf = nil },
		func(r *Record) { r.Leaf = make([]byte, MaxLeaf+1) },
		func(r *Record) { r.Slot = 2 },
		func(r *Record) { r.Algorithm = 0 },
		func(r *Record) { r.Algorithm = 4 },
		func(r *Record) { r.Flags = 2 },
	} {
		r := good
		change(&r)
		if b, err := r.Marshal(); err == nil || b != nil {
			t.Errorf("%+v is a record", r)
		}
	}
}

func TestSequenceWrapsAround(t *testing.T) {
	for _, test := range []struct {
		a, b uint32
		want bool
	}{{2, 1, true}, {1, 2, false}, {1, 1, false}, {0, 1<<32 - 1, true}, {1<<32 - 1, 0, false}, {5, 1<<32 - 5, true}} {
		if got := (Record{Sequence: test.a}).newer(Record{Sequence: test.b}); got != test.want {
			t.Errorf("%d newer than %d: %v", test.a, test.b, got)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, n := range []int{1, 690, MaxLeaf} {
		b, err := record(n).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, 0xFF, 0xFF))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) || !reflect.DeepEqual(r, Record{}) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		again, err := r.Marshal()
		if err != nil || !bytes.HasPrefix(b, again) {
			t.Fatalf("Marshal(Parse(x)) = %x, %v", again, err)
		}
	})
}

func TestReservedBytesAreZero(t *testing.T) {
	for _, i := range []int{14, 15} {
		b, err := record(60).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		b[i] = 1
		sum := sha256.Sum256(b[:len(b)-recordSum])
		copy(b[len(b)-recordSum:], sum[:])
		if _, err := ParseRecord(b); !errors.Is(err, ErrRecord) {
			t.Errorf("byte %d is set: %v", i, err)
		}
	}
}

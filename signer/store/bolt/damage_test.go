package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/signer/store"
)

// Every byte of the file's data pages is changed in turn, three ways, under an open store (the map is
// the file). No key may then read as anything but its value or ErrDamaged, and no listing give anything
// else. Absence, and a listing's end, are as certain, but for the limit stated at checkAbsent.
func TestFlippedByte(t *testing.T) {
	path, want := filledStore(t)
	s := must(t, path, nil)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	step := int64(53) // coprime to all that repeats in a page
	if testing.Short() {
		step = 211
	}
	damaged, lost := 0, 0
	end := s.snapshot.current.tx.Size()
	for off := int64(2 * pageSize); off < end; off += step {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			writeAt(t, f, off, data[off]^flip)
			wrong, missing, found := compareAll(t, s, want)
			if missing != "" && structural(data, off) {
				lost++
			} else {
				wrong += missing
			}
			if wrong != "" {
				t.Errorf("byte %d of page %d changed by %#x: %s", off%pageSize, off/pageSize, flip, wrong)
			}
			if found {
				damaged++
			}
		}
		writeAt(t, f, off, data[off])
	}
	if damaged == 0 {
		t.Error("no change was ever noticed: the test does not test")
	}
	t.Logf("%d changes noticed, %d hid records", damaged, lost)
	if lost*200 > damaged {
		t.Errorf("%d changes hid records, %d were noticed", lost, damaged)
	}
	if wrong, missing, found := compareAll(t, s, want); wrong+missing != "" || found {
		t.Errorf("after all: %q %q", wrong, missing)
	}
}

// structural says whether a byte belongs to a page's header or to a branch page.
func structural(data []byte, off int64) bool {
	const branchFlag = 0x01
	return off%pageSize < 16 || data[off-off%pageSize+8] == branchFlag
}

// Each byte of one record: that record alone is refused, to readers and to guards; the others are served
// and the store can be written.
func TestFlippedRecord(t *testing.T) {
	path, want := filledStore(t)
	const victim = "cert/0150"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := must(t, path, nil)
	item := get(t, s, victim)
	record := append([]byte(victim), frame(stateBucket, []byte(victim), item.Revision, item.Value)...)
	at := int64(bytes.Index(data, record))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if at < 0 || err != nil {
		t.Fatal("record not found", err)
	}
	defer f.Close()
	for off := at; off < at+int64(len(record)); off++ {
		writeAt(t, f, off, data[off]^0x10)
		if _, err := s.Get(t.Context(), victim); !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "cert/") && off >= at+8 {
			t.Fatalf("byte %d: got %v, want ErrDamaged", off-at, err)
		}
		for key, value := range want {
			if key == victim {
				continue
			}
			if got, err := s.Get(t.Context(), key); err != nil || string(got.Value) != value {
				t.Fatalf("byte %d: %q: got %.20q, %v", off-at, key, got.Value, err)
			}
		}
		writeAt(t, f, off, data[off])
	}
	writeAt(t, f, at+20, data[at+20]^0x10)
	for _, revision := range []uint64{0, item.Revision} {
		tx := store.Tx{Guards: []store.Guard{{Key: victim, Revision: revision}}, Puts: []store.Put{put(victim, "second")}}
		if err := s.Commit(t.Context(), tx); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("guard at revision %d: got %v, want ErrDamaged", revision, err)
		}
	}
	commit(t, s, store.Tx{Puts: []store.Put{put("other", "x")}})
	var bad, good int
	for _, err := range s.List(t.Context(), "cert/") {
		if errors.Is(err, store.ErrDamaged) {
			bad++
		} else if err == nil {
			good++
		}
	}
	if bad != 1 || good != len(want)-1 {
		t.Errorf("list gave %d good, %d damaged of %d", good, bad, len(want))
	}
}

// A flipped byte in the first pages is refused at open, or changes nothing.
func TestFlippedMeta(t *testing.T) {
	path, want := filledStore(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	refused := 0
	for off := 0; off < 2*pageSize; off += 1 {
		if off%pageSize > 96 {
			continue // beyond the meta
		}
		changed := bytes.Clone(data)
		changed[off] ^= 0x10
		changed[(off+pageSize)%(2*pageSize)] ^= 0x10
		if err := os.WriteFile(copied, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(copied, 0)
		if err != nil {
			refused++
			continue
		}
		if wrong, missing, _ := compareAll(t, s, want); wrong+missing != "" {
			t.Errorf("byte %d: %s%s", off, wrong, missing)
		}
		s.Close()
	}
	if refused == 0 {
		t.Error("nothing was refused: the test does not test")
	}
}

func TestTruncated(t *testing.T) {
	path, want := filledStore(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := info.Size(); size >= 0; size -= 3*pageSize - 1 {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, 0)
		if err != nil {
			if !errors.Is(err, store.ErrDamaged) {
				t.Errorf("%d bytes: got %v, want ErrDamaged", size, err)
			}
			continue
		}
		if wrong, missing, found := compareAll(t, s, want); wrong+missing != "" || found {
			t.Errorf("%d bytes: %s%s", size, wrong, missing)
		}
		s.Close()
	}
}

// A journal entry changed on the disk, or by someone who can compute checksums, is found.
func TestJournalDamage(t *testing.T) {
	path, _ := filledStore(t)
	s := must(t, path, nil)
	all := entries(t, s)
	if err := store.Verify(s.Journal(t.Context(), 1)); err != nil || len(all) != 300 {
		t.Fatal(len(all), err)
	}
	if got := entriesFrom(s, t, 299); len(got) != 2 || got[0].Seq != 299 {
		t.Errorf("from 299: %v", got)
	}
	s.Close()
	for _, seq := range []uint64{1, 150, 300} {
		tampered := filepath.Join(t.TempDir(), "tampered.db")
		copyFile(t, path, tampered)
		s = must(t, tampered, nil)
		e := all[seq-1]
		e.Node = "n666"
		rewriteEntry(t, s, seq, frame(journalBucket, entryKey(seq), 1, e.Marshal()))
		s.Close()
		checkBroken(t, tampered, seq)
		s = must(t, tampered, nil)
		rewriteEntry(t, s, seq, nil)
		s.Close()
		checkBroken(t, tampered, seq)
	}
}

// The last entry has no next one to betray it: the store's tail does, even when the hash was made anew.
func TestJournalTail(t *testing.T) {
	path, _ := filledStore(t)
	s := must(t, path, nil)
	all := entries(t, s)
	c := store.Chain{Head: "h1", Seq: 299, Hash: all[298].Hash}
	e := c.Append(store.Event{Kind: "issue", Node: "n666"})
	rewriteEntry(t, s, 300, frame(journalBucket, entryKey(300), 1, e.Marshal()))
	s.Close()
	checkBroken(t, path, 300)
}

func checkBroken(t *testing.T, path string, seq uint64) {
	t.Helper()
	s := must(t, path, nil)
	defer s.Close()
	err := store.Verify(s.Journal(t.Context(), 1))
	if !errors.Is(err, store.ErrBroken) || !strings.Contains(err.Error(), fmt.Sprintf("at entry %d:", seq)) {
		t.Errorf("got %v, want ErrBroken at entry %d", err, seq)
	}
}

// rewriteEntry replaces or (nil) removes an entry behind the store's back.
func rewriteEntry(t *testing.T, s *Store, seq uint64, record []byte) {
	t.Helper()
	tx, err := s.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	b := tx.Bucket([]byte(journalBucket))
	if record == nil {
		err = b.Delete(entryKey(seq))
	} else {
		err = b.Put(entryKey(seq), record)
	}
	if err := errors.Join(err, tx.Commit()); err != nil {
		t.Fatal(err)
	}
}

func entriesFrom(s *Store, t *testing.T, from uint64) (all []store.Entry) {
	for e, err := range s.Journal(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// filledStore makes a closed store with a few levels of pages, old versions of them in free pages, and
// values from nothing to two pages.
func filledStore(t *testing.T) (path string, want map[string]string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	s := must(t, path, Create(path, "h1"))
	want = make(map[string]string)
	for i := range 300 {
		key := fmt.Sprintf("cert/%04d", i*7%300)
		want[key] = strings.Repeat(fmt.Sprint(i, "."), i%70)
		if i%100 == 99 {
			want[key] = strings.Repeat("x", 2*pageSize)
		}
		commit(t, s, store.Tx{Puts: []store.Put{put(key, want[key])}, Events: []store.Event{{Kind: "issue", Node: key}}})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, want
}

// compareAll says what the store gives that it must not, what it does not give without saying why, and
// whether it noticed any damage.
func compareAll(t *testing.T, s *Store, want map[string]string) (wrong, missing string, noticed bool) {
	for key, value := range want {
		item, err := s.Get(t.Context(), key)
		switch {
		case errors.Is(err, store.ErrDamaged):
			noticed = true
		case err != nil:
			wrong = err.Error()
		case item.Revision == 0:
			missing = fmt.Sprintf("%q is absent", key)
		case string(item.Value) != value:
			wrong = fmt.Sprintf("%q is %.40q, not %.40q", key, item.Value, value)
		}
	}
	seen, damaged := 0, false
	for item, err := range s.List(t.Context(), "cert/") {
		if err != nil {
			damaged = true
			continue
		}
		if want[item.Key] != string(item.Value) || item.Revision == 0 {
			wrong = fmt.Sprintf("list has %q as %.40q", item.Key, item.Value)
		}
		seen++
	}
	if seen != len(want) && !damaged {
		missing = fmt.Sprintf("list has %d of %d and says nothing", seen, len(want))
	}
	return wrong, missing, noticed || damaged
}

func writeAt(t *testing.T, f *os.File, off int64, b byte) {
	t.Helper()
	if _, err := f.WriteAt([]byte{b}, off); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

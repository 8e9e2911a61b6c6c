package bolt

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"muster/signer/store"
)

// ofSchema1 unpacks a store that the program of schema 1 wrote: keys a and b, a journal of two entries.
func ofSchema1(t *testing.T) string {
	t.Helper()
	packed, err := os.Open("testdata/schema1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUpgrade(t *testing.T) {
	path := ofSchema1(t)
	for range 2 {
		s := must(t, path, nil)
		if s.identity.schema != Schema {
			t.Errorf("schema %d, want %d", s.identity.schema, Schema)
		}
		if got := list(t, s, ""); len(got) != 2 || string(got[0].Value) != "of a" || string(got[1].Value) != "of b" {
			t.Errorf("got %v", got)
		}
		if err := store.Verify(s.Journal(t.Context(), 1)); err != nil {
			t.Error(err)
		}
		if tail, err := s.Tail(t.Context()); err != nil || tail.Seq != 2 {
			t.Errorf("tail %v, %v", tail, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	must(t, path, nil).Close()
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("opening a store of this schema changed it (%v)", err)
	}
}

// TestUpgradeFails: then the store is what it was.
func TestUpgradeFails(t *testing.T) {
	path := ofSchema1(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := upgrades[1]
	t.Cleanup(func() { upgrades[1] = good })
	upgrades[1] = func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket([]byte(stateBucket)).Put([]byte("half"), []byte("done")), errors.New("no"))
	}
	if _, err := Open(path, time.Second); err == nil {
		t.Fatal("opened")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the store was changed (%v)", err)
	}
}

// TestReplacedWhileWaiting: who waited for a file that a restore replaced does not get the old one.
func TestReplacedWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	path, next := filepath.Join(dir, "store.db"), filepath.Join(dir, "next.db")
	s := must(t, path, Create(path, "h1"))
	if err := Create(next, "h1"); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error)
	go func() {
		waiting, err := Open(path, time.Minute)
		if err == nil {
			waiting.Close()
		}
		opened <- err
	}()
	waitFor(t, path)
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-opened; !errors.Is(err, store.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	must(t, path, nil).Close()
}

// waitFor returns once this process has path open a second time.
func waitFor(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == path {
				n++
			}
		}
		if n > 1 {
			return
		}
	}
	t.Fatal("nobody waits")
}

package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"muster/internal/durable"
	"muster/signer/store"
)

// Create makes an empty store at path for the journal of a head, and refuses with ErrExists to replace
// a file. A new bbolt file is no database until its first commit, and unreadable after a power
// cut before it; so it is made under another name and takes its own when it is whole and synced:
//
//	openat(".store.db.new-123", O_RDWR|O_CREAT|O_EXCL), flock, bbolt's writes and syncs
//	fsync
//	renameat2(".store.db.new-123", "store.db", RENAME_NOREPLACE)
//	fsync of the directory
//
// After a crash Create can be called again; it removes what the earlier call left.
func Create(path, head string) error {
	if err := create(path, newIdentity(Schema, head)); err != nil {
		return fmt.Errorf("create store %s: %w", path, err)
	}
	return nil
}

func create(path string, id identity) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return store.ErrExists
	}
	if err := sweep(path); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix(path))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	// bbolt locks the file, and it stays locked until it has its name: sweep leaves it alone.
	opts := options(0, func(string, int, fs.FileMode) (*os.File, error) { return f, nil })
	db, err := bbolt.Open(f.Name(), 0o600, opts)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.Update(id.initialise); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		return store.ErrExists
	}
	if err != nil {
		return fmt.Errorf("renameat2: %v", err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

func (i identity) initialise(tx *bbolt.Tx) error {
	for _, name := range []string{stateBucket, journalBucket, metaBucket} {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	return errors.Join(i.put(tx), tail{}.put(tx))
}

func tempPrefix(path string) string {
	return "." + filepath.Base(path) + ".new-"
}

// sweep removes what a killed Create left beside path, unless its process still has it locked.
func sweep(path string) error {
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), tempPrefix(path)) {
			continue
		}
		f, err := os.Open(filepath.Join(filepath.Dir(path), n.Name()))
		if err != nil {
			continue // gone meanwhile
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(f.Name())
		}
		f.Close()
	}
	return nil
}

// Package durable writes files that survive a power cut: after a call returns nil the file holds
// all of the new data, and at every instant before that, all of the old data or all of the new.
//
// After an error of fsync the page cache may hold what the disk does not; the only safe answer is
// not to use the new file. Hence an error always means "not written", even where the rename
// happened and only the sync of the directory failed: write again, or stop.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// WriteFile replaces path by a file that holds data and has exactly this mode, whatever the umask.
// A symbolic link at path is replaced, not followed. An error leaves no temporary file behind; a
// crash may leave one, named .BASE.tmp-RANDOM, for [Sweep].
//
// The system calls of a successful call:
//
//	openat(AT_FDCWD, "dir", O_RDONLY|O_DIRECTORY|O_CLOEXEC) = 3
//	openat(AT_FDCWD, "dir/.file.tmp-123", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 4
//	write(4, …)
//	fchmod(4, 0644)
//	fsync(4)
//	close(4)
//	renameat(AT_FDCWD, "dir/.file.tmp-123", AT_FDCWD, "dir/file")
//	fsync(3)
//	close(3)
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return write(path, whole(data), mode, func(*os.File) error { return nil })
}

// WriteStream is [WriteFile] for data that fill does not hold at once. Where fill fails, nothing is written.
func WriteStream(path string, mode fs.FileMode, fill func(io.Writer) error) error {
	return write(path, fill, mode, func(*os.File) error { return nil })
}

func whole(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// WriteFileOwner is [WriteFile] for a file that belongs to uid and gid (-1 leaves one as it is).
// The file has its owner (fchown before fchmod, which would lose set-id bits) before it has its name.
func WriteFileOwner(path string, data []byte, mode fs.FileMode, uid, gid int) error {
	return write(path, whole(data), mode, func(f *os.File) error { return f.Chown(uid, gid) })
}

func write(path string, fill func(io.Writer) error, mode fs.FileMode, own func(*os.File) error) error {
	// Held open from before the write: an inode evicted from the cache takes its I/O error with it.
	dir, err := openDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer dir.Close()
	tmp, err := writeTemp(path, fill, mode, own)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeTemp returns the name of a synced file beside path, or an error and no file.
func writeTemp(path string, fill func(io.Writer) error, mode fs.FileMode, own func(*os.File) error) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix(path))
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = fill(f); err != nil {
		return "", err
	}
	if err = own(f); err != nil {
		return "", err
	}
	if err = f.Chmod(mode); err != nil {
		return "", err
	}
	if err = f.Sync(); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// Sweep removes the temporary files that crashes of [WriteFile] left beside path. The caller sees to it
// that nobody writes path meanwhile.
func Sweep(path string) error {
	dir, prefix := filepath.Dir(path), tempPrefix(path)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func tempPrefix(path string) string { return "." + filepath.Base(path) + ".tmp-" }

// SyncDir makes the names in a directory durable: what was created, renamed or removed there.
func SyncDir(path string) error {
	dir, err := openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

package durable

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, data := range []string{"old", "", strings.Repeat("new", 10_000)} {
		if err := WriteFile(path, []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != data {
			t.Fatalf("file holds %d bytes, want %d", len(got), len(data))
		}
	}
	only(t, path)
}

func TestWriteFileReplacesLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "sub", "link")
	if err := errors.Join(os.Mkdir(filepath.Dir(link), 0o700), os.WriteFile(target, []byte("target"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if read(t, target) != "target" || read(t, link) != "new" {
		t.Fatal("the link was followed")
	}
	only(t, link)
}

// The umask is a property of the process, so this test must not run beside others that make files.
func TestWriteFileMode(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "file")
	for _, mode := range []fs.FileMode{0o644, 0o600, 0o755 | fs.ModeSetgid} {
		if err := WriteFileOwner(path, nil, mode, -1, os.Getgid()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("mode %v, want %v", info.Mode(), mode)
		}
	}
}

func TestWriteFileOwner(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to give a file away")
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFileOwner(path, []byte("x"), 0o640, 12, 34); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 12 || s.Gid != 34 {
		t.Errorf("owner %d:%d, want 12:34", s.Uid, s.Gid)
	}
}

// A failure at each step leaves what was there, and nothing beside it.
func TestFailureLeavesOldFile(t *testing.T) {
	boom := errors.New("boom")
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	steps := map[string]func(*os.File) error{
		"own":   func(*os.File) error { return boom },
		"chmod": func(f *os.File) error { return f.Close() }, // so that all that follows fails
	}
	for name, step := range steps {
		if err := write(path, whole([]byte("new")), 0o600, step); err == nil {
			t.Errorf("%s: no error", name)
		}
		if read(t, path) != "old" {
			t.Errorf("%s: the old file is gone", name)
		}
		only(t, path)
	}
}

func TestFailedRenameLeavesNoTemp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir") // a directory cannot be replaced by a file
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	only(t, path)
}

// A file-size limit makes write(2) itself fail half way, in a child because the limit is the process's.
func TestFailedWriteLeavesOldFile(t *testing.T) {
	if path := os.Getenv("DURABLE_TEST_PATH"); path != "" {
		if err := WriteFile(path, make([]byte, 1<<20), 0o600); err == nil {
			t.Fatal("the limit did not bite")
		}
		return
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `ulimit -f 16; trap '' XFSZ; exec "$0" -test.run='^TestFailedWriteLeavesOldFile$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "DURABLE_TEST_PATH="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if read(t, path) != "old" {
		t.Error("the old file is gone")
	}
	only(t, path)
}

func TestSyncDir(t *testing.T) {
	dir := t.TempDir()
	if err := SyncDir(dir); err != nil {
		t.Error(err)
	}
	if err := SyncDir(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if err := WriteFile(filepath.Join(dir, "absent", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// only checks that path is all there is in its directory.
func only(t *testing.T, path string) {
	t.Helper()
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 || names[0].Name() != filepath.Base(path) {
		t.Errorf("directory holds %v, want only %s", names, filepath.Base(path))
	}
}

// TestSweep: what a crash left of this file goes, and of no other.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, name := range []string{"file", ".file.tmp-1", ".file.tmp-22", ".file2.tmp-1", "file.tmp-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(path); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 || entries[0].Name() != ".file2.tmp-1" || entries[1].Name() != "file" || entries[2].Name() != "file.tmp-1" {
		t.Errorf("left: %v, %v", entries, err)
	}
	if err := Sweep(filepath.Join(dir, "nosuch", "file")); err == nil {
		t.Error("no error where there is no directory")
	}
}

package bolt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// TestMain lets the tests start this binary again as a process that can be killed.
func TestMain(m *testing.M) {
	path := os.Getenv("STORE_TEST_PATH")
	switch os.Getenv("STORE_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "create":
		os.Exit(childCreate(path))
	case "commit":
		os.Exit(childCommit(path))
	}
}

func child(role, path string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+role, "STORE_TEST_PATH="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func childCreate(path string) int {
	fmt.Println("ready")
	for i := 0; ; i++ {
		if err := Create(fmt.Sprint(path, i), "h1"); err != nil {
			fmt.Println(err)
			return 1
		}
	}
}

// childCommit has eight writers, each of which prints a line when a commit was answered.
func childCommit(path string) int {
	s, err := Open(path, time.Second)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var out sync.Mutex
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d/%d", os.Getpid(), w, i)
				err := s.Commit(context.Background(), store.Tx{Puts: []store.Put{put(key, key)}, Events: []store.Event{{Kind: key}}})
				out.Lock()
				fmt.Println(key, err)
				out.Unlock()
			}
		}()
	}
	select {}
}

// Killed at any moment of Create, it leaves either a whole store or none, and can be called again.
func TestKillCreate(t *testing.T) {
	dir := t.TempDir()
	made := 0
	for round := range 40 {
		base := filepath.Join(dir, fmt.Sprint("r", round, "-"))
		cmd := child("create", base)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(round*397%10_000) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		for i := 0; ; i++ {
			path := fmt.Sprint(base, i)
			s, err := Open(path, time.Second)
			if errors.Is(err, store.ErrAbsent) {
				s = must(t, path, Create(path, "h1"))
				s.Close()
				break
			}
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			commit(t, s, store.Tx{Puts: []store.Put{put("a", "1")}})
			s.Close()
			made++
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, ".r*"))
	if err != nil || len(names) != 0 || made == 0 {
		t.Errorf("%d stores made, left behind: %v, %v", made, names, err)
	}
}

// What was acknowledged is there after kill -9, and nothing that was never sent.
func TestKillCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	if err := Create(path, "h1"); err != nil {
		t.Fatal(err)
	}
	acked := make(map[string]bool)
	for round := range 15 {
		cmd := child("commit", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			key, err, ok := strings.Cut(lines.Text(), " ")
			if !ok {
				break // killed in the middle of the line
			}
			if err != "<nil>" {
				t.Fatal(lines.Text())
			}
			acked[key] = true
			if n == round*round {
				cmd.Process.Kill() // and read what it had printed
			}
		}
		cmd.Wait()
		s := must(t, path, nil)
		for key := range acked {
			if get(t, s, key).Revision == 0 {
				t.Fatalf("round %d: %s was acknowledged and is not there", round, key)
			}
		}
		if items, all := list(t, s, ""), entries(t, s); len(items) != len(all) || len(items) < len(acked) {
			t.Fatalf("%d items, %d entries, %d acknowledged", len(items), len(all), len(acked))
		}
		if err := store.Verify(s.Journal(t.Context(), 1)); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	t.Logf("%d acknowledged", len(acked))
}

// A disk that fills up refuses commits with ErrFull and serves reads; when there is room again, commits
// work again. On ext4 the refusal comes from fallocate, on ext2, which has none, from write.
func TestFullDisk(t *testing.T) {
	for _, fs := range []string{"tmpfs", "ext4", "ext2"} {
		t.Run(fs, func(t *testing.T) {
			s := testFullDisk(t, mount(t, fs))
			if s.commits.space.unsupported != (fs == "ext2") {
				t.Errorf("fallocate unsupported: %t", s.commits.space.unsupported)
			}
		})
	}
}

// testFullDisk returns the store, closed, that it filled.
func testFullDisk(t *testing.T, dir string) *Store {
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "store.db")
	s := must(t, path, Create(path, "h1"))
	n := fill(t, s, 0)
	for range 10 { // and stays so
		if err := s.Commit(t.Context(), fillTx(n)); !errors.Is(err, store.ErrFull) {
			t.Fatalf("got %v, want ErrFull", err)
		}
	}
	checkFilled(t, s, n)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	m := fill(t, s, n)
	if m <= n {
		t.Fatalf("no commit after room was made, %d before", n)
	}
	checkFilled(t, s, m)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := must(t, path, nil) // a full disk is no reason not to start
	checkFilled(t, again, m)
	again.Close()
	t.Logf("%d commits, then %d", n, m-n)
	return s
}

// A failed sync ends all commits, even when the disk is well again; reads go on with what was durable.
// On /dev/null every write succeeds and every fdatasync fails.
func TestFailedSync(t *testing.T) {
	s := newStore(t)
	for range 20 { // until there are free pages, and nothing has to grow
		commit(t, s, store.Tx{Puts: []store.Put{put("a", "1")}})
	}
	fd := int(s.file.Fd())
	well, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(well)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	err = s.Commit(t.Context(), store.Tx{Puts: []store.Put{put("a", "2")}})
	if err == nil || !strings.Contains(err.Error(), unix.EINVAL.Error()) || errors.Is(err, store.ErrFailed) {
		t.Errorf("got %v, want that of fdatasync, as an unknown outcome", err)
	}
	if err := unix.Dup3(well, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{put("a", "3")}}); !errors.Is(err, store.ErrFailed) {
			t.Errorf("got %v, want ErrFailed", err)
		}
		if got := get(t, s, "a"); string(got.Value) != "1" || len(list(t, s, "")) != 1 {
			t.Errorf("read %q", got.Value)
		}
	}
}

func fillTx(i int) store.Tx {
	return store.Tx{Puts: []store.Put{put(fmt.Sprintf("k%05d", i), strings.Repeat("x", 3000))}, Events: []store.Event{{Kind: "fill"}}}
}

func fill(t *testing.T, s *Store, n int) int {
	for ; n < 100_000; n++ {
		err := s.Commit(t.Context(), fillTx(n))
		if errors.Is(err, store.ErrFull) {
			return n
		}
		if err != nil {
			t.Fatalf("commit %d: %v", n, err)
		}
	}
	t.Fatal("the disk did not fill up")
	return 0
}

func checkFilled(t *testing.T, s *Store, n int) {
	t.Helper()
	if items, all := list(t, s, "k"), entries(t, s); len(items) != n || len(all) != n {
		t.Fatalf("%d items and %d entries, want %d", len(items), len(all), n)
	}
	if err := store.Verify(s.Journal(t.Context(), 1)); err != nil {
		t.Fatal(err)
	}
}

// mount gives a file system of 4 MiB.
func mount(t *testing.T, fs string) string {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to mount a file system")
	}
	dir := t.TempDir()
	if fs == "tmpfs" {
		run(t, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir)
	} else {
		image := filepath.Join(t.TempDir(), "image")
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 4<<20)); err != nil {
			t.Fatal(err)
		}
		run(t, "mkfs."+fs, "-q", "-m", "0", image)
		run(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

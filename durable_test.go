package muster_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"muster/internal/testtpm"
)

// TestSyncFails: where the disk does not take a certificate, the node does not get it (I2, I8). A head
// that replied before the sync, or did not sync, would not notice, and the page cache would hide it
// from any kill.
func TestSyncFails(t *testing.T) {
	testtpm.Need(t, "strace")
	h := newHead(t)
	n := newNode(t, h, "n0")
	h.must("certs", "enable", "-i", "n0")
	stop := h.inject(t, "fdatasync,fsync:error=EIO")
	if r := n.boot("--wait", "2s"); r.status != 75 {
		t.Errorf("the boot while nothing could be synced: %v", r)
	}
	if _, err := os.Stat(filepath.Join(n.root, "run/muster/node.crt")); err == nil {
		t.Error("the node has a certificate that is on no disk")
	}
	stop()
	// A sync that failed once is not believed again: the head signs nothing until it is restarted.
	if r := n.boot("--wait", "1s"); r.status != 75 {
		t.Errorf("the boot after a failed sync: %v", r)
	}
	h.kill()
	h.start()
	n.mustBoot()
	if issues := h.issues("n0"); len(issues) != 1 {
		t.Errorf("%d certificates on record", len(issues))
	}
}

// inject makes system calls of the head fail, as strace's -e inject= says, until stop is called.
func (h *head) inject(t *testing.T, what string) (stop func()) {
	t.Helper()
	calls, _, _ := strings.Cut(what, ":")
	cmd := exec.Command("strace", "-f", "-e", "trace="+calls, "-e", "inject="+what, "-o", os.DevNull, "-p", strconv.Itoa(h.serve.Process.Pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil || !strings.Contains(line, "attached") {
		t.Fatalf("strace: %q, %v", line, err)
	}
	go io.Copy(io.Discard, stderr)
	return func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}
}

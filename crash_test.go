package muster_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/internal/wire"
)

// failpoints are the places between parse and reply of signer/enroll.go.
var failpoints = []string{"parse", "proven", "claim", "signed", "stored", "reply"}

// TestSignerKilled kills the head at every step of leg 2. After its restart the node enrols, and no
// certificate is in the world that is not in the record.
func TestSignerKilled(t *testing.T) {
	dir := t.TempDir()
	if err := build(dir, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	for _, point := range failpoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := newHeadAt(t, "127.0.0.1", filepath.Join(dir, "muster"))
			h.must("certs", "enable", "-i", "n0")
			n := newNode(t, h, "n0")
			h.kill()
			h.env = []string{"MUSTER_FAILPOINT=" + point}
			h.start()
			if r := n.boot("--wait", "2s"); r.status != 75 {
				t.Fatalf("the boot under which the head died: %v", r)
			}
			h.await()
			h.env = nil
			h.start()
			before := h.issues("n0")
			if claimed := point == "stored" || point == "reply"; claimed != (len(before) == 1) {
				t.Fatalf("%d certificates on record after a crash at %s", len(before), point)
			}
			n.mustBoot()
			after := h.issues("n0")
			if len(after) != 1 || len(before) == 1 && after[0]["serial"] != before[0]["serial"] {
				t.Errorf("certificates on record: before %v, after %v", before, after)
			}
			if got := serialOf(t, n); got != after[0]["serial"] {
				t.Errorf("the node has certificate %s, the record %s", got, after[0]["serial"])
			}
		})
	}
}

// renewFailpoints are the places between decision and reply of signer/renew.go.
var renewFailpoints = []string{"renew-claim", "renew-signed", "renew-stored", "renew-reply"}

// TestRenewalKilled kills the head at every step of a renewal, for the same key and for another. The node's certificate
// stays good, and the next attempt gets the one that is on record.
func TestRenewalKilled(t *testing.T) {
	dir := t.TempDir()
	if err := build(dir, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	for _, point := range renewFailpoints {
		for _, args := range [][]string{nil, {"--new-key"}} {
			t.Run(strings.Join(append([]string{point}, args...), " "), func(t *testing.T) {
				t.Parallel()
				h := newHeadAt(t, "127.0.0.1", filepath.Join(dir, "muster"))
				n := newNode(t, h, "n0")
				n.mustBeDue()
				first := serialOf(t, n)
				h.kill()
				h.env = []string{"MUSTER_FAILPOINT=" + point}
				h.start()
				if r := n.renew(append(args, "--wait", "1s")...); r.status != 75 {
					t.Fatalf("the renewal under which the head died: %v", r)
				}
				h.await()
				h.env = nil
				h.start()
				if got := serialOf(t, n); got != first {
					t.Fatalf("installed: %s", got)
				}
				before := h.entries("n0", "renew")
				if claimed := point == "renew-stored" || point == "renew-reply"; claimed != (len(before) == 1) {
					t.Fatalf("%d renewals on record", len(before))
				}
				if r := n.renew(args...); r.status != 0 {
					t.Fatalf("the next renewal: %v", r)
				}
				after := h.entries("n0", "renew")
				if len(after) != 1 || len(before) == 1 && after[0]["serial"] != before[0]["serial"] {
					t.Errorf("renewals on record: before %v, after %v", before, after)
				}
				if got := serialOf(t, n); got != after[0]["serial"] {
					t.Errorf("the node has certificate %s, the record %s", got, after[0]["serial"])
				}
			})
		}
	}
}

// TestNoFailpointsShipped: the environment variable means nothing to the shipped program.
func TestNoFailpointsShipped(t *testing.T) {
	shipped, err := os.ReadFile(filepath.Join(bin, "muster"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(shipped, []byte("MUSTER_FAILPOINT")) {
		t.Error("the shipped program has failpoints")
	}
	dir := t.TempDir()
	if err := build(dir, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	control, err := os.ReadFile(filepath.Join(dir, "muster"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(control, []byte("MUSTER_FAILPOINT")) {
		t.Error("control: the program with failpoints does not show them, so this test shows nothing")
	}
}

// TestAnswerCut cuts the head's answer after byte k. A node that comes back with the same key gets
// the identical certificate; another key, for which nothing was enabled, is refused.
func TestAnswerCut(t *testing.T) {
	h := newHead(t)
	proxy := newCutter(t, h.addr())
	cut := 0
	for i, k := range []int{0, 1, 100, 1000, 2000, 2400, 2600, 2800, 3000, 3200, 3400, 3600, 3800, 4000, 4400, 4800, 5200} {
		name := "n" + strconv.Itoa(i)
		h.must("certs", "enable", "-i", name)
		n := newNode(t, h, name)
		proxy.after(k)
		r := n.bootAt("https://"+proxy.addr(), h.pin, "--wait", "1s")
		issued := h.issues(name)
		proxy.after(-1)
		switch {
		case len(issued) == 0:
			n.bootAt("https://"+proxy.addr(), h.pin)
			if issued = h.issues(name); len(issued) != 1 {
				t.Fatalf("cut after byte %d: %d certificates", k, len(issued))
			}
		case r.status != 0:
			cut++ // the certificate was made, and the node has not got it or could not use it
			n.loseRun()
			if r := n.boot(); r.status != 0 {
				t.Fatalf("cut after byte %d: the retry: %v", k, r)
			}
		}
		if got := serialOf(t, n); got != issued[0]["serial"] || len(h.issues(name)) != 1 {
			t.Errorf("cut after byte %d: the node has %s, the record %v", k, got, h.issues(name))
		}
		if r := n.agent("forget", "--key"); r.status != 0 {
			t.Fatalf("forget: %v", r)
		}
		if r := n.boot("--wait", "1s"); r.status != 77 {
			t.Errorf("cut after byte %d: another key: %v", k, r)
		}
		n.tpm.Stop()
	}
	if cut == 0 {
		t.Error("no cut fell between the issue of a certificate and its arrival, so this test shows nothing")
	}
	if h.count(wire.PathEnroll) == 0 {
		t.Error("no enrolment reached the head")
	}
}

func serialOf(t *testing.T, n *node) string {
	t.Helper()
	cert := parseCertificate(t, n.file("node.crt"))
	serial := cert.SerialNumber.Text(16)
	return strings.Repeat("0", 32-len(serial)) + serial
}

// cutter is a TCP proxy that cuts each connection after so many bytes from the head.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	limit int
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, limit: -1}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			node, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(node, to)
		}
	}()
	return c
}

func (c *cutter) addr() string { return c.Addr().String() }

// after sets the limit for new connections; -1 is none.
func (c *cutter) after(k int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = k
}

func (c *cutter) carry(node net.Conn, to string) {
	defer node.Close()
	head, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	defer head.Close()
	c.mu.Lock()
	limit := c.limit
	c.mu.Unlock()
	go io.Copy(head, node)
	if limit < 0 {
		io.Copy(node, head)
		return
	}
	io.CopyN(node, head, int64(limit))
	// What the head still has to say is read, so that it finishes its work, and lost.
	head.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	io.Copy(io.Discard, head)
}

// Package muster_test holds the system tests: the real programs, as they are shipped, against
// real TPMs (swtpm), real clients and real power cuts. testdata/script has what an operator sees.
package muster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muster/internal/testtpm"
)

// bin is where TestMain puts the two programs, built as `make build` does.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "muster-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		if err := build(dir, "", "./signer/cmd/muster", "./agent/cmd/muster-agent"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build compiles programs as the Makefile does, with build tags where wanted.
func build(dir, tags string, packages ...string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version=test -X main.committed=1700000000", "-tags", tags, "-o", dir + "/"}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// head is a `muster serve` with a state directory of its own.
type head struct {
	t      testing.TB
	dir    string // state directory
	host   string
	port   int // of the node listener; the public one is port + 1
	socket string
	pin    string
	env    []string // for serve, failpoints say
	est    string   // address of the EST listener; empty: none
	muster string   // the program
	log    *logBuffer
	serve  *exec.Cmd
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// count is how often a request for path came.
func (h *head) count(path string) int {
	return strings.Count(h.log.String(), "path="+path+" ")
}

// newHead makes a cluster on loopback and serves it.
func newHead(t testing.TB) *head {
	t.Helper()
	return newHeadAt(t, "127.0.0.1", filepath.Join(bin, "muster"))
}

func newHeadAt(t testing.TB, host, program string) *head {
	t.Helper()
	dir, err := os.MkdirTemp("", "head") // not t.TempDir: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &head{t: t, dir: filepath.Join(dir, "state"), host: host, socket: filepath.Join(dir, "admin"), muster: program}
	var made struct{ Pin string }
	h.json(&made, "init", "--dir", h.dir, "--cluster", "test", "--host", "localhost,127.0.0.1,::1", "--json")
	h.pin = made.Pin
	h.port = freePorts(t, host)
	h.start()
	t.Cleanup(h.kill)
	return h
}

// freePorts finds two ports in a row that nobody listens on.
func freePorts(t testing.TB, host string) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		next, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port+1)))
		l.Close()
		if err == nil {
			next.Close()
			return port
		}
	}
	t.Fatal("no two free ports in a row")
	return 0
}

func (h *head) addr() string { return net.JoinHostPort(h.host, strconv.Itoa(h.port)) }
func (h *head) url() string  { return "https://" + h.addr() }
func (h *head) public(path string) string {
	return "http://" + net.JoinHostPort(h.host, strconv.Itoa(h.port+1)) + path
}

// start runs the daemon until it is ready.
func (h *head) start() {
	h.t.Helper()
	h.startServe()
	h.awaitPath("/readyz")
}

func (h *head) startServe() {
	h.t.Helper()
	h.log = &logBuffer{}
	h.serve = exec.Command(h.muster, "serve", "--dir", h.dir, "--socket", h.socket, "-v",
		"--listen", h.addr(), "--public", net.JoinHostPort(h.host, strconv.Itoa(h.port+1)))
	if h.est != "" {
		h.serve.Args = append(h.serve.Args, "--est", h.est)
	}
	h.serve.Env = append(os.Environ(), h.env...)
	h.serve.Stderr = h.log
	h.serve.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.serve.Start(); err != nil {
		h.t.Fatal(err)
	}
}

// awaitPath waits until the public listener answers for path that all is well.
func (h *head) awaitPath(path string) {
	h.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := http.Get(h.public(path))
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("muster serve is not ready: %v\n%s", err, h.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// kill ends the daemon as a power cut does.
func (h *head) kill() {
	if h.serve != nil {
		h.serve.Process.Kill()
		h.serve.Wait()
		h.serve = nil
	}
}

// await waits for the daemon to end by itself.
func (h *head) await() {
	h.t.Helper()
	done := make(chan struct{})
	go func() { h.serve.Wait(); close(done) }()
	select {
	case <-done:
		h.serve = nil
	case <-time.After(30 * time.Second):
		h.t.Fatal("muster serve did not end")
	}
}

// result is how a program ended.
type result struct {
	status         int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
}

func runProgram(t testing.TB, program string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", program, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// muster runs the head's command line.
func (h *head) run(args ...string) result {
	h.t.Helper()
	return runProgram(h.t, h.muster, append(args, "--socket", h.socket)...)
}

// must is run that has to succeed.
func (h *head) must(args ...string) string {
	h.t.Helper()
	r := h.run(args...)
	if r.status != 0 {
		h.t.Fatalf("muster %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

func (h *head) json(v any, args ...string) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must(args...)), v); err != nil {
		h.t.Fatalf("muster %s: %v", strings.Join(args, " "), err)
	}
}

// record is a node in `certs list --json`.
type record struct {
	Node, State, Level, Serial, EK, Key string
}

func (h *head) record(node string) record {
	h.t.Helper()
	var list struct{ Nodes []record }
	h.json(&list, "certs", "list", "-i", node, "--json")
	return list.Nodes[0]
}

// issues are the certificates by a grant that the journal has for a node, oldest first.
func (h *head) issues(node string) []map[string]string { return h.entries(node, "issue") }

// entries are the fields of a node's entries of one kind in the journal, oldest first.
func (h *head) entries(node, kind string) []map[string]string {
	h.t.Helper()
	var found []map[string]string
	for _, line := range strings.Split(strings.TrimSpace(h.must("log", "-i", node, "--json")), "\n") {
		var e struct {
			Kind   string
			Fields map[string]string
		}
		if line == "" {
			continue
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			h.t.Fatal(err)
		}
		if e.Kind == kind {
			found = append(found, e.Fields)
		}
	}
	return found
}

// node is a machine: a TPM and a root directory.
type node struct {
	t    testing.TB
	name string
	tpm  *testtpm.TPM
	spec string // of the TPM, or of a double in front of it
	root string
	head *head
}

func newNode(t testing.TB, h *head, name string, options ...testtpm.Option) *node {
	t.Helper()
	tpm := testtpm.Start(t, options...)
	return &node{t: t, name: name, tpm: tpm, spec: tpm.Spec(), root: t.TempDir(), head: h}
}

// agent runs muster-agent on the node.
func (n *node) agent(verb string, args ...string) result {
	n.t.Helper()
	all := append([]string{verb, "--tpm", n.spec, "--root", n.root}, args...)
	return runProgram(n.t, filepath.Join(bin, "muster-agent"), all...)
}

// boot is the agent's boot flow against the node's head.
func (n *node) boot(args ...string) result {
	n.t.Helper()
	return n.bootAt(n.head.url(), n.head.pin, args...)
}

func (n *node) bootAt(url, pin string, args ...string) result {
	n.t.Helper()
	return n.agent("run", append([]string{"--head", url, "--ca", pin, "--node", n.name, "--wait", "20s"}, args...)...)
}

// mustBoot is boot that has to succeed.
func (n *node) mustBoot(args ...string) result {
	n.t.Helper()
	r := n.boot(args...)
	if r.status != 0 {
		n.t.Fatalf("muster-agent run: %v\n%s", r, n.head.log)
	}
	return r
}

// renew is the agent's renewal with the node's head.
func (n *node) renew(args ...string) result {
	n.t.Helper()
	return n.agent("renew", append([]string{"--head", n.head.url(), "--ca", n.head.pin, "--wait", "20s"}, args...)...)
}

// mustBeDue boots the node with a certificate that is soon due, and returns when it is.
func (n *node) mustBeDue() {
	n.t.Helper()
	n.head.must("certs", "enable", "-i", n.name, "--life", "1m", "--refresh-at", "99%")
	n.mustBoot()
	n.awaitDue()
}

// awaitDue returns when the head renews the certificate of the node.
func (n *node) awaitDue() {
	n.t.Helper()
	for {
		var list struct {
			Nodes []struct {
				RenewAt time.Time `json:"renew_at"`
			}
		}
		n.head.json(&list, "certs", "show", "-i", n.name, "--json")
		if !time.Now().Before(list.Nodes[0].RenewAt) {
			return
		}
	}
}

// loseRun empties /run, as a power cut does.
func (n *node) loseRun() {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.root, "run")); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) file(name string) []byte {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.root, "run/muster", name))
	if err != nil {
		n.t.Fatal(err)
	}
	return b
}

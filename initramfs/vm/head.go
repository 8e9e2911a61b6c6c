package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Head is a head on this machine's loopback, or where Listen is.
type Head struct {
	Dir     string // state directory's parent; short, for the socket
	Program string // muster
	Listen  string // address
	Name    string // under which nodes know it
	Port    int    // of the node listener; the public one is the next
	Pin     string

	serve *exec.Cmd
	log   lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// NewHead makes a cluster in dir, and serves it on two free ports.
func NewHead(dir, program string) (*Head, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	return NewHeadAt(dir, program, "127.0.0.1", port, HostAddr)
}

// NewHeadAt makes a cluster in dir, and serves it on an address and two ports, for nodes that know the head by
// one of the names. The first is in its URL.
func NewHeadAt(dir, program, listen string, port int, names ...string) (*Head, error) {
	h := &Head{Dir: dir, Program: program, Listen: listen, Name: names[0], Port: port}
	text, err := h.run("init", "--dir", h.state(), "--cluster", "test", "--host", "localhost,127.0.0.1,"+strings.Join(names, ","), "--json")
	if err != nil {
		return nil, err
	}
	var made struct{ Pin string }
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		return nil, err
	}
	h.Pin = made.Pin
	return h, h.Start()
}

func (h *Head) state() string  { return filepath.Join(h.Dir, "state") }
func (h *Head) socket() string { return filepath.Join(h.Dir, "admin") }

// freePorts finds two ports in a row that nobody listens on.
func freePorts() (int, error) {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		next, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		l.Close()
		if err == nil {
			next.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no two free ports in a row")
}

// URL is where nodes find the head.
func (h *Head) URL() string { return "https://" + net.JoinHostPort(h.Name, strconv.Itoa(h.Port)) }

// Words are the head's on a node's kernel command line.
func (h *Head) Words() string { return "muster.head=" + h.URL() + " muster.ca=" + h.Pin }

// address is where one of the listeners is, the nodes' first.
func (h *Head) address(listener int) string {
	return net.JoinHostPort(h.Listen, strconv.Itoa(h.Port+listener))
}

// Start serves until Stop.
func (h *Head) Start() error {
	h.serve = exec.Command(h.Program, "serve", "--dir", h.state(), "--socket", h.socket(), "-v",
		"--listen", h.address(0), "--public", h.address(1))
	h.serve.Stderr = &h.log
	h.serve.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.serve.Start(); err != nil {
		return err
	}
	for range 1000 {
		if h.ready() {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.Stop()
	return fmt.Errorf("the head does not come up:\n%s", h.Log())
}

// ready asks on the caller's own thread, which may be on a network of its own.
func (h *Head) ready() bool {
	conn, err := net.Dial("tcp", h.address(1))
	if err != nil {
		return false
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /readyz HTTP/1.0\r\nHost: %s\r\n\r\n", h.Listen)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	return err == nil && resp.StatusCode == http.StatusOK
}

// Stop ends the daemon.
func (h *Head) Stop() {
	if h.serve != nil {
		h.serve.Process.Kill()
		h.serve.Wait()
		h.serve = nil
	}
}

// Admin runs a command of the administrator's and returns what it prints.
func (h *Head) Admin(args ...string) (string, error) {
	return h.run(append(args, "--socket", h.socket())...)
}

func (h *Head) run(args ...string) (string, error) {
	c := exec.Command(h.Program, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("muster %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// Node is what `certs list --json` says of a node.
type Node struct{ Node, State, Level, Serial, EK, Key string }

// Node looks a node up.
func (h *Head) Node(name string) (Node, error) {
	text, err := h.Admin("certs", "list", "-i", name, "--json")
	if err != nil {
		return Node{}, err
	}
	var list struct{ Nodes []Node }
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Nodes) != 1 {
		return Node{}, fmt.Errorf("certs list -i %s: %v: %s", name, err, text)
	}
	return list.Nodes[0], nil
}

// Log is what the daemon has said, a line for each request that it has answered.
func (h *Head) Log() string { return h.log.String() }

// Asked waits for a request of a path, as the head logs it when it has answered.
func (h *Head) Asked(ctx context.Context, path string) error {
	for !strings.Contains(h.log.String(), "path="+path+" ") {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting for %s:\n%s", ctx.Err(), path, h.log.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

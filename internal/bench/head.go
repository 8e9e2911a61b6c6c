package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"muster/internal/wire"
)

// patience is how long a program may take to start, or to end.
const patience = 30 * time.Second

// initCluster is `muster init`.
func initCluster(ctx context.Context, muster, dir string) error {
	_, err := output(ctx, muster, "init", "--dir", dir, "--cluster", "bench", "--host", "127.0.0.1")
	return err
}

func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, fmt.Errorf("%s %s: %v: %s", filepath.Base(program), args[0], err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

// head is a running `muster serve`.
type head struct {
	cmd    *exec.Cmd
	muster string
	socket string
	addr   string        // of the node listener
	took   time.Duration // from exec to the first answer
	gone   chan struct{} // closed when its standard error is
}

// startHead starts a head over the state in dir and waits for its first answer. before may be
// words to put before its command line; the process must become the head by exec.
func startHead(ctx context.Context, muster, dir string, before ...string) (*head, error) {
	h := &head{muster: muster, socket: filepath.Join(dir, "s"), gone: make(chan struct{})}
	args := append(before, muster, "serve", "--dir", dir, "--socket", h.socket,
		"--listen", "127.0.0.1:0", "--public", "127.0.0.1:0", "--public-url", "http://127.0.0.1:8080")
	h.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	said, err := h.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	if h.addr, err = h.listening(said); err == nil {
		err = bundle(h.addr)
	}
	if h.took = time.Since(began); err != nil {
		h.stop()
		return nil, fmt.Errorf("muster serve: %w", err)
	}
	return h, nil
}

// serving is the line by which the head says where it listens.
var serving = regexp.MustCompile(`msg=serving .*\bnodes=(\S+)`)

// listening reads what the head says until it serves; the rest is thrown away.
func (h *head) listening(said io.Reader) (addr string, err error) {
	found := make(chan string, 1)
	var before bytes.Buffer
	go func() {
		defer close(h.gone)
		defer close(found)
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			if m := serving.FindSubmatch(lines.Bytes()); m != nil {
				found <- string(m[1])
				io.Copy(io.Discard, said)
				return
			}
			before.Write(lines.Bytes())
		}
	}()
	select {
	case addr := <-found:
		if addr == "" {
			return "", fmt.Errorf("it ended: %s", before.Bytes())
		}
		return addr, nil
	case <-time.After(patience):
		return "", fmt.Errorf("it does not listen after %v", patience)
	}
}

// bundle asks for what nodes trust: the cheapest answer there is.
func bundle(addr string) error {
	c, err := dial(addr, source(0), nil, nil)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.do("GET", wire.PathBundle, nil)
	return err
}

func (h *head) pid() int { return h.cmd.Process.Pid }

// stop ends the head as systemd does. Stopping twice is nothing.
func (h *head) stop() {
	h.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(patience, func() { h.cmd.Process.Kill() })
	defer kill.Stop()
	<-h.gone
	h.cmd.Wait()
}

// enable opens a grant for each name, which may be a set.
func (h *head) enable(ctx context.Context, names string) error {
	_, err := output(ctx, h.muster, "certs", "enable", "-i", names, "--for", "24h", "--socket", h.socket)
	return err
}

// pin is what nodes trust this head by.
func (h *head) pin(ctx context.Context) (string, error) {
	b, err := output(ctx, h.muster, "ca", "show", "--json", "--socket", h.socket)
	if err != nil {
		return "", err
	}
	var ca struct{ Pin string }
	return ca.Pin, json.Unmarshal(b, &ca)
}

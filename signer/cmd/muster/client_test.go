package main

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/signer"
)

// TestMute: a socket that systemd holds for a daemon that cannot start ends in status 5, and what was asked of it is
// not there to be done later.
func TestMute(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := &env{socket: socket, patience: 50 * time.Millisecond}
	_, err = call[signer.Changed](t.Context(), e, signer.AdminEnable, signer.EnableRequest{IDs: []string{"n0"}}, nil)
	var f *failure
	if !errors.As(err, &f) || f.status != exitUnreachable || !strings.Contains(f.hint, "journalctl -xeu muster.service") {
		t.Fatalf("%+v", err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(sent), signer.AdminEnable) || strings.Contains(string(sent), "n0") {
		t.Errorf("it sent %q, %v", sent, err)
	}
}

package signer

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestDrain: who was accepted before the head is told to end is answered, though the request comes afterwards.
// With Server.Shutdown alone it is not.
func TestDrain(t *testing.T) {
	for name, c := range map[string]struct {
		at     func(Listeners) net.Listener
		secure bool
	}{
		"node":   {func(on Listeners) net.Listener { return on.Node[1] }, true},
		"public": {func(on Listeners) net.Listener { return on.Public[0] }, false},
		"admin":  {func(on Listeners) net.Listener { return on.Admin[0] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, on := newSite(t), listening(t)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(ctx, on) }()
			addr := c.at(on).Addr()
			conn := accepted(t, addr, c.secure)
			cancel()
			for { // until nobody accepts any more
				other, err := net.Dial(addr.Network(), addr.String())
				if err != nil {
					break
				}
				other.Close()
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-ended:
				t.Errorf("the head has ended: %v", err)
			default:
			}
			if _, err := io.WriteString(conn, knock); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			resp.Body.Close()
			s.must(<-ended)
		})
	}
}

// accepted is a connection that a server has taken and that has not asked for anything.
func accepted(t *testing.T, addr net.Addr, secure bool) net.Conn {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if !secure {
		// A first byte alone proves nothing; a connection that came later and was answered does.
		later, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer later.Close()
		io.WriteString(later, knock)
		if _, err := io.ReadAll(later); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

package signer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// knock is a request for which nothing is read and nothing signed: to it, the node listener's answer, and EST's, is that it
// wants TLS, and the admin socket's that there is no such thing.
const knock = "GET /healthz HTTP/1.1\r\nHost: muster\r\nConnection: close\r\n\r\n"

// Answer asks each listener something and waits for whatever comes, an end of the connection too: like that a
// listener answers which has too many connections. Its error names one that took a connection and said nothing
// within wait: what serves there hangs. One that cannot be connected to says nothing about this head.
//
// The store is not asked, nor what tends certificates and CRL: where they hang, storage does, and a head
// without storage goes on serving what can be read (I8).
func (on Listeners) Answer(ctx context.Context, wait time.Duration) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range slices.Concat(on.Node, on.EST, on.Public, on.Admin) {
		group.Go(func() error { return answer(ctx, l.Addr(), wait) })
	}
	return group.Wait()
}

func answer(ctx context.Context, addr net.Addr, wait time.Duration) error {
	dialer := &net.Dialer{Timeout: wait}
	c, err := dialer.DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return ctx.Err()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	defer stop()
	io.WriteString(c, knock)
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s takes connections and does not answer", addr)
	}
	return nil
}

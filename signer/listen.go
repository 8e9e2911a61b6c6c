package signer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Limits bound what peers that have proved nothing can cost (I10). Zero fields mean the default.
type Limits struct {
	PerAddress int           // connections from one address; default 256. An IPv6 /64 may have half of Total
	Total      int           // connections in all; default 8192
	Queue      time.Duration // how long a request may wait for a processor before it is told busy; default 5 s
}

func (l Limits) orDefault() Limits {
	if l.PerAddress == 0 {
		l.PerAddress = 256
	}
	if l.Total == 0 {
		l.Total = 8192
	}
	if l.Queue == 0 {
		l.Queue = 5 * time.Second
	}
	return l
}

// Deadlines of a connection. A silent peer is gone after headerWait, TLS handshake included.
const (
	headerWait = 5 * time.Second
	bodyWait   = 10 * time.Second
	answerWait = 30 * time.Second
	idleWait   = 30 * time.Second
	maxHeader  = 8 << 10
)

func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerWait,
		ReadTimeout:       bodyWait,
		WriteTimeout:      answerWait,
		IdleTimeout:       idleWait,
		MaxHeaderBytes:    maxHeader,
		Protocols:         protocols,
		ConnState:         lift,
		// What goes wrong on a stranger's connection is the stranger's; it must not fill a log.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Listeners are what a head serves on. Admin and Public may be nil.
type Listeners struct {
	Node   net.Listener // TLS is added here
	Public net.Listener
	Admin  net.Listener // a unix socket
}

// Serve serves until ctx ends, then finishes what is under way, for ten seconds at most.
func (h *Head) Serve(ctx context.Context, on Listeners) error {
	node := newServer(h.NodeHandler(), h.log)
	node.TLSConfig = h.NodeTLS()
	group, ctx := errgroup.WithContext(ctx)
	start := func(srv *http.Server, l net.Listener, serve func(net.Listener) error) {
		group.Go(func() error {
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := srv.Shutdown(last); err != nil {
				return srv.Close() // a peer that does not read its answer must not keep the store
			}
			return nil
		})
	}
	start(node, h.limits.listener(on.Node), func(l net.Listener) error { return node.ServeTLS(l, "", "") })
	if on.Public != nil {
		public := newServer(h.PublicHandler(), h.log)
		start(public, h.limits.listener(on.Public), public.Serve)
	}
	if on.Admin != nil {
		admin := h.adminServer()
		start(admin, on.Admin, admin.Serve)
	}
	group.Go(func() error { return h.tend(ctx) })
	return group.Wait()
}

// limited is a listener that closes what is over the limits at once.
type limited struct {
	net.Listener
	limits Limits

	mu    sync.Mutex
	total int
	from  map[netip.Prefix]int
}

func (l Limits) listener(inner net.Listener) net.Listener {
	return &limited{Listener: inner, limits: l, from: map[netip.Prefix]int{}}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sources(c.RemoteAddr())
		if l.enter(source) {
			conn := &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(source) })}
			conn.left.Store(maxBeforeRequest)
			return conn, nil
		}
		c.Close()
	}
}

func (l *limited) enter(source []netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.limits.Total {
		return false
	}
	for _, p := range source {
		if l.from[p] >= l.limit(p) {
			return false
		}
	}
	l.total++
	for _, p := range source {
		l.from[p]++
	}
	return true
}

// limit is how many connections may come from p. A /64 can be one host with very many addresses, or a
// whole cluster: it gets no more than half of all, and no less.
func (l *limited) limit(p netip.Prefix) int {
	if p.IsSingleIP() || !p.IsValid() {
		return l.limits.PerAddress
	}
	return max(l.limits.PerAddress, l.limits.Total/2)
}

func (l *limited) leave(source []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	for _, p := range source {
		if l.from[p]--; l.from[p] == 0 {
			delete(l.from, p)
		}
	}
}

// maxBeforeRequest is what a connection may send until its first request is read: a handshake with a
// node's certificate, the headers, and the body behind them. crypto/tls alone would take 256 KiB of
// client certificates from anybody.
const maxBeforeRequest = 48 << 10

var errTooMuch = errors.New("too much before the first request")

type limitedConn struct {
	net.Conn
	leave  func()
	left   atomic.Int64 // bytes that may yet come before the first request
	lifted atomic.Bool
}

func (c *limitedConn) Read(p []byte) (int, error) {
	if c.lifted.Load() {
		return c.Conn.Read(p)
	}
	left := c.left.Load()
	if left <= 0 {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(p[:min(len(p), int(left))])
	c.left.Add(int64(-n))
	return n, err
}

// lift ends the limit of a connection whose first request has come: from here on the server's own
// limits hold, for each request.
func lift(c net.Conn, state http.ConnState) {
	if state != http.StateActive {
		return
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(*limitedConn); ok {
		l.lifted.Store(true)
	}
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// sources are what a connection counts for: its address and, in IPv6, the /64 too.
func sources(a net.Addr) []netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return []netip.Prefix{{}}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	all := []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
	if addr.Is6() {
		all = append(all, netip.PrefixFrom(addr, 64).Masked())
	}
	return all
}

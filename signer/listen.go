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
	Total      int           // connections in all, of all listeners together; default 8192
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

// Listeners are what a head serves on. There may be none for all but Node.
type Listeners struct {
	Node   []net.Listener // TLS is added here
	EST    []net.Listener // and here
	Public []net.Listener
	Admin  []net.Listener // unix sockets
}

// Serve serves until ctx ends, then finishes what is under way, for ten seconds at most. A connection that
// nobody has accepted is left to whoever else holds the listener.
func (h *Head) Serve(ctx context.Context, on Listeners) error {
	node, public, admin := newServer(h.NodeHandler(), h.log), newServer(h.PublicHandler(), h.log), h.adminServer()
	node.TLSConfig = h.NodeTLS()
	group, ctx := errgroup.WithContext(ctx)
	start := func(srv *http.Server, listeners []net.Listener, serve func(net.Listener) error) {
		arriving := watchArrivals(srv)
		var accepting sync.WaitGroup
		for _, l := range listeners {
			accepting.Add(1)
			group.Go(func() error {
				defer accepting.Done()
				if err := serve(l); ctx.Err() == nil {
					return fmt.Errorf("serve %s: %w", l.Addr(), err)
				}
				return nil
			})
		}
		group.Go(func() error {
			<-ctx.Done()
			for _, l := range listeners {
				l.Close()
			}
			accepting.Wait()
			return arriving.drain(srv)
		})
	}
	start(node, h.limited(on.Node), func(l net.Listener) error { return node.ServeTLS(l, "", "") })
	if len(on.EST) > 0 {
		est := newServer(h.ESTHandler(), h.log)
		est.TLSConfig = h.ESTTLS()
		start(est, h.limited(on.EST), func(l net.Listener) error { return est.ServeTLS(l, "", "") })
	}
	start(public, h.limited(on.Public), public.Serve)
	start(admin, on.Admin, admin.Serve)
	group.Go(func() error { return h.tend(ctx) })
	group.Go(func() error { return h.keepWitness(ctx) })
	return group.Wait()
}

// Reload takes other limits for connections, from the next one on, and tries at once what is due, and a CRL,
// which waits for crlPause where there was one just now.
func (h *Head) Reload(limits Limits) {
	h.gate.limit(limits.orDefault())
	h.crlDue()
}

// limited puts the head's gate before listeners.
func (h *Head) limited(listeners []net.Listener) []net.Listener {
	var through []net.Listener
	for _, l := range listeners {
		through = append(through, &limited{l, h.gate})
	}
	return through
}

// gate counts connections, of all listeners together: they share the descriptors of one process.
type gate struct {
	mu     sync.Mutex
	limits Limits
	total  int
	from   map[netip.Prefix]int
}

func newGate(limits Limits) *gate { return &gate{limits: limits, from: map[netip.Prefix]int{}} }

func (g *gate) limit(limits Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limits = limits
}

// limited is a listener that closes what is over the limits at once.
type limited struct {
	net.Listener
	gate *gate
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sources(c.RemoteAddr())
		if l.gate.enter(source) {
			conn := &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.gate.leave(source) })}
			conn.left.Store(maxBeforeRequest)
			return conn, nil
		}
		c.Close()
	}
}

func (g *gate) enter(source []netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.limits.Total {
		return false
	}
	for _, p := range source {
		if g.from[p] >= g.most(p) {
			return false
		}
	}
	g.total++
	for _, p := range source {
		g.from[p]++
	}
	return true
}

// most is how many connections may come from p. A /64 can be one host with very many addresses, or a
// whole cluster: it gets no more than half of all, and no less.
func (g *gate) most(p netip.Prefix) int {
	if p.IsSingleIP() || !p.IsValid() {
		return g.limits.PerAddress
	}
	return max(g.limits.PerAddress, g.limits.Total/2)
}

func (g *gate) leave(source []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	for _, p := range source {
		if g.from[p]--; g.from[p] == 0 {
			delete(g.from, p)
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

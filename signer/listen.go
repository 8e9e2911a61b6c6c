package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Limits bound what peers that have proved nothing can cost (I10). Zero fields mean the default.
type Limits struct {
	PerAddress int           // connections from one IPv4 address or IPv6 /64; default 256
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
			return srv.Shutdown(last)
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
		source := network(c.RemoteAddr())
		if l.enter(source) {
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(source) })}, nil
		}
		c.Close()
	}
}

func (l *limited) enter(source netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.limits.Total || l.from[source] >= l.limits.PerAddress {
		return false
	}
	l.total++
	l.from[source]++
	return true
}

func (l *limited) leave(source netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.from[source]--; l.from[source] == 0 {
		delete(l.from, source)
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// network is what one peer can have many addresses of: a host in IPv4, a /64 in IPv6.
func network(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

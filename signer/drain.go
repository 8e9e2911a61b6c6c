package signer

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// drainWait is how long a head finishes what is under way when it ends.
const drainWait = 10 * time.Second

// arrivals are the connections that were accepted and whose first request no handler has yet. Server.Shutdown
// drops a request whose headers it reads after its call, so that it must not be called while there are any.
type arrivals struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

type connKey struct{}

// watchArrivals must be called before srv serves.
func watchArrivals(srv *http.Server) *arrivals {
	a := &arrivals{conns: map[net.Conn]bool{}}
	state, about, handler := srv.ConnState, srv.ConnContext, srv.Handler
	srv.ConnState = func(c net.Conn, now http.ConnState) {
		switch now {
		case http.StateNew:
			a.set(c, true)
		case http.StateClosed, http.StateHijacked:
			a.set(c, false)
		}
		state(c, now)
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if about != nil {
			ctx = about(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.set(r.Context().Value(connKey{}).(net.Conn), false)
		handler.ServeHTTP(w, r)
	})
	return a
}

func (a *arrivals) set(c net.Conn, arriving bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if arriving {
		a.conns[c] = true
	} else {
		delete(a.conns, c)
	}
}

func (a *arrivals) any() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns) > 0
}

// drain ends srv, whose listeners are closed and accept no more. Who was accepted is answered, in drainWait at
// most; a peer that says nothing, or does not read its answer, must not keep the store.
func (a *arrivals) drain(srv *http.Server) error {
	last, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	srv.SetKeepAlivesEnabled(false)
	poll := time.NewTicker(5 * time.Millisecond) // as Shutdown itself does
	defer poll.Stop()
	for a.any() && last.Err() == nil {
		select {
		case <-poll.C:
		case <-last.Done():
		}
	}
	if err := srv.Shutdown(last); err != nil {
		return srv.Close()
	}
	return nil
}

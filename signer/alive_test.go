package signer

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/signer/store"
)

// listening are listeners of all kinds.
func listening(t *testing.T) Listeners {
	t.Helper()
	var on Listeners
	for _, to := range []*[]net.Listener{&on.Node, &on.Node, &on.Public, &on.EST} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		*to = append(*to, l)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	on.Admin = append(on.Admin, l)
	return on
}

// serveOn serves until the test ends.
func (s *site) serveOn(t *testing.T, on Listeners) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, on) }()
	t.Cleanup(func() {
		cancel()
		s.must(<-done)
	})
}

// TestAnswer: a head that serves answers on each listener, whatever its store, its clock and its limits say;
// and one that does not serve one of them is told from it.
func TestAnswer(t *testing.T) {
	for name, spoil := range map[string]func(*site){
		"well":             func(*site) {},
		"store closed":     func(s *site) { s.must(s.Head.store.Close()) },
		"no certificate":   func(s *site) { s.server.Store(nil) },
		"clock back":       func(s *site) { s.floor.Store(1 << 40) },
		"full":             func(s *site) { s.gate.limits.Total = 0 },
		"all at work":      func(s *site) { s.working = nil },
		"no store at once": func(s *site) { s.Head.store = hung{s.Head.store} },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			spoil(s)
			on := listening(t)
			s.serveOn(t, on)
			s.must(on.Answer(t.Context(), time.Minute))
		})
	}
	for name, of := range map[string]func(*Listeners) *[]net.Listener{
		"node": func(l *Listeners) *[]net.Listener { return &l.Node }, "public": func(l *Listeners) *[]net.Listener { return &l.Public },
		"admin": func(l *Listeners) *[]net.Listener { return &l.Admin }, "est": func(l *Listeners) *[]net.Listener { return &l.EST },
	} {
		t.Run("control: "+name+" hangs", func(t *testing.T) {
			t.Parallel()
			s, on := newSite(t), listening(t)
			served := on
			*of(&served) = (*of(&served))[1:]
			s.serveOn(t, served)
			hangs := (*of(&on))[0].Addr().String()
			if err := on.Answer(t.Context(), 3*time.Second); err == nil || !strings.Contains(err.Error(), hangs) {
				t.Errorf("%s hangs, and the answer is %v", hangs, err)
			}
		})
	}
}

// hung is a store whose disk never answers.
type hung struct{ store.Store }

func (hung) Get(ctx context.Context, _ string) (store.Item, error) {
	<-ctx.Done()
	return store.Item{}, ctx.Err()
}

func (hung) Commit(ctx context.Context, _ store.Tx) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestAnswerOfNobody: that a listener cannot be reached says nothing about the head.
func TestAnswerOfNobody(t *testing.T) {
	on := listening(t)
	for _, l := range append(on.Node, on.Public[0], on.Admin[0], on.EST[0]) {
		l.Close()
	}
	if err := on.Answer(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
}

// TestSeveralAddresses: one gate counts the connections of all listeners, since they share descriptors (I10).
func TestSeveralAddresses(t *testing.T) {
	s, on := newSite(t), listening(t)
	s.gate.limits.PerAddress = 2
	s.serveOn(t, on)
	dial := func(i int) error {
		c, err := tls.Dial("tcp", on.Node[i].Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	for i, open := range []bool{true, true, false, false} {
		if err := dial(i % 2); (err == nil) != open {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	s.Reload(Limits{PerAddress: 3})
	for i, open := range []bool{true, false} {
		if err := dial(i); (err == nil) != open {
			t.Errorf("after the reload, connection %d: %v", i, err)
		}
	}
	health := func() error {
		r, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + on.Public[0].Addr().String() + "/healthz")
		if err == nil {
			r.Body.Close()
		}
		return err
	}
	if health() == nil {
		t.Error("the public listener has room of its own")
	}
	s.Reload(Limits{PerAddress: 4})
	if err := health(); err != nil {
		t.Errorf("control: %v", err)
	}
}

package signer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/signer/store"
)

func named(names ...string) func(*EnableRequest) {
	return func(r *EnableRequest) {
		for _, name := range names {
			if strings.ContainsAny(name, ":") || strings.HasPrefix(name, "10.") {
				r.IP = append(r.IP, name)
			} else {
				r.DNS = append(r.DNS, name)
			}
		}
	}
}

func (s *site) addHost(name string) error {
	_, err := s.adminHost(context.Background(), HostRequest{Add: []string{name}}, noStream())
	return err
}

// TestNamesOfClients: what an EST client's certificate is good for is no node's and no head's, whoever comes first and
// however it is written.
func TestNamesOfClients(t *testing.T) {
	client := func(name string, also ...string) func(*site) error {
		return func(s *site) error { _, err := s.tryInvite(name, named(also...)); return err }
	}
	node := func(name string) func(*site) error { return func(s *site) error { return s.tryEnable(name) } }
	inventory := func(name string) func(*site) error {
		return func(s *site) error { _, err := s.tryImport("name\n" + name + "\n"); return err }
	}
	head := func(name string) func(*site) error { return func(s *site) error { return s.addHost(name) } }
	for _, c := range []struct {
		what       string
		one, other func(*site) error
		both       bool
	}{
		{"a node", client("web", "n5"), node("n5"), false},
		{"a node in other letters", client("web", "N5"), node("n5"), false},
		{"a node in capitals", client("web", "n5"), node("N5"), false},
		{"a node of the inventory", client("web", "n5"), inventory("n5"), false},
		{"a node of the inventory in capitals", client("web", "n5"), inventory("N5"), false},
		{"a client like a node", client("N0"), node("n0"), false},
		{"a client like a node in capitals", client("n0"), node("N0"), false},
		{"a head", client("web", "head7"), head("head7"), false},
		{"a head in other letters", client("web", "head7"), head("HEAD7"), false},
		{"a client like a head", client("Head7"), head("head7"), false},
		{"a head's address", client("web", "10.0.0.7"), head("10.0.0.7"), false},
		{"a head's address, written long", client("web", "::ffff:10.0.0.7"), head("10.0.0.7"), false},
		{"a head's address in other letters", client("web", "2001:db8::a"), head("2001:0DB8::A"), false},
		{"a client", client("web", "mail"), client("mail"), false},
		{"a client in other letters", client("web"), client("WEB"), false},
		{"what two clients share", client("web1", "www"), client("web2", "www", "10.0.0.7"), true},
		{"a client twice", client("web", "www", "WWW", "web"), client("web", "www"), true},
		{"a node that is a head", node("n0"), head("N0"), true},
		{"others", client("web", "www"), node("n0"), true},
	} {
		for order, two := range map[string][]func(*site) error{"": {c.one, c.other}, ", the other way round": {c.other, c.one}} {
			t.Run(c.what+order, func(t *testing.T) {
				s := newSite(t)
				s.must(two[0](s))
				before := s.state()
				err := two[1](s)
				var no *AdminError
				if c.both {
					s.must(err)
				} else if !errors.As(err, &no) || no.Kind != KindPolicy || no.Hint == "" {
					t.Errorf("got %v", err)
				} else {
					equal(t, "keys", len(s.state()), len(before))
				}
			})
		}
	}
}

// TestNamesAreGivenUp when no certificate has them any more, and by nodes too.
func TestNamesAreGivenUp(t *testing.T) {
	s := newSite(t)
	s.enable("N1")
	s.enable("n1")
	p := s.invite("web", named("head7", "www"))
	s.invite("web2", named("www"))
	cert := given(t, s.simple("web", p, pkcs10(t, softKey(t))))
	s.invite("web", named("www"))
	refused := func(what string, err error) {
		t.Helper()
		var no *AdminError
		if !errors.As(err, &no) || no.Kind != KindPolicy {
			t.Errorf("%s: got %v", what, err)
		}
	}
	refused("while a certificate has it", s.addHost("head7"))
	given(t, s.resimple(cert, pkcs10(t, softKey(t))))
	s.invite("web")
	refused("while the old certificate has it", s.addHost("head7"))
	s.revoke(RevokeRequest{IDs: []string{"web"}})
	refused("before the client is enabled again", s.addHost("head7"))
	s.invite("web", again)
	s.must(s.addHost("head7"))
	_, err := s.tryInvite("web", named("head7"))
	refused("a head's name", err)

	_, err = s.tryInvite("n1")
	refused("a node's name", err)
	s.remove("n1")
	_, err = s.tryInvite("n1")
	refused("the name of N1", err)
	s.remove("N1", "web")
	refused("while web2 has it", s.addHost("www"))
	s.remove("web2")
	s.must(s.addHost("www"))
	s.invite("n1", named("web"))
	s.remove("n1")
	for key := range s.state() {
		if strings.HasPrefix(key, prefixSAN) {
			t.Errorf("%s is left", key)
		}
	}

	_, err = s.tryInvite("many", named(strings.Fields(strings.Repeat("www ", maxHostNames+1))...))
	var no *AdminError
	if !errors.As(err, &no) || no.Kind != KindUsage {
		t.Errorf("too many names: got %v", err)
	}
	s.must(s.tryEnable("n9", named(strings.Fields(strings.Repeat("www ", maxHostNames+1))...)))
}

// TestNamesRace: whoever decides before another has committed finds out.
func TestNamesRace(t *testing.T) {
	s := newSite(t)
	decide := func(name string, option func(*EnableRequest)) func() error {
		item, err := s.store.Get(t.Context(), prefixSlot+name)
		s.must(err)
		item.Key = prefixSlot + name
		req := EnableRequest{For: time.Hour}
		option(&req)
		e, err := s.Head.enable(t.Context(), item, req, s.clock.now())
		s.must(err)
		return func() error { return s.store.Commit(t.Context(), e.joined(store.Tx{}, item)) }
	}
	node := func(*EnableRequest) {}
	client := func(names ...string) func(*EnableRequest) {
		return func(r *EnableRequest) { r.Password = true; named(names...)(r) }
	}
	for i, c := range []struct {
		one    string
		how    func(*EnableRequest)
		other  string
		others func(*EnableRequest)
	}{
		{"a0", client("n0"), "n0", node},
		{"a1", client("n1"), "N1", node},
		{"A2", client(), "a2", node},
		{"a3", client("b3"), "b3", client()},
		{"a4", client(), "A4", client()},
	} {
		for j := range 2 {
			one, other := decide(c.one, c.how), decide(c.other, c.others)
			if j == 1 {
				one, other = other, one
			}
			s.must(one())
			if err := other(); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%d: got %v", i, err)
			}
			for _, name := range []string{c.one, c.other} {
				if known, _ := s.knows(t.Context(), name); known {
					s.remove(name)
				}
			}
		}
	}
	late := decide("web", client("head7"))
	s.must(s.addHost("head7"))
	if err := late(); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v", err)
	}
	var wg sync.WaitGroup
	for i := range 10 {
		name := fmt.Sprintf("head8%d", i)
		var asHost, asHead error
		wg.Go(func() { _, asHost = s.tryInvite("web", named(name)) })
		wg.Go(func() { asHead = s.addHost(strings.ToUpper(name)) })
		wg.Wait()
		if asHost == nil && asHead == nil {
			t.Errorf("%s is a client's and a head's", name)
		}
	}
}

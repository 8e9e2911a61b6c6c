package signer

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestHosts: the head's certificate names what the administrator says, from the next handshake on and after a
// restart.
func TestHosts(t *testing.T) {
	s := newSite(t)
	change := func(req HostRequest) error {
		_, err := s.adminHost(context.Background(), req, noStream())
		return err
	}
	named := func() string {
		leaf := s.server.Load().Leaf
		var all []string
		all = append(all, leaf.DNSNames...)
		for _, ip := range leaf.IPAddresses {
			all = append(all, ip.String())
		}
		return strings.Join(all, ",")
	}
	equal(t, "names", named(), "head,127.0.0.1")
	s.must(change(HostRequest{Add: []string{"head2.example.org", "2001:db8::1", "head"}}))
	equal(t, "names", named(), "head,head2.example.org,127.0.0.1,2001:db8::1")
	s.must(change(HostRequest{Remove: []string{"head", "127.0.0.1"}}))
	s.restart()
	equal(t, "names", named(), "head2.example.org,2001:db8::1")
	equal(t, "common name", s.server.Load().Leaf.Subject.CommonName, "head2.example.org")

	before := len(s.journal())
	for what, req := range map[string]HostRequest{
		"no host":     {Add: []string{"a b"}},
		"the last":    {Remove: []string{"head2.example.org", "2001:db8::1"}},
		"not there":   {Remove: []string{"head"}},
		"nearly one":  {Add: []string{"10.0.0.999"}},
		"nothing new": {Add: []string{"head2.example.org"}},
	} {
		err := change(req)
		var e *AdminError
		if refused := errors.As(err, &e) && e.Hint != ""; refused != (what != "nothing new") {
			t.Errorf("%s: %v", what, err)
		}
	}
	equal(t, "journal entries", len(s.journal()), before)

	// A head that could not sign at that moment makes up for it.
	s.must(change(HostRequest{Add: []string{"late"}}))
	old := s.server.Load()
	s.must(change(HostRequest{Remove: []string{"late"}}))
	equal(t, "outdated", s.outdated(old), true)
	equal(t, "outdated", s.outdated(s.server.Load()), false)
}

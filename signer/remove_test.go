package signer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"muster/internal/wire"
	"muster/signer/store"
)

func (s *site) remove(ids ...string) *Changed {
	s.t.Helper()
	done, err := s.adminRemove(context.Background(), RemoveRequest{IDs: ids}, noStream())
	s.must(err)
	return done.(*Changed)
}

// TestRemove: what a node had ends, and name, board and TPM may be another's; its keys never.
func TestRemove(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.imports("name,mac,uuid\nn1," + mac1 + "," + uuid1 + "\nn2,,\n")
	past, first, second := c.nodeKey(), c.nodeKey(), c.nodeKey()
	s.enable("n1")
	over := certificate(t, s.enrol(past, "n1").Cert) // never used: it ends when another is made
	s.enable("n1")
	used := certificate(t, s.enrol(first, "n1").Cert)
	equal(t, "first use", use(s.Head, used), "")
	s.enable("n1")
	unused := certificate(t, s.enrol(second, "n1").Cert)
	answer := s.answered(second, "n1")

	done := s.remove(mac1)
	equal(t, "removed", done.Removed, "n1")
	for key := range s.state() {
		for _, prefix := range []string{prefixSlot + "n1", prefixEK, prefixKey, prefixMAC, prefixUUID} {
			if strings.HasPrefix(key, prefix) {
				t.Errorf("%s is left", key)
			}
		}
	}
	wantListed(t, s.crlServed(), over, used, unused)
	for _, e := range s.crlServed().RevokedCertificateEntries {
		if n := e.SerialNumber; n.Cmp(used.SerialNumber) == 0 || n.Cmp(unused.SerialNumber) == 0 {
			equal(t, "reason", e.ReasonCode, int(cessationOfOperation))
		}
	}
	equal(t, "use", use(s.Head, used), wire.NotEnabled)
	equal(t, "use of the other", use(s.Head, unused), wire.NotEnabled)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	if why := s.seen.of("n1"); why.last != nil && why.last.Reason != whyUnknown && why.last.Reason != whyStale {
		t.Errorf("of n1 there is still %+v", why.last)
	}

	// Another board with the old MAC takes the name: the old certificate does not come back to life.
	s.imports("name,mac\nn1," + mac1 + "\n")
	s.enable("n1")
	equal(t, "use", use(s.Head, used), wire.NotEnabled)
	s.enrol(aStandin(t), "n1")
	equal(t, "use", use(s.Head, used), wire.NotEnabled)

	// The board becomes another node, with none of the keys that it had.
	s.enable("n2")
	for _, k := range []*key{past, first, second} {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n2")), wire.KeyBarred)
	}
	s.enrol(c.nodeKey(), "n2")
	s.wellBound()

	// A serial number of a removed node is known, and has ended.
	one := s.revoke(RevokeRequest{Serial: serialHex(used.SerialNumber)})
	equal(t, "revoked once more", one.Revoked, "")
}

// TestRemoveManyKeys: a node may have had more keys than one transaction takes.
func TestRemoveManyKeys(t *testing.T) {
	s := newSite(t)
	s.enable("n1")
	for i := range 4 {
		var tx store.Tx
		for j := range 100 {
			tx.Puts = append(tx.Puts, store.Put{Key: fmt.Sprintf("%s%064x", prefixKey, 100*i+j), Value: []byte("n1")})
		}
		s.must(s.store.Commit(context.Background(), tx))
	}
	s.remove("n1")
	n := 0
	for key := range s.state() {
		if strings.HasPrefix(key, prefixKey) {
			t.Fatalf("%s is left", key)
		}
		if strings.HasPrefix(key, prefixBarred) {
			n++
		}
	}
	equal(t, "barred keys", n, 400)
}

// TestKeysOfARacingChange: a node that takes another key just before it is removed, or its board replaced, leaves no key
// behind that could be certified again.
func TestKeysOfARacingChange(t *testing.T) {
	for kind, do := range map[string]func(*site) error{
		"remove": func(s *site) error {
			_, err := s.adminRemove(context.Background(), RemoveRequest{IDs: []string{"n0"}}, noStream())
			return err
		},
		"replace": func(s *site) error { return s.replaceBoard("n0") },
	} {
		t.Run(kind, func(t *testing.T) {
			s, c := newSite(t), aChip(t)
			first, second := c.nodeKey(), c.nodeKey()
			old, inner := s.active(first, "n0"), s.Head.store
			s.Head.store = &before{inner, func(tx store.Tx) {
				if slices.ContainsFunc(tx.Events, func(e store.Event) bool { return e.Kind == kind }) {
					s.Head.store = inner
					cert := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(old, second)).Cert)
					equal(t, "first use", use(s.Head, cert), "")
				}
			}}
			s.must(do(s))
			state := s.state()
			for what, k := range map[string]*key{"first": first, "second": second} {
				if _, barred := state[prefixBarred+k.hash()]; !barred {
					t.Errorf("the %s key is not barred", what)
				}
				if name, bound := state[prefixKey+k.hash()]; bound {
					t.Errorf("the %s key is still bound to %s", what, name)
				}
			}
		})
	}
}

// TestRemoveUnknown: one unknown node, and none is removed.
func TestRemoveUnknown(t *testing.T) {
	s := newSite(t)
	s.enable("n[1-2]")
	if _, err := s.adminRemove(context.Background(), RemoveRequest{IDs: []string{"n[1-3]"}}, noStream()); err == nil {
		t.Error("removed n3")
	}
	s.record("n1")
	s.record("n2")
}

// TestGroup: nodes join and leave, and a group that nobody belongs to is none.
func TestGroup(t *testing.T) {
	s, ctx := newSite(t), context.Background()
	s.enable("n[1-3]")
	change := func(req GroupRequest) *Changed {
		t.Helper()
		done, err := s.adminGroup(ctx, req, noStream())
		s.must(err)
		return done.(*Changed)
	}
	equal(t, "joined", change(GroupRequest{Group: "gpu", IDs: []string{"n[1-2]"}}).Altered, "n[1-2]")
	done := change(GroupRequest{Group: "gpu", IDs: []string{"n[2-3]"}})
	equal(t, "joined", done.Altered, "n3")
	equal(t, "was there", done.Unchanged, "n2")
	equal(t, "left", change(GroupRequest{Group: "gpu", IDs: []string{"@gpu!n1"}, Leave: true}).Altered, "n[2-3]")
	equal(t, "left", change(GroupRequest{Group: "gpu", All: true, Leave: true}).Altered, "n1")
	for _, req := range []GroupRequest{{Group: "a b", All: true}, {Group: "*", All: true}, {Group: "gpu", IDs: []string{"@gpu"}}, {Group: "gpu"}} {
		if _, err := s.adminGroup(ctx, req, noStream()); err == nil {
			t.Errorf("%+v was done", req)
		}
	}
}

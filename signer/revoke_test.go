package signer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

func (s *site) revoke(req RevokeRequest) *Changed {
	s.t.Helper()
	done, err := s.tryRevoke(req)
	s.must(err)
	return done
}

func (s *site) tryRevoke(req RevokeRequest) (*Changed, error) {
	done, err := s.adminRevoke(context.Background(), req, noStream())
	changed, _ := done.(*Changed)
	return changed, err
}

// again is `enable --again`.
func again(r *EnableRequest) { r.Again = true }

// TestRevoke: the certificate and the one before it end, the key is barred, and nothing comes back but by
// --again with another key of the same TPM.
func TestRevoke(t *testing.T) {
	s, c := newSite(t), aChip(t)
	first, other := c.nodeKey(), c.nodeKey()
	s.enable("n0")
	used := certificate(t, s.enrol(first, "n0").Cert)
	equal(t, "first use", use(s.Head, used), "")
	s.enable("n0")
	unused := certificate(t, s.enrol(other, "n0").Cert)

	done := s.revoke(RevokeRequest{IDs: []string{"n0"}, Reason: "keyCompromise"})
	equal(t, "revoked", done.Revoked, "n0")
	wantListed(t, s.crlServed(), used, unused)
	for _, e := range s.crlServed().RevokedCertificateEntries {
		equal(t, "reason", e.ReasonCode, int(keyCompromise))
	}
	equal(t, "use", use(s.Head, used), wire.Revoked)
	equal(t, "use of the other", use(s.Head, unused), wire.Revoked)
	for _, k := range []*key{first, other} {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Revoked)
	}
	equal(t, "again", s.revoke(RevokeRequest{IDs: []string{"n0"}}).Unchanged, "n0")
	if err := s.tryEnable("n0"); err == nil {
		t.Error("enable without --again undoes a revocation")
	}
	s.restart()
	equal(t, "after a restart", use(s.Head, used), wire.Revoked)

	s.enable("n0", again)
	equal(t, "the old certificate", use(s.Head, used), wire.NotEnabled)
	for _, k := range []*key{first, other} {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.KeyBarred)
	}
	third := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	equal(t, "first use", use(s.Head, third), "")
	wantListed(t, s.crlNow(), used, unused)
}

// TestRevokeAnswerInFlight: a challenge that was answered rightly before the revocation is worth nothing after it.
func TestRevokeAnswerInFlight(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	s.enable("n0")
	s.enrol(k, "n0")
	answer := s.answered(k, "n0")
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	s.enable("n0", again)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
}

// TestRevokedKeyUnderAnotherName: what is barred is the key, not the name.
func TestRevokedKeyUnderAnotherName(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	s.enable("n0")
	s.enrol(k, "n0")
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	for _, key := range []string{prefixEK + k.ekHash(), prefixKey + k.hash()} { // as if the board had been freed
		s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{key}}))
	}
	s.enable("n1")
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n1")), wire.KeyBarred)
}

func TestRevokeSerial(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	used := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	equal(t, "first use", use(s.Head, used), "")
	s.enable("n0")
	next := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)

	old, last := serialHex(used.SerialNumber), serialHex(next.SerialNumber)
	would := s.revoke(RevokeRequest{Serial: old, DryRun: true})
	equal(t, "dry run", would.Serial+" "+would.Keeps, old+" "+last)
	equal(t, "use after a dry run", use(s.Head, used), "")
	done := s.revoke(RevokeRequest{Serial: strings.ToUpper(old[:4] + ":" + old[4:])})
	equal(t, "done", done.Serial+" "+done.Keeps+" "+done.Revoked, old+" "+last+" ")
	equal(t, "use of the old one", use(s.Head, used), wire.NotEnabled)
	equal(t, "use of the new one", use(s.Head, next), "")
	wantListed(t, s.crlServed(), used)
	equal(t, "twice", s.revoke(RevokeRequest{Serial: old}).Unchanged, "n0")

	equal(t, "dry run of the node's own", s.revoke(RevokeRequest{Serial: last, DryRun: true}).Serial, "")
	equal(t, "the node", s.revoke(RevokeRequest{Serial: last}).Revoked, "n0")
	equal(t, "use of the new one", use(s.Head, next), wire.Revoked)
	wantListed(t, s.crlServed(), used, next)

	head := s.server.Load().Leaf
	s.revoke(RevokeRequest{Serial: serialHex(head.SerialNumber)})
	equal(t, "twice", s.revoke(RevokeRequest{Serial: serialHex(head.SerialNumber)}).Unchanged, "head")
	wantListed(t, s.crlServed(), used, next, head)
}

// TestRevokeRefusals: nothing changes, and the way out is named.
func TestRevokeRefusals(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	for what, test := range map[string]struct {
		req  RevokeRequest
		kind ErrorKind
	}{
		"nobody":            {RevokeRequest{}, KindUsage},
		"both":              {RevokeRequest{IDs: []string{"n0"}, Serial: "1"}, KindUsage},
		"unknown node":      {RevokeRequest{IDs: []string{"n[0-1]"}}, KindNone},
		"unknown serial":    {RevokeRequest{Serial: "12ab"}, KindNone},
		"no serial":         {RevokeRequest{Serial: "n0"}, KindUsage},
		"serial of nothing": {RevokeRequest{Serial: "0:0"}, KindUsage},
		"a hold":            {RevokeRequest{IDs: []string{"n0"}, Reason: "certificateHold"}, KindUsage},
	} {
		_, err := s.tryRevoke(test.req)
		var e *AdminError
		if !errors.As(err, &e) || e.Kind != test.kind || e.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	equal(t, "state", s.record("n0").state(s.clock.now()), StateOpen)
}

// TestRevokeWithoutCRL: a head that may not sign revokes all the same, and says what is missing.
func TestRevokeWithoutCRL(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.clock.move(-time.Hour)
	_, err := s.tryRevoke(RevokeRequest{IDs: []string{"n0"}})
	var e *AdminError
	if !errors.As(err, &e) || e.Kind != KindPartly {
		t.Errorf("got %v", err)
	}
	equal(t, "use", use(s.Head, cert), wire.Revoked)
	wantListed(t, s.crlServed())
	s.clock.move(time.Hour)
	wantListed(t, s.crlNow(), cert)
}

// TestPrune: records of certificates go when they are long over, and not before.
func TestPrune(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	serial := serialHex(cert.SerialNumber)
	has := func(key string) bool {
		item, err := s.store.Get(context.Background(), key)
		s.must(err)
		return item.Revision != 0
	}
	for _, step := range []struct {
		move time.Duration
		want bool
	}{{nodeLife + keptFor - time.Minute, true}, {2 * time.Minute, false}} {
		s.clock.move(step.move)
		s.must(s.prune(context.Background(), s.clock.now()))
		equal(t, "cert", has(prefixCert+serial), step.want)
		equal(t, "ended", has(prefixEnded+serial), step.want)
	}
	if !has(prefixBarred + s.record("n0").Cert.Key) {
		t.Error("the bar went too")
	}
}

// TestPruneKeys: a key is free when the last certificate for it is long over, unless that may be renewed.
func TestPruneKeys(t *testing.T) {
	s, c := newSite(t), aChip(t)
	f := s.failing()
	ctx := context.Background()
	a, b := c.nodeKey(), c.nodeKey()
	use(s.Head, certificate(t, decoded[wire.Enrolled](t, s.rekeyed(s.active(a, "n0"), b)).Cert))
	bound := func(k *key) bool {
		item, err := s.store.Get(ctx, prefixKey+k.hash())
		s.must(err)
		return item.Revision != 0
	}
	s.must(s.prune(ctx, s.clock.now()))
	equal(t, "of a certificate that has ended, bound", bound(a), true)
	s.clock.move(nodeLife + keptFor + time.Minute)
	for _, damaged := range []string{prefixSlot + "n0", prefixKey + b.hash()} {
		f.damaged = damaged
		s.must(s.prune(ctx, s.clock.now()))
		equal(t, "with a damaged record, bound", bound(a), true)
	}
	f.damaged = ""
	// Meanwhile it gets a certificate.
	f.before = func(tx store.Tx) error {
		if slices.Contains(tx.Deletes, prefixKey+a.hash()) {
			f.before = nil
			s.enable("n0")
			s.enrol(a, "n0")
		}
		return nil
	}
	s.must(s.prune(ctx, s.clock.now()))
	equal(t, "which got a certificate meanwhile, bound", bound(a), true)
	s.enrol(b, "n0")
	s.clock.move(2 * (nodeLife + keptFor))
	s.must(s.prune(ctx, s.clock.now()))
	equal(t, "of no certificate, bound", bound(a), false)
	equal(t, "of one that may be renewed, bound", bound(b), true)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(a, "n0")), wire.Refused)
	s.enrol(b, "n0")
}

// TestRevokedOnAnotherHead: what one head revokes, another over the same store refuses on the next request, on a
// connection that was open before.
func TestRevokedOnAnotherHead(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	s.enable("n0")
	cert := s.enrol(k, "n0").Cert
	here := s.Head
	other, err := s.another()
	s.must(err)
	s.Head = other
	client := s.serve(t).client(t, cert, k.Signer())
	equal(t, "before", client.get(wire.PathSelf).code(), "")
	s.Head = here
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	equal(t, "after", client.get(wire.PathSelf).code(), wire.Revoked)
	equal(t, "over the same connection", client.reused, true)
}

package signer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// lasting sets life and refresh-at.
func lasting(life time.Duration, percent int) func(*EnableRequest) {
	return func(r *EnableRequest) { r.Life, r.RefreshAt = life, percent }
}

// shown posts a body over a connection on which cert was shown.
func shown(h *Head, cert *x509.Certificate, path string, body []byte) reply {
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	w := httptest.NewRecorder()
	h.NodeHandler().ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

func renewed(h *Head, cert *x509.Certificate) reply {
	return shown(h, cert, wire.PathRenew, wire.Encode(wire.RenewRequest{V: wire.Version}))
}

// mustRenew renews for the same key.
func (s *site) mustRenew(cert *x509.Certificate) *x509.Certificate {
	s.t.Helper()
	return certificate(s.t, decoded[wire.Enrolled](s.t, renewed(s.Head, cert)).Cert)
}

// active enrols a key and uses its certificate.
func (s *site) active(k *key, name string, options ...func(*EnableRequest)) *x509.Certificate {
	s.t.Helper()
	s.enable(name, options...)
	cert := certificate(s.t, s.enrol(k, name).Cert)
	equal(s.t, "first use", use(s.Head, cert), "")
	return cert
}

// rekeyed is leg 1 and 2 for a new key, under cert.
func (s *site) rekeyed(cert *x509.Certificate, k *key) reply {
	s.t.Helper()
	r := shown(s.Head, cert, wire.PathRenewChallenge, wire.Encode(k.ChallengeRequest("")))
	if r.status != http.StatusOK {
		return r
	}
	answer, err := k.renewing().Answer("", decoded[wire.Challenge](s.t, r))
	s.must(err)
	return shown(s.Head, cert, wire.PathRenew, wire.Encode(answer))
}

func (s *site) renewAtOf(cert *x509.Certificate) time.Time {
	s.t.Helper()
	self, no := s.self(context.Background(), cert, &peer{})
	if no != nil {
		s.t.Fatal(no)
	}
	return self.RenewAt
}

func (s *site) kinds(node string) map[string]int {
	n := map[string]int{}
	for _, e := range s.journal() {
		if e.Node == node {
			n[e.Kind]++
		}
	}
	return n
}

func (s *site) rows(prefix string) (n int) {
	s.t.Helper()
	for _, err := range s.store.List(context.Background(), prefix) {
		s.must(err)
		n++
	}
	return n
}

// TestRenew: for the same key, when it is due and not before; the old certificate ends when the new one is used.
func TestRenew(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	old := s.active(k, "n0")
	due := s.renewAtOf(old)
	if left := old.NotAfter.Sub(due); left > 30*24*time.Hour || left < 28*24*time.Hour {
		t.Errorf("due with %v left", left)
	}
	if again := s.mustRenew(old); !bytes.Equal(again.Raw, old.Raw) {
		t.Error("renewed before it is due")
	}
	s.clock.move(due.Sub(s.clock.now()) - time.Second)
	if again := s.mustRenew(old); !bytes.Equal(again.Raw, old.Raw) {
		t.Error("renewed a second before it is due")
	}
	s.clock.move(2 * time.Second)
	next := s.mustRenew(old)
	equal(t, "key", keyHash(next), keyHash(old))
	equal(t, "not after", next.NotAfter, s.clock.now().Add(nodeLife).Truncate(time.Second))
	equal(t, "the old one, before", use(s.Head, old), "")
	if again := s.mustRenew(old); !bytes.Equal(again.Raw, next.Raw) {
		t.Error("the answer was lost, and the next one has another certificate")
	}
	if now := s.clock.now(); s.renewAtOf(old).After(now) {
		t.Error("a node that shows the old one is not told that there is another")
	}
	s.restart()
	equal(t, "the new one", use(s.Head, next), "")
	equal(t, "the old one, after", use(s.Head, old), wire.NotEnabled)
	refusedWith(t, renewed(s.Head, old), wire.NotEnabled)
	wantListed(t, s.crlNow(), old)
	equal(t, "grants used", s.kinds("n0")["issue"], 1)
	equal(t, "renewals", s.kinds("n0")["renew"], 1)
}

// TestRenewIsFirstUse: a certificate is in use when a renewal is asked for with it.
func TestRenewIsFirstUse(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	cert := certificate(t, s.enrol(k, "n0").Cert)
	s.mustRenew(cert)
	equal(t, "state", s.record("n0").state(noon), StateActive)
}

// TestRenewals: 10,000 requests leave as much on record as the time that passes asks for, and the CRL too.
func TestRenewals(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	cert := s.active(k, "n0", lasting(24*time.Hour, 50))
	signatures := 0
	for range 10_000 {
		s.clock.move(10 * time.Second)
		next := s.mustRenew(cert)
		if !bytes.Equal(next.Raw, cert.Raw) {
			signatures++
			cert = next
		}
	}
	if signatures != 2 {
		t.Errorf("%d signatures in 28 hours", signatures)
	}
	equal(t, "certificates on record", s.rows(prefixCert), 1+2+signatures) // and the head's and the OCSP responder's
	if n := s.rows(prefixEnded); n > signatures {
		t.Errorf("%d ends on record", n)
	}
}

// TestRenewRefused: nothing is renewed for who is disabled, revoked, unknown or over.
func TestRenewRefused(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	cert := s.active(k, "n0", lasting(time.Hour, 50))
	other := c.nodeKey()
	both := func(want wire.Code) {
		t.Helper()
		refusedWith(t, renewed(s.Head, cert), want)
		refusedWith(t, s.rekeyed(cert, other), want)
	}
	s.clock.move(40 * time.Minute)
	challenged := decoded[wire.Challenge](t, shown(s.Head, cert, wire.PathRenewChallenge, wire.Encode(other.ChallengeRequest(""))))
	inFlight, err := other.renewing().Answer("", challenged)
	s.must(err)
	s.disable("n0")
	both(wire.NotEnabled)
	refusedWith(t, shown(s.Head, cert, wire.PathRenew, wire.Encode(inFlight)), wire.NotEnabled)
	equal(t, "when disabled", s.renewAtOf(cert), time.Time{})
	s.enable("n0")
	s.clock.move(30 * time.Minute)
	both(wire.NotEnabled) // the certificate is over
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	both(wire.Revoked)
	refusedWith(t, s.post(wire.PathRenew, wire.RenewRequest{V: 1}), wire.NotEnabled)
	stranger := newSite(t)
	both = func(want wire.Code) {
		refusedWith(t, renewed(stranger.Head, cert), want)
		refusedWith(t, stranger.rekeyed(cert, other), want)
	}
	both(wire.NotEnabled)
	equal(t, "renewals", s.kinds("n0")["renew"], 0)
}

func TestRenewForms(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	cert := s.active(k, "n0")
	for _, body := range []string{``, `{}`, `{"v":2}`, `{"v":1}` + "\n", `{"v":1,"x":1}`, `{"v":1,"v":1}`, `null`} {
		refusedWith(t, shown(s.Head, cert, wire.PathRenew, []byte(body)), wire.BadRequest)
	}
	refusedWith(t, shown(s.Head, cert, wire.PathRenewChallenge, []byte(`{"v":1}`)), wire.BadRequest)
}

// TestRenewLevel: the same key keeps its level, since nothing more is proven; a new key has what is proven now.
func TestRenewLevel(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	cert := s.active(k, "n0", lasting(time.Hour, 50))
	s.enable("n0", pinned(k.ekHash()))
	s.clock.move(40 * time.Minute)
	next := s.mustRenew(cert)
	equal(t, "first use", use(s.Head, next), "")
	if got, tcg := policies(next); len(got) != 1 || got[0] != wire.TOFU || tcg != 0 {
		t.Errorf("the same key: %v", got)
	}
	if s.record("n0").Grant.Used {
		t.Error("a renewal has used a grant")
	}
	proven := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(next, c.nodeKey())).Cert)
	if got, tcg := policies(proven); len(got) != 1 || got[0] != wire.Pinned || tcg != 2 {
		t.Errorf("a new key: %v", got)
	}
	if s.record("n0").Grant.Used {
		t.Error("a renewal has used a grant")
	}
}

// TestRenewEndsWithTheCA: what the CA's end cuts is not renewed over and over.
func TestRenewEndsWithTheCA(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.clock.move(s.ca().cert.NotAfter.Add(-48 * time.Hour).Sub(noon))
	cert := s.active(k, "n0")
	s.clock.move(47 * time.Hour)
	if again := s.mustRenew(cert); !bytes.Equal(again.Raw, cert.Raw) {
		t.Error("renewed, and lives no longer")
	}
	equal(t, "due", s.renewAtOf(cert), time.Time{})
}

// TestRenewForNames: other names on record are in the next certificate, which is due at once, and once.
func TestRenewForNames(t *testing.T) {
	s, c := newSite(t), aChip(t)
	first := s.active(c.nodeKey(), "n0")
	s.enable("n0", func(r *EnableRequest) { r.DNS, r.IP = []string{"n0.example.org"}, []string{"10.54.0.7", "fd00::0:7"} })
	second := s.mustRenew(first)
	equal(t, "names", strings.Join(second.DNSNames, ","), "n0.example.org")
	equal(t, "addresses", len(second.IPAddresses), 2)
	equal(t, "first use", use(s.Head, second), "")
	equal(t, "again", s.mustRenew(second).Equal(second), true)
}

// TestRenewalsSpread: what was made at one moment falls due over a day.
func TestRenewalsSpread(t *testing.T) {
	s := newSite(t)
	var first, last time.Time
	for range 1000 {
		c := &issued{Serial: serialHex(newSerial()), Issued: noon, NotAfter: noon.Add(nodeLife), Key: "k"}
		at := s.renewAt(&slot{Cert: c}, c)
		equal(t, "again", s.renewAt(&slot{Cert: c}, c), at)
		if first.IsZero() || at.Before(first) {
			first = at
		}
		last = later(last, at)
	}
	if over := last.Sub(first); over < 23*time.Hour || over > 24*time.Hour {
		t.Errorf("spread over %v", over)
	}
}

// TestRenewAfterRotation: what a retired CA has signed is renewed within a day.
func TestRenewAfterRotation(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	old := s.active(k, "n0")
	oldCA := s.ca()
	s.rotate(RotateRequest{})
	equal(t, "ack", s.ack(old), "")
	if due := s.renewAtOf(old); due.Before(noon.Add(24 * time.Hour)) {
		t.Errorf("due at %v, before the next CA signs", due)
	}
	s.rotate(RotateRequest{Finish: true})
	s.clock.move(24 * time.Hour)
	next := s.mustRenew(old)
	if err := next.CheckSignatureFrom(s.ca().cert); err != nil {
		t.Error(err)
	}
	equal(t, "first use", use(s.Head, next), "")
	// Superseded certificates count, too, until they are over by themselves.
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(oldCA.id()).role, roleRetired)
	s.clock.move(nodeLife + keptFor)
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(oldCA.id()).role, roleOver)
}

// TestRenewAfterRevokeAll: the CA has ended with all that it signed, and the node comes back by TPM and key.
func TestRenewAfterRevokeAll(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	old := s.active(k, "n0")
	s.rotate(RotateRequest{RevokeAll: true})
	refusedWith(t, renewed(s.Head, old), wire.NotEnabled)
	next := certificate(t, s.enrol(k, "n0").Cert)
	equal(t, "first use", use(s.Head, next), "")
	equal(t, "renewals", s.kinds("n0")["renew"], 1)
}

// TestExpired: the same TPM with the same key comes back after its certificate's end without the administrator.
func TestExpired(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	old := s.active(k, "n0")
	grant := s.record("n0").grantID()
	s.clock.move(2 * nodeLife)
	equal(t, "use", use(s.Head, old), wire.NotEnabled)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(c.nodeKey(), "n0")), wire.Refused)
	refusedWith(t, s.post(wire.PathChallenge, aChip(t).nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	s.disable("n0")
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.NotEnabled)
	rec := s.record("n0")
	rec.Disabled = false
	s.putRecord(rec)

	answer := s.answered(k, "n0")
	next := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer))
	s.restart()
	replay := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer))
	if !bytes.Equal(next.Cert, replay.Cert) || bytes.Equal(next.Cert, old.Raw) {
		t.Error("the answer cannot be had again, or is the old certificate")
	}
	equal(t, "use", use(s.Head, certificate(t, next.Cert)), "")
	equal(t, "renewals", s.kinds("n0")["renew"], 1)
	equal(t, "grant", s.record("n0").grantID(), grant)

	s.clock.move(2 * nodeLife)
	answer = s.answered(k, "n0")
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Revoked)
}

// TestNewKey: both legs over mTLS; the old key's certificate is good until the new one is used.
func TestNewKey(t *testing.T) {
	s, c := newSite(t), aChip(t)
	a, b, third := c.nodeKey(), c.nodeKey(), c.nodeKey()
	old := s.active(a, "n0", lasting(time.Hour, 50))
	next := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(old, b)).Cert)
	equal(t, "key", keyHash(next), b.hash())
	equal(t, "the old one", use(s.Head, old), "")
	s.restart()
	if again := decoded[wire.Enrolled](t, s.rekeyed(old, b)); !bytes.Equal(again.Cert, next.Raw) {
		t.Error("the answer was lost, and the next one has another certificate")
	}
	refusedWith(t, s.rekeyed(old, third), wire.Refused)
	equal(t, "reason", s.reason("n0"), whyTooSoon)
	equal(t, "the new one", use(s.Head, next), "")
	equal(t, "the old one, after", use(s.Head, old), wire.NotEnabled)
	refusedWith(t, s.rekeyed(next, third), wire.Refused)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(a, "n0")), wire.Refused)
	wantListed(t, s.crlNow(), old)
}

// TestNewKeyOnceADay: also by a certificate that is due, and stays so until the new one is used.
func TestNewKeyOnceADay(t *testing.T) {
	s, c := newSite(t), aChip(t)
	old := s.active(c.nodeKey(), "n0")
	s.clock.move(s.renewAtOf(old).Sub(s.clock.now()) + time.Second)
	next := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(old, c.nodeKey())).Cert)
	rows := len(s.state())
	for range 3 {
		refusedWith(t, s.rekeyed(old, c.nodeKey()), wire.Refused)
		equal(t, "reason", s.reason("n0"), whyTooSoon)
	}
	equal(t, "rows", len(s.state()), rows)
	s.clock.move(rekeyEvery)
	decoded[wire.Enrolled](t, s.rekeyed(old, c.nodeKey()))
	equal(t, "the one that was never used", use(s.Head, next), wire.NotEnabled)
}

// TestRingCannotBeFollowed: a certificate that is in vain, since the CAs on record are others and cannot be read, is not
// made over and over.
func TestRingCannotBeFollowed(t *testing.T) {
	for name, ask := range map[string]func(*site) func() reply{
		"renewal": func(s *site) func() reply {
			cert := s.active(aChip(t).nodeKey(), "n0", lasting(time.Hour, 50))
			s.clock.move(40 * time.Minute)
			return func() reply { return renewed(s.Head, cert) }
		},
		"EST": func(s *site) func() reply {
			p, body := s.invite("host9"), pkcs10(t, softKey(t))
			return func() reply { return s.simple("host9", p, body) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			f := s.failing()
			asked := ask(s)
			s.must(s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: keyCAs, Value: []byte("{")}}}))
			commits := 0
			f.before = func(store.Tx) error {
				if commits++; commits > 3 {
					return store.ErrFailed // and no more
				}
				return nil
			}
			equal(t, "status", asked().status, http.StatusServiceUnavailable)
			equal(t, "commits", commits, 1)
		})
	}
}

// TestNewKeyLost: the TPM lost the new key before its first use, and the node goes on with the old one: over
// mTLS when that is due, by proof when it is over, and with a third key a day later.
func TestNewKeyLost(t *testing.T) {
	for name, come := range map[string]func(*testing.T, *site, *x509.Certificate, *key) *x509.Certificate{
		"due": func(t *testing.T, s *site, old *x509.Certificate, _ *key) *x509.Certificate {
			s.clock.move(62 * 24 * time.Hour)
			return s.mustRenew(old)
		},
		"over": func(t *testing.T, s *site, _ *x509.Certificate, a *key) *x509.Certificate {
			s.clock.move(2 * nodeLife)
			return certificate(t, s.enrol(a, "n0").Cert)
		},
		"a third key": func(t *testing.T, s *site, old *x509.Certificate, a *key) *x509.Certificate {
			s.clock.move(25 * time.Hour)
			return certificate(t, decoded[wire.Enrolled](t, s.rekeyed(old, a.chip.nodeKey())).Cert)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newSite(t), aChip(t)
			a := c.nodeKey()
			old := s.active(a, "n0")
			lost := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(old, c.nodeKey())).Cert)
			next := come(t, s, old, a)
			equal(t, "use", use(s.Head, next), "")
			equal(t, "the lost one", use(s.Head, lost), wire.NotEnabled)
		})
	}
}

// TestNewKeyAttacks: who may use a node's key for a while gains nothing by a renewal.
func TestNewKeyAttacks(t *testing.T) {
	s, c, d := newSite(t), aChip(t), aChip(t)
	k := c.nodeKey()
	theirs := d.nodeKey()
	mine, other := s.active(k, "n0"), s.active(theirs, "n1")
	b := c.nodeKey()
	leg1 := func(cert *x509.Certificate, k *key) wire.Challenge {
		t.Helper()
		return decoded[wire.Challenge](t, shown(s.Head, cert, wire.PathRenewChallenge, wire.Encode(k.ChallengeRequest(""))))
	}
	// A key of another TPM.
	refusedWith(t, s.rekeyed(mine, d.nodeKey()), wire.Refused)
	// A software key that somebody imported.
	refusedWith(t, s.rekeyed(mine, withCSR(t, c.softKey())), wire.BadRequest)
	// Another node's key, in its own TPM or none.
	answer, err := b.renewing().Answer("", leg1(mine, b))
	s.must(err)
	refusedWith(t, shown(s.Head, other, wire.PathRenew, wire.Encode(answer)), wire.StaleChallenge)
	// An enrolment's proof is none for a renewal, nor the other way round.
	refusedWith(t, shown(s.Head, mine, wire.PathRenew, wire.Encode(s.answered(b, "n0"))), wire.StaleChallenge)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	// The key of another name.
	refusedWith(t, s.rekeyed(mine, &key{chip: c, ek: k.ek, handle: k.handle, area: d.nodeKey().area, public: k.public, csr: k.csr}), wire.BadRequest)
	// A proof for an EK that is not the record's any more.
	rec := s.record("n0")
	moved := *rec
	moved.EK = theirs.ekHash()
	s.putRecord(&moved)
	refusedWith(t, shown(s.Head, mine, wire.PathRenew, wire.Encode(answer)), wire.StaleChallenge)
	s.putRecord(rec)
	// A proof for the certificate before.
	next := certificate(t, decoded[wire.Enrolled](t, shown(s.Head, mine, wire.PathRenew, wire.Encode(answer))).Cert)
	equal(t, "use", use(s.Head, next), "")
	refusedWith(t, shown(s.Head, next, wire.PathRenew, wire.Encode(answer)), wire.StaleChallenge)
	equal(t, "renewals of n0", s.kinds("n0")["renew"], 1)
	equal(t, "renewals of n1", s.kinds("n1")["renew"], 0)
	// A key that was barred with a certificate.
	s.revoke(RevokeRequest{IDs: []string{"n1"}})
	other = s.active(d.nodeKey(), "n1", again)
	refusedWith(t, s.rekeyed(other, theirs), wire.KeyBarred)
}

func withCSR(t *testing.T, k *key) *key {
	t.Helper()
	k.csr = csrBy(t, k)
	return k
}

// TestRenewalsMeet: two heads renew at once, and one of the certificates is the node's.
func TestRenewalsMeet(t *testing.T) {
	w, f := newWorld(t)
	cert := meet(t, w, f)
	if w.check(t); len(w.of("n0")) != 2 {
		t.Errorf("%d certificates", len(w.of("n0")))
	}
	if again := w.mustRenew(cert); !bytes.Equal(again.Raw, w.record("n0").Cert.DER) {
		t.Error("the answer cannot be had again")
	}
}

// TestCheckerSeesMissingGuardsOfRenewals is the control.
func TestCheckerSeesMissingGuardsOfRenewals(t *testing.T) {
	w, f := newWorld(t)
	f.unguarded = true
	meet(t, w, f)
	wantViolation(t, w, "is not in the store")
}

// meet lets a whole renewal pass between another one's decision and its commit.
func meet(t *testing.T, w *world, f *faulty) *x509.Certificate {
	t.Helper()
	w.enable("n0", lasting(time.Hour, 50))
	cert := w.attempt(w.head[0], w.head[0], w.keys[0], "n0")
	equal(t, "first use", use(w.head[0], cert), "")
	w.clock.move(40 * time.Minute)
	take := func(h *Head) { w.saw(certificate(t, decoded[wire.Enrolled](t, renewed(h, cert)).Cert)) }
	f.before = func() { take(w.head[1]) }
	take(w.head[0])
	return cert
}

// TestRenewalOutcomeUnknown: the store reports an error, and has written or not.
func TestRenewalOutcomeUnknown(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprintf("written %v", done), func(t *testing.T) {
			w, f := newWorld(t)
			w.enable("n0", lasting(time.Hour, 50))
			cert := w.attempt(w.Head, w.Head, w.keys[0], "n0")
			equal(t, "first use", use(w.Head, cert), "")
			w.clock.move(40 * time.Minute)
			f.fail = func(store.Tx) (bool, error) { return done, errUnknown }
			refusedWith(t, renewed(w.Head, cert), wire.Busy)
			equal(t, "the old one", use(w.Head, cert), "")
			f.fail = nil
			next := w.mustRenew(cert)
			w.saw(next)
			equal(t, "the new one", use(w.Head, next), "")
			equal(t, "renewals", w.kinds("n0")["renew"], 1)
			w.check(t)
		})
	}
}

func TestLifeBounds(t *testing.T) {
	s := newSite(t)
	for _, bad := range []func(*EnableRequest){
		lasting(time.Second, 0), lasting(MaxLife+1, 0), lasting(-time.Hour, 0), lasting(0, 100), lasting(0, -1),
	} {
		if err := s.tryEnable("n0", bad); err == nil {
			t.Error("accepted")
		}
	}
	s.enable("n0", lasting(MinLife, MaxRefreshAt))
	s.enable("n1", lasting(MaxLife, MinRefreshAt))
	s.enable("n1") // keeps both
	c := certificate(t, s.enrol(aChip(t).nodeKey(), "n1").Cert)
	equal(t, "not after", c.NotAfter, noon.Add(MaxLife).Truncate(time.Second))
	if at := s.record("n1"); c.NotAfter.Sub(s.renewAt(at, at.Cert)) > MaxLife/100 {
		t.Error("due too early")
	}
}

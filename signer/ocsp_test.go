package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"muster/internal/standin"
	"muster/internal/template"
	"muster/signer/store"
)

func ocspRequestFor(t tb, cert, ca *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(cert, ca, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func askOCSP(h *Head, method, path string, body []byte, header http.Header) reply {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	for name, values := range header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	h.PublicHandler().ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

// ocspOf asks a head by GET and by POST for one certificate, and checks what is true of each answer.
func ocspOf(t tb, h *Head, cert, ca *x509.Certificate, hash crypto.Hash) *ocsp.Response {
	t.Helper()
	der := ocspRequestFor(t, cert, ca, hash)
	post := askOCSP(h, http.MethodPost, "/ocsp", der, nil)
	get := askOCSP(h, http.MethodGet, "/ocsp/"+url.PathEscape(base64.StdEncoding.EncodeToString(der)), nil, nil)
	if !bytes.Equal(get.body, post.body) {
		t.Errorf("GET and POST differ: %x, %x", get.body, post.body)
	}
	answer, err := ocsp.ParseResponseForCert(get.body, cert, ca)
	if err != nil {
		t.Fatalf("%d %x: %v", get.status, get.body, err)
	}
	now := h.now()
	if answer.IssuerHash != hash || answer.ThisUpdate.After(now) || answer.NextUpdate.Sub(answer.ThisUpdate) > ocspLife ||
		!answer.NextUpdate.After(now) || answer.NextUpdate.After(answer.Certificate.NotAfter) {
		t.Errorf("hash %v, %v to %v, responder to %v", answer.IssuerHash, answer.ThisUpdate, answer.NextUpdate, answer.Certificate.NotAfter)
	}
	return answer
}

// ocspError is the status of an answer that is an error, which nobody signs.
func ocspError(t tb, r reply) ocsp.ResponseStatus {
	t.Helper()
	_, err := ocsp.ParseResponse(r.body, nil)
	status, ok := err.(ocsp.ResponseError)
	if !ok || r.status != http.StatusOK || r.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v %x: %v", r.status, r.header, r.body, err)
	}
	return status.Status
}

var certIDHashes = []crypto.Hash{crypto.SHA1, crypto.SHA256}

// TestOCSP: good, revoked on the next request, on this head and on another, and after a restart.
func TestOCSP(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	other, err := s.another()
	s.must(err)
	for _, h := range []*Head{s.Head, other} {
		for _, hash := range certIDHashes {
			equal(t, "status", ocspOf(t, h, cert, s.ca().cert, hash).Status, ocsp.Good)
		}
	}
	s.revoke(RevokeRequest{IDs: []string{"n0"}, Reason: "keyCompromise"})
	wantRevoked := func(h *Head) {
		t.Helper()
		for _, hash := range certIDHashes {
			answer := ocspOf(t, h, cert, s.ca().cert, hash)
			if answer.Status != ocsp.Revoked || answer.RevocationReason != int(keyCompromise) || !answer.RevokedAt.Equal(noon.Truncate(time.Second)) {
				t.Errorf("status %d, reason %d, at %v", answer.Status, answer.RevocationReason, answer.RevokedAt)
			}
		}
	}
	wantRevoked(s.Head)
	wantRevoked(other)
	s.restart()
	wantRevoked(s.Head)
	s.enable("n0", again)
	next := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	wantRevoked(s.Head)
	equal(t, "the next certificate", ocspOf(t, s.Head, next, s.ca().cert, crypto.SHA1).Status, ocsp.Good)
}

// TestOCSPResponder: RFC 6960, 4.2.2.2, and on record like all that is signed.
func TestOCSPResponder(t *testing.T) {
	s := newSite(t)
	cert := s.ca().responder.Load().cert
	s.must(cert.CheckSignatureFrom(s.ca().cert))
	nocheck := false
	for _, e := range cert.Extensions {
		nocheck = nocheck || e.Id.Equal(oidNoCheck) && !e.Critical && bytes.Equal(e.Value, []byte{5, 0})
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning || len(cert.UnknownExtKeyUsage) != 0 ||
		cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA || !nocheck || cert.NotAfter.After(noon.Add(headLife)) {
		t.Errorf("%+v", cert)
	}
	item, err := s.store.Get(context.Background(), prefixCert+serialHex(cert.SerialNumber))
	s.must(err)
	rec, err := parse[certRecord](item)
	s.must(err)
	if rec.Class != classOCSP || rec.CA != s.ca().id() || !bytes.Equal(rec.DER, cert.Raw) {
		t.Errorf("%+v", rec)
	}
	if entries := s.journal(); entries[len(entries)-1].Kind != "ocsp-cert" {
		t.Errorf("the last entry is %+v", entries[len(entries)-1])
	}
}

// TestOCSPOfStrangers: what is not on record gets an error that nobody signs, and leaves nothing in memory.
func TestOCSPOfStrangers(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	foreign, err := newAuthority("Other", noon)
	s.must(err)
	namesake := *s.ca().cert // the subject of ours, another key
	namesake.RawSubjectPublicKeyInfo = foreign.cert.RawSubjectPublicKeyInfo
	serial := func(n *big.Int) *x509.Certificate { return &x509.Certificate{SerialNumber: n} }
	good := ocspRequestFor(t, cert, s.ca().cert, crypto.SHA256)
	for what, test := range map[string]struct {
		body []byte
		want ocsp.ResponseStatus
	}{
		"a serial of nobody's":  {ocspRequestFor(t, serial(newSerial()), s.ca().cert, crypto.SHA1), ocsp.Unauthorized},
		"a serial that is huge": {ocspRequestFor(t, serial(new(big.Int).Lsh(big.NewInt(1), 999)), s.ca().cert, crypto.SHA1), ocsp.Unauthorized},
		"a negative serial":     {ocspRequestFor(t, serial(new(big.Int).Neg(cert.SerialNumber)), s.ca().cert, crypto.SHA1), ocsp.Unauthorized},
		"another CA":            {ocspRequestFor(t, cert, foreign.cert, crypto.SHA256), ocsp.Unauthorized},
		"a CA of our name":      {ocspRequestFor(t, cert, &namesake, crypto.SHA256), ocsp.Unauthorized},
		"another hash":          {ocspRequestFor(t, cert, s.ca().cert, crypto.SHA512), ocsp.Malformed},
		"nothing":               {nil, ocsp.Malformed},
		"more than a request":   {append(bytes.Clone(good), 0), ocsp.Malformed},
		"too much":              {append(bytes.Clone(good), make([]byte, maxOCSPRequest)...), ocsp.Malformed},
	} {
		equal(t, what, ocspError(t, askOCSP(s.Head, http.MethodPost, "/ocsp", test.body, nil)), test.want)
	}
	equal(t, "no base64", ocspError(t, askOCSP(s.Head, http.MethodGet, "/ocsp/!", nil, nil)), ocsp.Malformed)
	equal(t, "too long", ocspError(t, askOCSP(s.Head, http.MethodGet, "/ocsp/"+strings.Repeat("A", 8<<10), nil, nil)), ocsp.Malformed)
	for _, path := range []string{"/ocsp", "/ocsp/AAAA?x=1", "/ocsphelp/AAAA"} {
		if r := askOCSP(s.Head, http.MethodGet, path, nil, nil); r.status != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, r.status)
		}
	}
	equal(t, "answers in memory", len(s.answers.of), 0)
	before := s.journal()
	equal(t, "status", ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA256).Status, ocsp.Good)
	equal(t, "journal", len(s.journal()), len(before))
}

// TestOCSPPaths: base64 in a path as clients write it, escaped or not, also with // in it, of which a ServeMux would make /.
func TestOCSPPaths(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	der := ocspRequestFor(t, cert, s.ca().cert, crypto.SHA1)
	want := askOCSP(s.Head, http.MethodPost, "/ocsp/", der, nil).body
	text := base64.StdEncoding.EncodeToString(der)
	for _, path := range []string{text, url.QueryEscape(text), url.PathEscape(text), "/" + text} {
		if r := askOCSP(s.Head, http.MethodGet, "/ocsp/"+path, nil, nil); !bytes.Equal(r.body, want) {
			t.Errorf("%s: %d %x", path, r.status, r.body)
		}
	}
	signs := base64.StdEncoding.EncodeToString([]byte{0x30, 0xff, 0xff, 0xff, 0xfb, 0xef, 0xbe}) // MP////vvvg==
	r := httptest.NewRequest(http.MethodGet, "/ocsp/"+signs, nil)
	if !asksOCSP(r) {
		t.Error("a path with // is none for OCSP")
	}
	got, err := ocspRequest(nil, r)
	if err != nil || base64.StdEncoding.EncodeToString(got) != signs {
		t.Errorf("%x, %v", got, err)
	}
}

// TestOCSPSignatures: strangers who ask, however many and however often, make the head sign once in half an answer's
// life.
func TestOCSPSignatures(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	signed := map[string]bool{}
	ask := func() {
		t.Helper()
		var group sync.WaitGroup
		answers := make([][]byte, 50)
		for i := range answers {
			group.Go(func() {
				der := ocspRequestFor(t, cert, s.ca().cert, crypto.SHA256)
				answers[i] = askOCSP(s.Head, http.MethodPost, "/ocsp", der, nil).body
			})
		}
		group.Wait()
		for _, der := range answers {
			signed[string(der)] = true
		}
	}
	for _, step := range []struct {
		move time.Duration
		want int
	}{{0, 1}, {ocspLife/2 - time.Hour, 1}, {time.Hour, 2}, {ocspLife/2 - time.Hour, 2}, {time.Hour, 3}} {
		s.clock.move(step.move)
		ask()
		equal(t, "signatures", len(signed), step.want)
	}
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	ask()
	ask()
	equal(t, "signatures after the end", len(signed), 4)
	equal(t, "in memory", len(s.answers.of), 1)
	s.clock.move(ocspLife + time.Minute)
	s.answers.forget(s.clock.now())
	equal(t, "in memory, when it is over", len(s.answers.of), 0)
}

// TestOCSPBehindTheDisk: while the witness waits for its disk, answers that are there are given, beside one that is to
// be signed.
func TestOCSPBehindTheDisk(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n[0-1]")
	asked := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	unasked := certificate(t, s.enrol(aChip(t).nodeKey(), "n1").Cert)
	want := ocspOf(t, s.Head, asked, s.ca().cert, crypto.SHA256)
	s.book.Load().mu.Lock() // as fdatasync has it
	answered := make(chan reply, 1)
	go func() {
		der := ocspRequestFor(t, unasked, s.ca().cert, crypto.SHA256)
		answered <- askOCSP(s.Head, http.MethodPost, "/ocsp", der, nil)
	}()
	for maySign := false; !maySign; { // until that one waits for the witness
		stacks := make([]byte, 1<<20)
		maySign = bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*witnessBook).failed("))
	}
	if s.answers.mu.TryLock() {
		s.answers.mu.Unlock()
		got := ocspOf(t, s.Head, asked, s.ca().cert, crypto.SHA256)
		equal(t, "signature", string(got.Signature), string(want.Signature))
		equal(t, "answered", len(answered), 0)
	} else {
		t.Error("who waits for the disk keeps others from answers that are there")
	}
	s.book.Load().mu.Unlock()
	if r := <-answered; len(r.body) < 100 {
		t.Errorf("got %x after the wait", r.body)
	}
}

// TestOCSPIsNotUndone: a request that read the record before the end does not undo the answer of one that read it after.
func TestOCSPIsNotUndone(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	equal(t, "status", ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA1).Status, ocsp.Revoked)
	id := certID{s.ca().id(), serialHex(cert.SerialNumber), crypto.SHA1}
	for _, age := range []time.Duration{0, ocspLife} {
		s.clock.move(age)
		late, err := s.signedAnswer(s.ca(), id, cert.SerialNumber, nil, s.clock.now())
		s.must(err)
		answer, err := ocsp.ParseResponseForCert(late.der, cert, s.ca().cert)
		s.must(err)
		equal(t, "status", answer.Status, ocsp.Revoked)
	}
}

// TestOCSPWithoutSignatures: a head that may not sign goes on with what it has signed, and never says good of what
// has ended.
func TestOCSPWithoutSignatures(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n[0-1]")
	asked := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	unasked := certificate(t, s.enrol(aChip(t).nodeKey(), "n1").Cert)
	ask := func(cert *x509.Certificate) reply {
		return askOCSP(s.Head, http.MethodPost, "/ocsp", ocspRequestFor(t, cert, s.ca().cert, crypto.SHA1), nil)
	}
	s.clock.move(time.Hour)
	s.crlNow()
	ocspOf(t, s.Head, asked, s.ca().cert, crypto.SHA1)
	s.clock.move(-30 * time.Minute)
	equal(t, "asked before", len(ask(asked).body) > 100, true)
	equal(t, "not asked before", ocspError(t, ask(unasked)), ocsp.TryLater)
	if _, err := s.tryRevoke(RevokeRequest{IDs: []string{"n0"}}); err == nil {
		t.Error("the CRL was signed")
	}
	equal(t, "ended", ocspError(t, ask(asked)), ocsp.TryLater)
	s.clock.move(30 * time.Minute)
	equal(t, "ended, and the clock is right", ocspOf(t, s.Head, asked, s.ca().cert, crypto.SHA1).Status, ocsp.Revoked)
}

// TestOCSPWithoutStore: what was signed stays good for its time; a damaged record is no answer.
func TestOCSPWithoutStore(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	ask := func() reply {
		return askOCSP(s.Head, http.MethodPost, "/ocsp", ocspRequestFor(t, cert, s.ca().cert, crypto.SHA1), nil)
	}
	before := ask().body
	bad := store.Put{Key: prefixEnded + serialHex(cert.SerialNumber), Value: []byte("{")}
	s.must(s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{bad}}))
	equal(t, "a damaged end", ocspError(t, ask()), ocsp.TryLater)
	s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{bad.Key}}))
	s.must(s.store.Close())
	defer s.openStore()
	if !bytes.Equal(ask().body, before) {
		t.Error("without a store the answer is another")
	}
	s.clock.move(ocspLife + time.Minute)
	equal(t, "over", ocspError(t, ask()), ocsp.TryLater)
}

// TestOCSPRenewal: the responder is swapped when it is due, answers are signed by the new one, and no answer outlives
// the one that signed it.
func TestOCSPRenewal(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	first := s.ca().responder.Load()
	equal(t, "responder", serialHex(ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA1).Certificate.SerialNumber), serialHex(first.cert.SerialNumber))
	s.must(s.renewResponders(context.Background()))
	equal(t, "renewed at once", s.ca().responder.Load() == first, true)
	s.clock.move(headLife - time.Hour) // nobody tended it
	answer := ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA1)
	equal(t, "the end of the answer", answer.NextUpdate, first.cert.NotAfter)
	s.clock.move(2 * time.Hour)
	r := askOCSP(s.Head, http.MethodPost, "/ocsp", ocspRequestFor(t, cert, s.ca().cert, crypto.SHA1), nil)
	equal(t, "without a good responder", ocspError(t, r), ocsp.TryLater)
	s.must(s.renewResponders(context.Background()))
	answer = ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA1)
	if answer.Certificate.Equal(first.cert) {
		t.Error("signed by the old responder")
	}
}

// TestOCSPAfterAClockAhead: what was made by a clock that was ahead is made anew, once that is set right.
func TestOCSPAfterAClockAhead(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	const ahead = 400 * 24 * time.Hour
	s.clock.set(ahead)
	s.must(s.renewServer(context.Background()))
	s.must(s.renewResponders(context.Background()))
	s.clock.set(-ahead)
	_, err := s.adminClockAccept(context.Background(), struct{}{}, noStream())
	s.must(err)
	now := s.clock.now()
	answer := ocspOf(t, s.Head, cert, s.ca().cert, crypto.SHA1)
	equal(t, "its responder is good", answer.Certificate.NotBefore.Before(now) && answer.Certificate.NotAfter.After(now), true)

	// A CA that was made ahead gives nothing that is good yet, and so the same one will do.
	s.clock.set(ahead)
	s.rotate(RotateRequest{RevokeAll: true})
	s.clock.set(-ahead)
	_, err = s.adminClockAccept(context.Background(), struct{}{}, noStream())
	s.must(err)
	responder := s.ca().responder.Load()
	s.must(s.renewResponders(context.Background()))
	equal(t, "made anew for nothing", s.ca().responder.Load() != responder, false)
}

// TestOCSPRenewedUnattended: a serving head swaps server certificate and responder when they are due.
func TestOCSPRenewedUnattended(t *testing.T) {
	s := newSite(t)
	server, first := s.server.Load(), s.ca().responder.Load()
	s.serve(t)
	s.clock.move(headLife * 2 / 3)
	s.crlDue() // makes it look
	for try := 0; s.ca().responder.Load() == first || s.server.Load() == server; try++ {
		if try == 5000 {
			t.Fatal("not swapped")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestOCSPOfTwoCAs: each answers for its own certificates only, by a responder of its own, which does not keep it from
// retiring.
func TestOCSPOfTwoCAs(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n[0-1]")
	old := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	before := s.ca()
	s.rotate(RotateRequest{})
	s.rotate(RotateRequest{Finish: true, Force: true})
	next := s.ca()
	cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n1").Cert)
	for _, hash := range certIDHashes {
		equal(t, "old", ocspOf(t, s.Head, old, before.cert, hash).Status, ocsp.Good)
		equal(t, "new", ocspOf(t, s.Head, cert, next.cert, hash).Status, ocsp.Good)
		for c, ca := range map[*x509.Certificate]*authority{old: next, cert: before} {
			r := askOCSP(s.Head, http.MethodPost, "/ocsp", ocspRequestFor(t, c, ca.cert, hash), nil)
			equal(t, "the other CA", ocspError(t, r), ocsp.Unauthorized)
		}
	}
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	equal(t, "old", ocspOf(t, s.Head, old, before.cert, crypto.SHA1).Status, ocsp.Revoked)
	equal(t, "new", ocspOf(t, s.Head, cert, next.cert, crypto.SHA1).Status, ocsp.Good)
	s.clock.move(nodeLife + keptFor + time.Hour)
	s.must(s.renewResponders(context.Background()))
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(before.id()).role, roleOver)
}

// TestOCSPOfDeadCA: with the CA all that it signed is revoked, from the next request on.
func TestOCSPOfDeadCA(t *testing.T) {
	for req, want := range map[RotateRequest]crlReason{{RevokeAll: true}: cessationOfOperation, {Compromised: true}: caCompromise} {
		s := newSite(t)
		s.enable("n0")
		cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert)
		ca := s.ca().cert
		equal(t, "before", ocspOf(t, s.Head, cert, ca, crypto.SHA1).Status, ocsp.Good)
		s.rotate(req)
		answer := ocspOf(t, s.Head, cert, ca, crypto.SHA1)
		equal(t, "after", answer.Status, ocsp.Revoked)
		equal(t, "reason", answer.RevocationReason, int(want))
	}
}

// TestCacheHeaders: caches may keep what is signed for a while, never after its end, and are not told that it is
// unchanged when it is not.
func TestCacheHeaders(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	ocspPath := "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(ocspRequestFor(t, cert, s.ca().cert, crypto.SHA1)))
	for _, path := range []string{ocspPath, crlPath(s.ca().id())} {
		r := askOCSP(s.Head, http.MethodGet, path, nil, nil)
		if want := "public, max-age=300, no-transform, must-revalidate"; r.header.Get("Cache-Control") != want {
			t.Errorf("%s: %v", path, r.header)
		}
		equal(t, "Expires", r.header.Get("Expires"), noon.Add(cachedFor).Format(http.TimeFormat))
		again := askOCSP(s.Head, http.MethodGet, path, nil, http.Header{"If-None-Match": {r.header.Get("ETag")}})
		equal(t, "unchanged", again.status, http.StatusNotModified)
		equal(t, "HEAD", askOCSP(s.Head, http.MethodHead, path, nil, nil).header.Get("ETag"), r.header.Get("ETag"))
		s.revoke(RevokeRequest{IDs: []string{"n0"}}) // within the second
		s.crlNow()
		for name, value := range map[string]string{"If-None-Match": r.header.Get("ETag"), "If-Modified-Since": r.header.Get("Last-Modified")} {
			changed := askOCSP(s.Head, http.MethodGet, path, nil, http.Header{name: {value}})
			if changed.status != http.StatusOK || bytes.Equal(changed.body, r.body) {
				t.Errorf("%s with %s after a change: %d", path, name, changed.status)
			}
		}
	}
	s.clock.move(crlLife - 2*time.Minute)
	r := askOCSP(s.Head, http.MethodGet, crlPath(s.ca().id()), nil, nil)
	if got := r.header.Get("Cache-Control"); !strings.Contains(got, fmt.Sprintf("max-age=%d,", 119)) && !strings.Contains(got, "max-age=120,") {
		t.Errorf("two minutes before its end: %s", got)
	}
	s.clock.move(time.Hour)
	r = askOCSP(s.Head, http.MethodGet, crlPath(s.ca().id()), nil, nil)
	if !strings.Contains(r.header.Get("Cache-Control"), "max-age=0,") {
		t.Errorf("after its end: %v", r.header)
	}
}

// FuzzOCSP: whatever comes is answered by an OCSP response, and only with a request for the certificate on record
// is it a signed one.
func FuzzOCSP(f *testing.F) {
	s := siteIn(f, f.TempDir())
	f.Cleanup(func() { s.store.Close() })
	s.enable("n0")
	soft, err := standin.New(template.EKs()[0])
	s.must(err)
	cert := certificate(f, s.enrol(soft, "n0").Cert)
	for _, hash := range certIDHashes {
		f.Add(ocspRequestFor(f, cert, s.ca().cert, hash))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := askOCSP(s.Head, http.MethodPost, "/ocsp", body, nil)
		_, err := ocsp.ParseResponseForCert(r.body, cert, s.ca().cert)
		if _, unsigned := err.(ocsp.ResponseError); !unsigned && (err != nil || !bytes.Contains(body, cert.SerialNumber.Bytes())) {
			t.Errorf("%x: %v", r.body, err)
		}
	})
}

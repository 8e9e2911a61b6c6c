package signer

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"muster/internal/wire"
	"muster/signer/store"
)

// invite makes an EST client, and returns its password.
func (s *site) invite(name string, options ...func(*EnableRequest)) Password {
	s.t.Helper()
	p, err := s.tryInvite(name, options...)
	s.must(err)
	return p
}

func (s *site) tryInvite(name string, options ...func(*EnableRequest)) (Password, error) {
	req := EnableRequest{IDs: []string{name}, For: time.Hour, Password: true}
	for _, option := range options {
		option(&req)
	}
	done, err := s.adminEnable(context.Background(), req, noStream())
	if err != nil {
		return "", err
	}
	all := done.(*Changed).Passwords
	if len(all) != 1 || all[0].Name != name {
		return "", fmt.Errorf("passwords: %d", len(all))
	}
	return all[0].Password, nil
}

// est sends a request to a head's EST handler, without a network in between.
func est(h *Head, path, body string, with func(*http.Request)) reply {
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if with != nil {
		with(r)
	}
	w := httptest.NewRecorder()
	h.ESTHandler().ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

func (s *site) simple(name string, p Password, body string) reply {
	return est(s.Head, pathSimpleEnroll, body, func(r *http.Request) { r.SetBasicAuth(name, string(p)) })
}

func (s *site) resimple(cert *x509.Certificate, body string) reply {
	return est(s.Head, pathSimpleReenroll, body, func(r *http.Request) {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	})
}

// pkcs10 is a body for a key, with wishes that are none of its business.
func pkcs10(t testing.TB, key crypto.Signer) string {
	return base64.StdEncoding.EncodeToString(greedyCSR(t, key))
}

// given is the certificate of an answer, which has to be one.
func given(t tb, r reply) *x509.Certificate {
	t.Helper()
	if r.status != http.StatusOK {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	return bagged(t, r)[0]
}

func bagged(t tb, r reply) []*x509.Certificate {
	t.Helper()
	der, err := base64.StdEncoding.Strict().DecodeString(string(r.body))
	if err != nil || bytes.ContainsAny(r.body, "\r\n") {
		t.Fatalf("the body is not base64 in one line: %v", err)
	}
	bag, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return bag.Certificates
}

// turned fails the test unless r is a refusal with that status, in one line of text.
func turned(t tb, what string, r reply, status int) {
	t.Helper()
	if r.status != status || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") || bytes.Count(r.body, []byte("\n")) != 1 {
		t.Errorf("%s: got %d %q %s, want %d and a line of text", what, r.status, r.header.Get("Content-Type"), r.body, status)
	}
}

// TestESTEnroll: a password leads to one certificate for one key. Everything in it is the record's (I4), and it
// claims no TPM.
func TestESTEnroll(t *testing.T) {
	s, key := newSite(t), softKey(t)
	p := s.invite("host9", func(r *EnableRequest) { r.DNS, r.IP = []string{"host9.example.org"}, []string{"10.0.0.9"} })
	r := s.simple("host9", p, pkcs10(t, key))
	c := given(t, r)
	equal(t, "type", r.header.Get("Content-Type"), "application/pkcs7-mime; smime-type=certs-only")
	equal(t, "encoding", r.header.Get("Content-Transfer-Encoding"), "base64")
	equal(t, "subject", c.Subject.String(), "CN=host9,O=Muster")
	equal(t, "names", fmt.Sprint(c.DNSNames, c.IPAddresses, c.URIs, c.EmailAddresses), "[host9.example.org] [10.0.0.9] [spiffe://hpc.example/host/host9] []")
	equal(t, "policies", len(c.Policies), 0)
	equal(t, "CA", c.IsCA, false)
	equal(t, "usages", fmt.Sprint(c.ExtKeyUsage, c.UnknownExtKeyUsage), fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, []any{}))
	equal(t, "key", key.PublicKey.Equal(c.PublicKey), true)
	s.must(c.CheckSignatureFrom(s.ca().cert))
	v := s.record("host9").view(s.clock.now(), false)
	equal(t, "level", v.Level, Software)
	equal(t, "class", v.Class, "host")
	equal(t, "state", v.State, StateIssued)

	// The answer was lost: the same again, in another spelling too, and after the window.
	lines := pkcs10(t, key)
	lines = lines[:64] + "\r\n" + lines[64:] + "\n"
	s.clock.move(2 * time.Hour)
	equal(t, "again", string(s.simple("host9", p, lines).body), string(r.body))
	turned(t, "another key", s.simple("host9", p, pkcs10(t, softKey(t))), http.StatusForbidden)
	equal(t, "why", s.reason("host9"), whyOtherKey)
	equal(t, "certificates", s.issues(), 1)

	// Without names it is no server.
	c = given(t, s.simple("plain", s.invite("plain"), pkcs10(t, softKey(t))))
	equal(t, "usages", fmt.Sprint(c.ExtKeyUsage, c.DNSNames), fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []string{}))
}

// TestESTOneKey: however many come at once with the password, one key gets a certificate (I1).
func TestESTOneKey(t *testing.T) {
	s := newSite(t)
	p := s.invite("host9")
	other, err := s.another()
	s.must(err)
	var bodies []string
	for range 16 {
		bodies = append(bodies, pkcs10(t, softKey(t)))
	}
	var wg sync.WaitGroup
	got := make([]reply, len(bodies))
	for i, body := range bodies {
		h := []*Head{s.Head, other}[i%2]
		wg.Go(func() {
			got[i] = est(h, pathSimpleEnroll, body, func(r *http.Request) { r.SetBasicAuth("host9", string(p)) })
		})
	}
	wg.Wait()
	given := 0
	for _, r := range got {
		if r.status == http.StatusOK {
			given++
		}
	}
	equal(t, "answers", given, 1)
	equal(t, "certificates", s.issues(), 1)
}

// TestESTPassword: whatever is wrong with name and password looks the same.
func TestESTPassword(t *testing.T) {
	s, body := newSite(t), pkcs10(t, softKey(t))
	s.enable("n0")
	p, other := s.invite("host9"), s.invite("host8")
	old := s.invite("twice")
	s.invite("twice")
	gone := s.invite("gone")
	s.revoke(RevokeRequest{IDs: []string{"gone"}})
	want := s.simple("host9", "wrong", body)
	turned(t, "wrong", want, http.StatusUnauthorized)
	if !strings.HasPrefix(want.header.Get("WWW-Authenticate"), "Basic ") {
		t.Error("no WWW-Authenticate")
	}
	for what, ask := range map[string]func() reply{
		"none": func() reply { return est(s.Head, pathSimpleEnroll, body, nil) },
		"not Basic": func() reply {
			return est(s.Head, pathSimpleEnroll, body, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+string(p)) })
		},
		"empty":           func() reply { return s.simple("host9", "", body) },
		"another's":       func() reply { return s.simple("host9", other, body) },
		"unknown name":    func() reply { return s.simple("nobody", p, body) },
		"long name":       func() reply { return s.simple(strings.Repeat("x", 5000), p, body) },
		"a path":          func() reply { return s.simple("../ca", p, body) },
		"a node's name":   func() reply { return s.simple("n0", p, body) },
		"in lower case":   func() reply { return s.simple("host9", Password(strings.ToLower(string(p))), body) },
		"its hash":        func() reply { return s.simple("host9", Password(s.record("host9").Grant.Password), body) },
		"replaced":        func() reply { return s.simple("twice", old, body) },
		"revoked":         func() reply { return s.simple("gone", gone, body) },
		"before the body": func() reply { return s.simple("host9", "wrong", "!") },
	} {
		s.clock.move(passwordWindow)
		if r := ask(); r.status != want.status || !bytes.Equal(r.body, want.body) || !sameHeader(r.header, want.header) {
			t.Errorf("%s: got %d %s", what, r.status, r.body)
		}
	}
	given(t, s.simple("host9", p, body))
	equal(t, "certificates", s.issues(), 1)

	s.disable("host8")
	turned(t, "disabled", s.simple("host8", other, pkcs10(t, softKey(t))), http.StatusForbidden)
	late := s.invite("late")
	s.clock.move(time.Hour)
	turned(t, "late", s.simple("late", late, pkcs10(t, softKey(t))), http.StatusForbidden)
	equal(t, "why", s.reason("late"), whyWindowOver)
}

// TestESTPasswordLimit of one address, of a name, and that it ends.
func TestESTPasswordLimit(t *testing.T) {
	s, body := newSite(t), pkcs10(t, softKey(t))
	p := s.invite("host9")
	from := func(addr string, name string, p Password) reply {
		return est(s.Head, pathSimpleEnroll, body, func(r *http.Request) { r.RemoteAddr = addr; r.SetBasicAuth(name, string(p)) })
	}
	for i := range passwordsPerAddress {
		turned(t, "wrong", from("10.0.0.7:1", fmt.Sprintf("x%d", i), "wrong"), http.StatusUnauthorized)
	}
	r := from("10.0.0.7:2", "host9", p)
	turned(t, "right, but too late", r, http.StatusTooManyRequests)
	equal(t, "Retry-After", r.header.Get("Retry-After"), "60")
	given(t, from("10.0.0.8:1", "host9", p))
	for i := range 3 * passwordsPerAddress { // right ones do not count
		given(t, from("10.0.0.8:1", "host9", p))
		if i < passwordsPerAddress/2 {
			turned(t, "wrong", from("10.0.0.8:1", "host9", "wrong"), http.StatusUnauthorized)
		}
	}
	s.clock.move(passwordWindow)
	given(t, from("10.0.0.7:2", "host9", p))
	for i := range passwordsPerName {
		turned(t, "wrong", from(fmt.Sprintf("10.1.0.%d:1", i), "host9", "wrong"), http.StatusUnauthorized)
	}
	turned(t, "a crowd's", from("10.2.0.1:1", "host9", "wrong"), http.StatusTooManyRequests)
	for i := range 2 * passwordsTotal {
		from(fmt.Sprintf("10.3.%d.%d:1", i>>8, i&255), fmt.Sprintf("x%d", i), "wrong")
	}
	if n := len(s.passwords.from); n > 2*passwordsTotal+2 {
		t.Errorf("the limit remembers %d", n)
	}
	s.clock.move(passwordWindow)
	taken := 0
	for i := range 2 * passwordsPerSubnet {
		if from(fmt.Sprintf("[fd00::%x]:1", i), "y", "wrong").status == http.StatusUnauthorized {
			taken++
		}
	}
	equal(t, "of one /64", taken, passwordsPerSubnet)
}

// TestESTNamesAreShort: of a request what is remembered is the name, and not the header that it stood in.
func TestESTNamesAreShort(t *testing.T) {
	s, long := newSite(t), Password(strings.Repeat("x", 16<<10))
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := held()
	for i := range maxStrangers {
		s.simple(fmt.Sprintf("x%d", i), long, "-")
	}
	equal(t, "strangers", len(s.seen.strangers), maxStrangers)
	if after := held(); after > before+maxStrangers*4<<10 {
		t.Errorf("%d names take %d bytes", maxStrangers, after-before)
	}
	runtime.KeepAlive(s)
}

// TestESTStrangersWriteNothing, and cost no signature (I10).
func TestESTStrangersWriteNothing(t *testing.T) {
	s, body := newSite(t), pkcs10(t, softKey(t))
	s.invite("host9")
	forged := certificate(t, softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host9"}}, s.ca().cert, softKey(t).Public(), s.ca().key))
	revision, entries, files := s.revision(), len(s.journal()), s.files()
	for i := range 300 {
		s.clock.move(passwordWindow)
		s.simple(fmt.Sprintf("x%d", i), "wrong", body)
		turned(t, "wrong", s.simple("host9", "wrong", body), http.StatusUnauthorized)
		turned(t, "forged", s.resimple(forged, body), http.StatusForbidden)
		turned(t, "no certificate", est(s.Head, pathSimpleReenroll, body, nil), http.StatusForbidden)
		turned(t, "no path", est(s.Head, "/.well-known/est/label/simpleenroll", body, nil), http.StatusNotFound)
		est(s.Head, pathCACerts, "", nil)
	}
	for path, sum := range s.files() {
		if files[path] != sum {
			t.Errorf("%s was changed", path)
		}
	}
	equal(t, "journal entries", len(s.journal()), entries)
	equal(t, "revision", s.revision(), revision+1)
	equal(t, "throttled names", len(s.refusals.last), 0)
	equal(t, "known", len(s.seen.known), 1)
}

// TestESTKeys: what may be certified, and that nothing but that is.
func TestESTKeys(t *testing.T) {
	s := newSite(t)
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		s.must(err)
		return k
	}
	bits := func(n int) *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, n)
		s.must(err)
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	s.must(err)
	// A key that a node has, and one that was revoked with its certificate.
	node := aStandin(t)
	s.enable("n0")
	s.enrol(node, "n0")
	barred := softKey(t)
	given(t, s.simple("gone", s.invite("gone"), pkcs10(t, barred)))
	s.revoke(RevokeRequest{IDs: []string{"gone"}})
	theirs := softKey(t)
	given(t, s.simple("host8", s.invite("host8"), pkcs10(t, theirs)))

	spoiled := greedyCSR(t, softKey(t))
	spoiled[len(spoiled)-1] ^= 1
	p := s.invite("host9")
	for what, c := range map[string]struct {
		body   string
		status int
	}{
		"P-224":             {pkcs10(t, ec(elliptic.P224())), http.StatusBadRequest},
		"P-521":             {pkcs10(t, ec(elliptic.P521())), http.StatusBadRequest},
		"Ed25519":           {pkcs10(t, ed), http.StatusBadRequest},
		"RSA-1024":          {pkcs10(t, smallRSA(t)), http.StatusBadRequest},
		"a wrong signature": {base64.StdEncoding.EncodeToString(spoiled), http.StatusBadRequest},
		"a node's":          {pkcs10(t, node.Signer()), http.StatusForbidden},
		"another client's":  {pkcs10(t, theirs), http.StatusForbidden},
		"a revoked one":     {pkcs10(t, barred), http.StatusForbidden},
	} {
		turned(t, what, s.simple("host9", p, c.body), c.status)
	}
	equal(t, "used", s.record("host9").Grant.Used, false)
	for i, k := range []crypto.Signer{ec(elliptic.P256()), ec(elliptic.P384()), bits(2048), bits(3072)} {
		name := fmt.Sprintf("good%d", i)
		given(t, s.simple(name, s.invite(name), pkcs10(t, k)))
	}
}

// smallRSA has no size that crypto/rsa makes by default.
func smallRSA(t *testing.T) crypto.Signer {
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestWeakModuli: a small factor, and primes that are close to each other.
func TestWeakModuli(t *testing.T) {
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p, q := good.Primes[0], new(big.Int).Add(good.Primes[0], big.NewInt(2))
	for !q.ProbablyPrime(10) {
		q.Add(q, big.NewInt(2))
	}
	for what, c := range map[string]struct {
		n    *big.Int
		weak bool
	}{
		"a good one":   {good.N, false},
		"close primes": {new(big.Int).Mul(p, q), true},
		"a square":     {new(big.Int).Mul(p, p), true},
		"even":         {new(big.Int).Lsh(p, 1), true},
		"by 751":       {new(big.Int).Mul(p, big.NewInt(751)), true},
	} {
		equal(t, what, weakModulus(c.n), c.weak)
	}
	for e, ok := range map[int]bool{3: false, 65537: true} {
		equal(t, fmt.Sprintf("exponent %d", e), checkKeyKind(&rsa.PublicKey{N: good.N, E: e}) == nil, ok)
	}
	equal(t, "8192 bits", checkKeyKind(&rsa.PublicKey{N: new(big.Int).Lsh(good.N, 6144), E: 65537}) == nil, false)
}

// TestESTBodies that cannot be used end in 400 or 413, and use no password up.
func TestESTBodies(t *testing.T) {
	s, key := newSite(t), softKey(t)
	p, good := s.invite("host9"), pkcs10(t, key)
	der := greedyCSR(t, key)
	for what, c := range map[string]struct {
		body   string
		status int
	}{
		"empty":        {" ", http.StatusBadRequest},
		"DER":          {string(der), http.StatusBadRequest},
		"PEM":          {"-----BEGIN CERTIFICATE REQUEST-----\n" + good + "\n-----END CERTIFICATE REQUEST-----\n", http.StatusBadRequest},
		"cut":          {good[:len(good)/8*4], http.StatusBadRequest},
		"more behind":  {base64.StdEncoding.EncodeToString(append(der, 0)), http.StatusBadRequest},
		"deep":         {base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x30, 0x80}, 6000)), http.StatusBadRequest},
		"too large":    {strings.Repeat("A", wire.MaxBody+4), http.StatusRequestEntityTooLarge},
		"blanks":       {strings.Repeat(" ", wire.MaxBody) + good, http.StatusRequestEntityTooLarge},
		"a big number": {base64.StdEncoding.EncodeToString(append([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, der...)), http.StatusBadRequest},
	} {
		turned(t, what, s.simple("host9", p, c.body), c.status)
	}
	unknownLength := est(s.Head, pathSimpleEnroll, strings.Repeat("A", wire.MaxBody+4), func(r *http.Request) {
		r.ContentLength = -1
		r.SetBasicAuth("host9", string(p))
	})
	turned(t, "too large, of unknown length", unknownLength, http.StatusRequestEntityTooLarge)
	given(t, s.simple("host9", p, good))
}

// FuzzParseCSR: an error, or a key that may be certified.
func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(pkcs10(f, key)))
	f.Add([]byte("MAA="))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseCSR(body)
		if (c == nil) != (err != nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if c != nil && (checkKeyKind(c.key) != nil || len(c.fingerprint) != 64) {
			t.Errorf("%T of %s", c.key, c.fingerprint)
		}
	})
}

// TestESTReenroll: for the same key and for another; an answer that was lost can be had again; the certificate that
// was shown ends when the new one is.
func TestESTReenroll(t *testing.T) {
	s, key, next := newSite(t), softKey(t), softKey(t)
	p := s.invite("host9")
	first := given(t, s.simple("host9", p, pkcs10(t, key)))
	s.clock.move(60 * 24 * time.Hour)

	r := s.resimple(first, pkcs10(t, key))
	second := given(t, r)
	equal(t, "key", key.PublicKey.Equal(second.PublicKey), true)
	equal(t, "later", second.NotAfter.After(first.NotAfter), true)
	equal(t, "subject", second.Subject.String()+second.URIs[0].String(), first.Subject.String()+first.URIs[0].String())
	equal(t, "lost answer", string(s.resimple(first, pkcs10(t, key)).body), string(r.body))
	equal(t, "not before its use", len(s.crlNow().RevokedCertificateEntries), 0)

	third := given(t, s.resimple(second, pkcs10(t, next)))
	equal(t, "key", next.PublicKey.Equal(third.PublicKey), true)
	wantListed(t, s.crlNow(), first)
	turned(t, "the first", s.resimple(first, pkcs10(t, key)), http.StatusForbidden)
	// The third was lost, and the key with it: the second leads to a fourth, and the third ends.
	fourth := given(t, s.resimple(second, pkcs10(t, softKey(t))))
	wantListed(t, s.crlNow(), first, third)
	turned(t, "the third", s.resimple(third, pkcs10(t, next)), http.StatusForbidden)
	equal(t, "on record", s.record("host9").Cert.Serial, serialHex(fourth.SerialNumber))
	equal(t, "by the password", string(given(t, s.simple("host9", p, pkcs10(t, key))).Raw), string(second.Raw)) // of that key, and still good
}

// TestESTReenrollRefused: what leads to no renewal.
func TestESTReenrollRefused(t *testing.T) {
	s, key := newSite(t), softKey(t)
	enrolled := func(name string) *x509.Certificate {
		return given(t, s.simple(name, s.invite(name), pkcs10(t, softKey(t))))
	}
	node := aStandin(t)
	s.enable("n0")
	nodes := certificate(t, s.enrol(node, "n0").Cert)
	revoked, bySerial, disabled := enrolled("revoked"), enrolled("serial"), enrolled("disabled")
	s.revoke(RevokeRequest{IDs: []string{"revoked"}})
	done := s.revoke(RevokeRequest{Serial: serialHex(bySerial.SerialNumber)})
	equal(t, "revoked", done.Revoked, "serial")
	s.disable("disabled")
	wantListed(t, s.crlServed(), revoked, bySerial)
	for what, c := range map[string]*x509.Certificate{
		"a node's": nodes, "revoked": revoked, "revoked by its serial": bySerial, "disabled": disabled, "the head's own": s.server.Load().Leaf,
		"the CA's": s.ca().cert,
	} {
		turned(t, what, s.resimple(c, pkcs10(t, key)), http.StatusForbidden)
	}
	equal(t, "of a node", s.reason("n0"), whyClass)
	// And the other way round: a host's certificate is no node's.
	good := enrolled("host9")
	_, no := s.self(t.Context(), good, &peer{})
	equal(t, "at the node's listener", no.reason, whyClass)
	// Nor is its name, open or not: a TPM is no password.
	s.invite("open")
	for _, name := range []string{"host9", "open"} {
		equal(t, "in a challenge", s.post(wire.PathChallenge, aStandin(t).ChallengeRequest(name)).code(), wire.NotEnabled)
	}

	turned(t, "a wrong request", s.resimple(good, "!"), http.StatusBadRequest)
	for range renewalsOfName {
		good = given(t, s.resimple(good, pkcs10(t, softKey(t))))
		equal(t, "state", s.record("host9").state(s.clock.now()), StateIssued)
	}
	turned(t, "too often", s.resimple(good, pkcs10(t, softKey(t))), http.StatusTooManyRequests)
	s.clock.move(renewalWindow)
	good = given(t, s.resimple(good, pkcs10(t, softKey(t))))
	s.clock.move(nodeLife)
	turned(t, "over", s.resimple(good, pkcs10(t, key)), http.StatusForbidden)
	equal(t, "state", s.record("host9").state(s.clock.now()), StateExpired)
}

// TestESTNewGrant: what a client had ends at once when its new password is used, for whatever key.
func TestESTNewGrant(t *testing.T) {
	s := newSite(t)
	first := given(t, s.simple("host9", s.invite("host9"), pkcs10(t, softKey(t))))
	p := s.invite("host9")
	given(t, s.resimple(first, pkcs10(t, softKey(t)))) // an open grant ends nothing
	second := s.record("host9").Cert.DER
	last := softKey(t)
	given(t, s.simple("host9", p, pkcs10(t, last)))
	wantListed(t, s.crlNow(), first, certificate(t, second))
	for _, c := range []*x509.Certificate{first, certificate(t, second)} {
		turned(t, "what ended", s.resimple(c, pkcs10(t, last)), http.StatusForbidden)
	}

	s.revoke(RevokeRequest{IDs: []string{"host9"}})
	if _, err := s.tryInvite("host9"); err == nil {
		t.Error("a revoked client is invited without --again")
	}
	p = s.invite("host9", again)
	turned(t, "the key that was revoked", s.simple("host9", p, pkcs10(t, last)), http.StatusForbidden)
	equal(t, "why", s.reason("host9"), whyKeyBarred)
	given(t, s.simple("host9", p, pkcs10(t, softKey(t))))
}

// TestESTNames: no client has the name of a node or of a head, and no node or head a client's.
func TestESTNames(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	s.invite("host9")
	named := func(dns ...string) func(*EnableRequest) { return func(r *EnableRequest) { r.DNS = dns } }
	at := func(ip string) func(*EnableRequest) { return func(r *EnableRequest) { r.IP = []string{ip} } }
	invite := func(name string, options ...func(*EnableRequest)) error {
		_, err := s.tryInvite(name, options...)
		return err
	}
	_, addHost := s.adminHost(t.Context(), HostRequest{Add: []string{"host9"}}, noStream())
	before := len(s.journal())
	_, importing := s.tryImport("name,mac\nhost9,52:54:00:00:00:01\n")
	for what, err := range map[string]error{
		"a node":              invite("n0"),
		"a head":              invite("HEAD"),
		"a head's DNS name":   invite("new", named("new.example.org", "head")),
		"a head's address":    invite("new", at("::ffff:127.0.0.1")),
		"a node's DNS name":   invite("new", named("n0")),
		"a client as a node":  s.tryEnable("host9"),
		"a client as a head":  addHost,
		"in the inventory":    importing,
		"a client with an EK": s.tryEnable("host9", pinned(strings.Repeat("a", 64))),
		"with a level":        invite("new", atLevel(wire.TOFU)),
		"all":                 invite("new", func(r *EnableRequest) { r.IDs, r.All = nil, true }),
		"too many":            invite("h[1-100]"),
	} {
		var e *AdminError
		if !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	equal(t, "journal entries", len(s.journal()), before)
	done, err := s.adminEnable(t.Context(), EnableRequest{All: true, For: time.Hour}, noStream())
	s.must(err)
	equal(t, "all", done.(*Changed).Nodes, "n0")

	s.imports("name\nn1\n")
	s.invite("later") // it need not be in the inventory

	// Two administrators at once, and the name is one or the other.
	for i := range 20 {
		name := fmt.Sprintf("both%d", i)
		var asNode, asHost error
		var wg sync.WaitGroup
		wg.Go(func() { asNode = s.tryEnable(name, func(r *EnableRequest) { r.Create = true }) })
		wg.Go(func() { asHost = invite(name) })
		wg.Wait()
		equal(t, name, (asNode == nil) != (asHost == nil), true)
		equal(t, name+" is a client", s.record(name).Host, asHost == nil)
	}
}

// TestESTHeadTakesTheName while the client is enabled: the transaction finds out.
func TestESTHeadTakesTheName(t *testing.T) {
	s := newSite(t)
	item, err := s.store.Get(t.Context(), prefixSlot+"new")
	s.must(err)
	item.Key = prefixSlot + "new"
	e, err := s.Head.enable(t.Context(), item, EnableRequest{For: time.Hour, Password: true}, s.clock.now())
	s.must(err)
	_, err = s.adminHost(t.Context(), HostRequest{Add: []string{"new"}}, noStream())
	s.must(err)
	e.tx.Guards = append(e.tx.Guards, item.Guard())
	e.tx.Puts = append(e.tx.Puts, put(item.Key, e.slot))
	if err := s.store.Commit(t.Context(), e.tx); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v", err)
	}
}

// TestESTCACerts: what clients are to trust, through a rotation, which does not wait for them; and csrattrs.
func TestESTCACerts(t *testing.T) {
	s := newSite(t)
	roots := func() (names []string) {
		for _, c := range bagged(t, est(s.Head, pathCACerts, "", nil)) {
			names = append(names, c.Subject.CommonName)
		}
		return names
	}
	first := given(t, s.simple("host9", s.invite("host9"), pkcs10(t, softKey(t))))
	equal(t, "roots", len(roots()), 1)
	s.rotate(RotateRequest{})
	equal(t, "roots", len(roots()), 2)
	s.rotate(RotateRequest{Finish: true})
	second := given(t, s.resimple(first, pkcs10(t, softKey(t))))
	s.must(second.CheckSignatureFrom(s.ca().cert))
	s.rotate(RotateRequest{RevokeAll: true})
	equal(t, "roots", len(roots()), 1)
	turned(t, "of a CA that ended", s.resimple(second, pkcs10(t, softKey(t))), http.StatusForbidden)

	r := est(s.Head, pathCSRAttrs, "", nil)
	equal(t, "csrattrs", string(r.body), "MCEwFQYHKoZIzj0CATEKBggqhkjOPQMBBwYIKoZIzj0EAwI=")
	equal(t, "type", r.header.Get("Content-Type"), "application/csrattrs")
}

// TestESTStoreCannotWrite: no answer without a record (I2), and the client may try again (I3).
func TestESTStoreCannotWrite(t *testing.T) {
	s := newSite(t)
	f := &faulty{Store: s.store}
	s.wrap = func(store.Store) store.Store { return f }
	s.open()
	p, body := s.invite("host9"), pkcs10(t, softKey(t))
	for _, done := range []bool{false, true} { // an error, and the disk has it or not
		f.fail = func(store.Tx) (bool, error) { return done, store.ErrFull }
		r := s.simple("host9", p, body)
		turned(t, "no store", r, http.StatusServiceUnavailable)
		if r.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	f.fail = nil
	given(t, s.simple("host9", p, body))
	equal(t, "certificates", s.issues(), 1)
}

// TestESTListener: TLS from 1.2 on, nothing of the node's, bounded headers.
func TestESTListener(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.serveOn(t, Listeners{EST: []net.Listener{l}})
	d := &door{site: s, addr: l.Addr().String()}
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		cfg := d.tls(nil, nil)
		cfg.MinVersion, cfg.MaxVersion = version, version
		conn, err := tls.Dial("tcp", d.addr, cfg)
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if conn != nil {
			conn.Close()
		}
	}
	for _, path := range []string{wire.PathBundle, wire.PathSelf, "/.well-known/est", "/.well-known/est/cacerts/", "/.well-known/est/cacerts?x"} {
		_, resp := d.raw(t, "GET "+path+" HTTP/1.1\r\nHost: head\r\n\r\n")
		equal(t, path, resp.StatusCode, http.StatusNotFound)
	}
	_, resp := d.raw(t, "GET "+pathCACerts+" HTTP/1.1\r\nHost: head\r\nX: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n")
	equal(t, "header bomb", resp.StatusCode, http.StatusRequestHeaderFieldsTooLarge)

	// A whole answer is one record of TLS, also where it is more than a packet.
	s.rotate(RotateRequest{})
	conn := d.dial(t, d.tls(nil, nil))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: head\r\n\r\n", pathCACerts)
	buffer := make([]byte, 16<<10)
	n, err := conn.Read(buffer) // never more than a record
	s.must(err)
	whole, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(buffer[:n])), nil)
	s.must(err)
	if body, err := io.ReadAll(whole.Body); err != nil {
		t.Errorf("a record has %d bytes of the answer, %d of its body: %v", n, len(body), err)
	}

	// By TLS 1.2 and a certificate, as old clients do it.
	key := softKey(t)
	cert := given(t, s.simple("host9", s.invite("host9"), pkcs10(t, key)))
	cfg := d.tls(cert.Raw, key)
	cfg.MaxVersion = tls.VersionTLS12
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	defer c.CloseIdleConnections()
	ask := func() reply {
		resp, err := c.Post("https://"+d.addr+pathSimpleReenroll, "application/pkcs10", strings.NewReader(pkcs10(t, key)))
		s.must(err)
		return read(t, resp)
	}
	given(t, ask())
	s.revoke(RevokeRequest{IDs: []string{"host9"}})
	turned(t, "on the same connection, revoked", ask(), http.StatusForbidden)
}

// TestESTWhy has a sentence for each reason, and for each state.
func TestESTWhy(t *testing.T) {
	s := newSite(t)
	says := func(sentence string) {
		t.Helper()
		view := s.why("host9")
		if !strings.Contains(view.Sentence, sentence) {
			t.Errorf("got %q, want %q in it", view.Sentence, sentence)
		}
	}
	key := softKey(t)
	p := s.invite("host9")
	says("may enrol with its password")
	s.simple("host9", "wrong", "")
	s.simple("host9", "wrong", pkcs10(t, key))
	says("with a wrong password or none")
	cert := given(t, s.simple("host9", p, pkcs10(t, key)))
	says("it got certificate")
	s.simple("host9", p, pkcs10(t, softKey(t)))
	says("another key than the one")
	s.resimple(cert, pkcs10(t, key))
	s.clock.move(nodeLife + time.Hour)
	says("was over on")
	s.disable("host9")
	says("was disabled")
	s.revoke(RevokeRequest{IDs: []string{"host9"}})
	says("is revoked")

	rec := &slot{Node: "h", Host: true, Grant: &grant{Used: true, Until: noon}}
	for _, why := range []reason{
		whyPassword, whyOtherKey, whyNotOnRecord, whyClass, whyForm, whyCSR, whyTooLarge, whyTooOften, whyKeyTaken, whyKeyBarred,
		whyStore, whySigning, whyOverload, whyClock, whyDisabled, whyWindowOver, whyExpired, whyCAEnded,
	} {
		sentence, hint, ok := explainHostRefusal(rec, &sighting{Reason: why, Addr: "10.0.0.1", At: noon, Count: 2}, noon.Add(time.Minute))
		if !ok || !strings.Contains(sentence, "10.0.0.1") || hint == "" {
			t.Errorf("%s: %q, %q", why, sentence, hint)
		}
	}
}

// TestPasswordsAreNotPrinted, and are random.
func TestPasswordsAreNotPrinted(t *testing.T) {
	p := newPassword()
	equal(t, "printed", fmt.Sprintf("%v %s %q %+v %#v", p, p, p, Credential{"a", p}, &p), "(password) (password) (password) {Name:a Password:(password)} (password)")
	equal(t, "logged", p.LogValue().String(), "(password)")
	var seen []Password
	for range 100 {
		seen = append(seen, newPassword())
	}
	slices.Sort(seen)
	equal(t, "different", len(slices.Compact(seen)), 100)
	equal(t, "long", len(p) >= 26, true)
	a, b := p.hash(classHost, "a"), p.hash(classHost, "b")
	equal(t, "bound to the name", a == b, false)
	equal(t, "nothing opens nothing", (&grant{}).opens(classHost, "a", ""), false)
	equal(t, "no grant", (*grant)(nil).opens(classHost, "a", p), false)
}

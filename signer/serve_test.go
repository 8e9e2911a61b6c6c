package signer

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
)

// door is a serving head.
type door struct {
	*site
	addr string // of the node listener
	stop func() error
}

// serve lets the head serve on loopback until stop or the test's end.
func (s *site) serve(t *testing.T) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, Listeners{Node: []net.Listener{l}}) }()
	var ended error
	d := &door{site: s, addr: l.Addr().String()}
	d.stop = func() error {
		if ctx.Err() == nil {
			cancel()
			ended = <-done
		}
		return ended
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// tls is how a node connects, with a certificate or without.
func (d *door) tls(cert []byte, key crypto.Signer) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(d.ca().cert)
	cfg := &tls.Config{RootCAs: roots, ServerName: "head", Time: d.clock.now}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}
	}
	return cfg
}

// client is a node's end of one kept-alive connection.
type client struct {
	t      *testing.T
	door   *door
	http   *http.Transport
	reused bool // the last request went over the connection of the one before
}

func (d *door) client(t *testing.T, cert []byte, key crypto.Signer) *client {
	c := &client{t: t, door: d, http: &http.Transport{TLSClientConfig: d.tls(cert, key), MaxConnsPerHost: 1}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func (c *client) get(path string) reply {
	c.t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { c.reused = i.Reused }}
	ctx := httptrace.WithClientTrace(context.Background(), trace)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.door.addr+path, nil)
	c.door.must(err)
	resp, err := c.http.RoundTrip(req)
	c.door.must(err)
	return read(c.t, resp)
}

func read(t *testing.T, resp *http.Response) reply {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, body}
}

func (d *door) dial(t *testing.T, cfg *tls.Config) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", d.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// raw sends text as it is and reads one answer; nothing more is sent.
func (d *door) raw(t *testing.T, text string) (reply, *http.Response) {
	t.Helper()
	conn := d.dial(t, d.tls(nil, nil))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp), resp
}

// TestRecordIsCheckedOnEachRequest: whatever ends a certificate ends it for the next request of a
// connection that is up already (I7).
func TestRecordIsCheckedOnEachRequest(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*site, *key)
		want wire.Code
	}{
		"superseded": {func(s *site, k *key) {
			s.enable("n0")
			next := certificate(t, s.enrol(k.chip.nodeKey(), "n0").Cert)
			equal(t, "before the new one's first use", use(s.Head, certificate(t, s.record("n0").Old.DER)), "")
			equal(t, "first use", use(s.Head, next), "")
		}, wire.NotEnabled},
		"expired":     {func(s *site, k *key) { s.clock.move(nodeLife) }, wire.NotEnabled},
		"revoked":     {func(s *site, k *key) { rec := s.record("n0"); rec.Revoked = true; s.putRecord(rec) }, wire.Revoked},
		"replaced":    {func(s *site, k *key) { s.putRecord(&slot{Node: "n0"}) }, wire.NotEnabled},
		"one byte on": {func(s *site, k *key) { rec := s.record("n0"); rec.Cert.DER[9] ^= 1; s.putRecord(rec) }, wire.NotEnabled},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := newSite(t), aChip(t).nodeKey()
			s.enable("n0")
			cert := s.enrol(k, "n0").Cert
			c := s.serve(t).client(t, cert, k)
			self := decoded[wire.Self](t, c.get(wire.PathSelf))
			if self.Node != "n0" || self.State != string(StateActive) || self.Serial != s.record("n0").Cert.Serial {
				t.Fatalf("got %+v", self)
			}
			test.end(s, k)
			r := c.get(wire.PathSelf)
			if !c.reused {
				t.Fatal("the second request went over another connection")
			}
			refusedWith(t, r, test.want)
		})
	}
}

// TestDisabledCertificateLivesOn: disable closes the grant; only revoke ends a certificate.
func TestDisabledCertificateLivesOn(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	cert := certificate(t, s.enrol(k, "n0").Cert)
	s.disable("n0")
	equal(t, "first use", use(s.Head, cert), "")
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k.chip.nodeKey(), "n0")), wire.Refused)
}

func softCA(t *testing.T, tmpl *x509.Certificate, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) []byte {
	t.Helper()
	tmpl.NotBefore, tmpl.NotAfter = noon.Add(-time.Hour), noon.Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func softKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestForeignCertificates: what is not, byte for byte, the record's is nobody's, whoever signed it.
func TestForeignCertificates(t *testing.T) {
	s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n[0-1]")
	cert, others := s.enrol(k, "n0").Cert, s.enrol(other, "n1").Cert
	real, soft := certificate(t, cert), softKey(t)
	d := s.serve(t)
	named := func(serial *big.Int) *x509.Certificate {
		return &x509.Certificate{SerialNumber: serial, Subject: real.Subject, URIs: real.URIs}
	}
	long := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: strings.Repeat("n0", 3000)}}
	var first []byte
	for name, foreign := range map[string][]byte{
		"none":                        nil,
		"self-signed":                 softCA(t, named(real.SerialNumber), named(real.SerialNumber), soft.Public(), soft),
		"of the CA, same serial":      softCA(t, named(real.SerialNumber), s.ca().cert, soft.Public(), s.ca().key),
		"of the CA, another serial":   softCA(t, named(big.NewInt(1)), s.ca().cert, soft.Public(), s.ca().key),
		"of the CA, no name":          softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1)}, s.ca().cert, soft.Public(), s.ca().key),
		"of the CA, an endless name":  softCA(t, long, s.ca().cert, soft.Public(), s.ca().key),
		"of the CA, an unknown name":  softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n9"}}, s.ca().cert, soft.Public(), s.ca().key),
		"of the CA, a path in a name": softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "../cluster"}}, s.ca().cert, soft.Public(), s.ca().key),
	} {
		r := d.client(t, foreign, soft).get(wire.PathSelf)
		refusedWith(t, r, wire.NotEnabled)
		if first == nil {
			first = r.body
		}
		if !bytes.Equal(r.body, first) {
			t.Errorf("%s: told apart: %s", name, r.body)
		}
	}
	if self := decoded[wire.Self](t, d.client(t, others, other).get(wire.PathSelf)); self.Node != "n1" {
		t.Errorf("n1's certificate is %s's", self.Node)
	}
	if s.record("n0").Cert.Activated {
		t.Error("n0's certificate was used by somebody")
	}
	if _, err := d.client(t, cert, soft).tryGet(wire.PathSelf); err == nil {
		t.Error("n0's certificate works with another key")
	}
	decoded[wire.Self](t, d.client(t, cert, k).get(wire.PathSelf))
}

// tryGet is get for a connection that may fail.
func (c *client) tryGet(path string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, "https://"+c.door.addr+path, nil)
	c.door.must(err)
	resp, err := c.http.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// TestNoResumption: a session ticket would carry an old decision into a new connection.
func TestNoResumption(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	cert := s.enrol(k, "n0").Cert
	d := s.serve(t)
	c := d.client(t, cert, k)
	cache := &tickets{}
	c.http.TLSClientConfig.ClientSessionCache = cache
	for range 2 {
		decoded[wire.Self](t, c.get(wire.PathSelf))
		c.http.CloseIdleConnections()
	}
	if c.reused || cache.put != 0 {
		t.Errorf("%d session tickets were given", cache.put)
	}
}

// tickets counts the session tickets that a server gives.
type tickets struct{ put int }

func (c *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.put++
	}
}

func TestTLS(t *testing.T) {
	d := newSite(t).serve(t)
	old := d.tls(nil, nil)
	old.MaxVersion = tls.VersionTLS12
	if _, err := tls.Dial("tcp", d.addr, old); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	h2 := d.tls(nil, nil)
	h2.NextProtos = []string{"h2"}
	if _, err := tls.Dial("tcp", d.addr, h2); err == nil {
		t.Error("HTTP/2 alone is accepted")
	}
	h2.NextProtos = []string{"h2", "http/1.1"}
	if got := d.dial(t, h2).ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("negotiated %q", got)
	}
	state := d.dial(t, d.tls(nil, nil)).ConnectionState()
	leaf := state.PeerCertificates[0]
	if state.Version != tls.VersionTLS13 || len(state.PeerCertificates) != 2 || !state.PeerCertificates[1].Equal(d.ca().cert) {
		t.Errorf("version %#x, %d certificates", state.Version, len(state.PeerCertificates))
	}
	if len(leaf.UnknownExtKeyUsage) != 1 || !leaf.UnknownExtKeyUsage[0].Equal(wire.HeadEKU) || leaf.NotAfter.Sub(noon) > headLife {
		t.Errorf("the head's certificate: usages %v, until %v", leaf.UnknownExtKeyUsage, leaf.NotAfter)
	}
	for _, host := range []string{"head", "127.0.0.1"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	item, err := d.store.Get(context.Background(), prefixCert+serialHex(leaf.SerialNumber))
	d.must(err)
	if rec, err := parse[certRecord](item); err != nil || !bytes.Equal(rec.DER, leaf.Raw) || rec.Class != classHead {
		t.Errorf("the head's certificate is not on record: %v", err)
	}
}

// TestNodeCertificateIsNoHead: a node cannot play the head to another one.
func TestNodeCertificateIsNoHead(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", func(r *EnableRequest) { r.DNS = []string{"head"} })
	c := certificate(t, s.enrol(k, "n0").Cert)
	roots := x509.NewCertPool()
	roots.AddCert(s.ca().cert)
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: "head", CurrentTime: noon, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err == nil || len(c.UnknownExtKeyUsage) != 0 {
		t.Errorf("verifies as a server: %v, %v", err, c.UnknownExtKeyUsage)
	}
}

// TestBodiesRefusedUnread: the answer comes although no byte of the body was sent.
func TestBodiesRefusedUnread(t *testing.T) {
	d := newSite(t).serve(t)
	const post = "POST /v1/challenge HTTP/1.1\r\nHost: head\r\nContent-Type: application/json\r\n"
	for name, test := range map[string]struct {
		head string
		want wire.Code
	}{
		"too large":     {post + fmt.Sprintf("Content-Length: %d\r\n\r\n", wire.MaxBody+1), wire.TooLarge},
		"huge":          {post + "Content-Length: 1000000000000\r\n\r\n", wire.TooLarge},
		"huge, waiting": {post + "Expect: 100-continue\r\nContent-Length: 20000\r\n\r\n", wire.TooLarge},
		"chunked":       {post + "Transfer-Encoding: chunked\r\n\r\n", wire.BadRequest},
		"gzip":          {post + "Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n", wire.BadRequest},
		"identity":      {post + "Content-Encoding: identity\r\nContent-Length: 100\r\n\r\n", wire.BadRequest},
		"another type":  {strings.Replace(post, "json", "cbor", 1) + "Content-Length: 100\r\n\r\n", wire.BadRequest},
		"type and more": {strings.Replace(post, "json", "json; charset=utf-7", 1) + "Content-Length: 100\r\n\r\n", wire.BadRequest},
		"no type":       {"POST /v1/enroll HTTP/1.1\r\nHost: head\r\nContent-Length: 100\r\n\r\n", wire.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			r, resp := d.raw(t, test.head)
			refusedWith(t, r, test.want)
			if !resp.Close {
				t.Error("the connection is kept, with a body on it that nobody reads")
			}
		})
	}
}

// TestGoodBodyInBadForm: what would be taken as it is, is not taken in another coding.
func TestGoodBodyInBadForm(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	d, body := s.serve(t), string(wire.Encode(k.ChallengeRequest("n0")))
	post := func(header, body string) reply {
		r, _ := d.raw(t, "POST /v1/challenge HTTP/1.1\r\nHost: head\r\nContent-Type: application/json\r\n"+header+"\r\n\r\n"+body)
		return r
	}
	length := fmt.Sprintf("Content-Length: %d", len(body))
	decoded[wire.Challenge](t, post(length, body))
	refusedWith(t, post("Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)), wire.BadRequest)
	refusedWith(t, post(length+"\r\nContent-Encoding: identity", body), wire.BadRequest)
	refusedWith(t, post(length+"\r\nContent-Encoding: gzip", body), wire.BadRequest)
}

// TestLargestBody: 16 KiB are still read, certificates of EKs and all.
func TestLargestBody(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	req := k.ChallengeRequest("n0")
	for size := wire.MaxBody; ; size-- {
		req.EKs[0].Certs = [][]byte{make([]byte, size*3/4)}
		if len(wire.Encode(req)) <= wire.MaxBody {
			break
		}
	}
	decoded[wire.Challenge](t, s.post(wire.PathChallenge, req))
	req.EKs[0].Certs[0] = append(req.EKs[0].Certs[0], 0, 0, 0)
	refusedWith(t, s.post(wire.PathChallenge, req), wire.TooLarge)
}

// TestStrictJSON: one request has one form.
func TestStrictJSON(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	for path, good := range map[string]string{
		wire.PathChallenge: string(wire.Encode(k.ChallengeRequest("n0"))),
		wire.PathEnroll:    string(wire.Encode(s.answered(k, "n0"))),
	} {
		for name, bad := range map[string]string{
			"unknown field":      strings.Replace(good, `{"v":1`, `{"v":1,"admin":true`, 1),
			"a field twice":      strings.Replace(good, `"node":"n0"`, `"node":"n1","node":"n0"`, 1),
			"twice, other case":  strings.Replace(good, `"node":"n0"`, `"node":"n0","NODE":"n1"`, 1),
			"another case":       strings.Replace(good, `"node"`, `"Node"`, 1),
			"white space":        strings.Replace(good, `,`, `, `, 1),
			"an escape":          strings.Replace(good, `"n0"`, `"\u006e0"`, 1),
			"not UTF-8":          strings.Replace(good, `"n0"`, "\"n\xff\"", 1),
			"a line at its end":  good + "\n",
			"two values":         good + good,
			"an array":           "[" + good + "]",
			"null":               "null",
			"nothing":            "",
			"a number as a text": strings.Replace(good, `"v":1`, `"v":"1"`, 1),
			"a float":            strings.Replace(good, `"v":1`, `"v":1.0`, 1),
			"deep":               strings.Repeat("[", 8000) + strings.Repeat("]", 8000),
		} {
			if r := post(s.Head, path, []byte(bad)); r.code() != wire.BadRequest {
				t.Errorf("%s, %s: got %d %s", path, name, r.status, r.body)
			}
		}
		if r := post(s.Head, path, []byte(good)); r.status != http.StatusOK {
			t.Errorf("%s: the good one is refused: %s", path, r.body)
		}
	}
}

// TestUnknownPathsAndVerbs: an allow-list, and one answer for all else.
func TestUnknownPathsAndVerbs(t *testing.T) {
	d := newSite(t).serve(t)
	var first []byte
	for _, line := range []string{
		"GET /", "GET /v1", "GET /v1/", "GET /v1/bundle/", "GET //v1/bundle", "GET /v1//bundle", "GET /v1/../v1/bundle",
		"GET /v1/./bundle", "GET /V1/bundle", "GET /v1/%62undle", "GET /v1/bundle%00", "GET /v1/bundle?", "GET /v1/bundle?x=1",
		"GET /v1/bundle;x", "GET /v1/renew", "GET /v1/challenge", "GET /v1/enroll", "GET /admin/list", "GET /readyz", "GET /metrics",
		"POST /v1/bundle", "POST /v1/self", "POST /v1/challenge?x=1", "POST //v1/challenge", "POST /admin/enable",
		"PUT /v1/challenge", "PATCH /v1/enroll", "DELETE /v1/self", "OPTIONS /v1/self", "TRACE /v1/self", "BREW /v1/bundle",
	} {
		r, resp := d.raw(t, line+" HTTP/1.1\r\nHost: head\r\nContent-Length: 0\r\n\r\n")
		refusedWith(t, r, wire.NotFound)
		if first == nil {
			first = r.body
		}
		if !resp.Close || !bytes.Equal(r.body, first) {
			t.Errorf("%s: got %s, connection closed: %v", line, r.body, resp.Close)
		}
	}
}

func TestBundle(t *testing.T) {
	d := newSite(t).serve(t)
	r := d.client(t, nil, nil).get(wire.PathBundle)
	if r.status != http.StatusOK || string(r.body) != string(certificatePEM(d.ca().cert.Raw)) {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// TestServeEnds: what was under way is finished, and nothing goes on running.
func TestServeEnds(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	cert := s.enrol(k, "n0").Cert
	d := s.serve(t)
	decoded[wire.Self](t, d.client(t, cert, k).get(wire.PathSelf))
	d.raw(t, "GET / HTTP/1.1\r\nHost: head\r\n\r\n")
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	for range 200 {
		if !strings.Contains(goroutines(), "signer.(*Head)") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left running:\n%s", goroutines())
}

// goroutines are the stacks of all.
func goroutines() string {
	var b strings.Builder
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	return b.String()
}

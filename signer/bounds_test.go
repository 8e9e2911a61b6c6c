package signer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// files are the contents of all files below the state directory.
func (s *site) files() map[string][32]byte {
	s.t.Helper()
	sums := map[string][32]byte{}
	s.must(filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		sums[path] = sha256.Sum256(b)
		return err
	}))
	return sums
}

// revision is that of a commit made now.
func (s *site) revision() uint64 {
	s.t.Helper()
	s.must(s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: "probe"}}}))
	item, err := s.store.Get(context.Background(), "probe")
	s.must(err)
	return item.Revision
}

// TestStrangersWriteNothing: 2,000 requests of peers that prove nothing, and some for readyz (I10).
func TestStrangersWriteNothing(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	made := s.answered(k, "n0")
	made.Proof[0] ^= 1
	soft := softKey(t)
	self := certificate(t, softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n0"}}, s.ca().cert, soft.Public(), s.ca().key))
	revision, entries, files := s.revision(), len(s.journal()), s.files()
	for i := range 400 {
		name := fmt.Sprintf("stranger%d", i)
		refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest(name)), wire.NotEnabled)
		decoded[wire.Challenge](t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")))
		refusedWith(t, s.post(wire.PathEnroll, made), wire.StaleChallenge)
		refusedWith(t, post(s.Head, wire.PathEnroll, []byte("{}")), wire.BadRequest)
		equal(t, "use", use(s.Head, self), wire.NotEnabled)
		equal(t, "readyz", s.public("/readyz").status, http.StatusOK)
	}
	for path, sum := range s.files() {
		if files[path] != sum {
			t.Errorf("%s was changed", path)
		}
	}
	equal(t, "files", len(s.files()), len(files))
	equal(t, "journal entries", len(s.journal()), entries)
	equal(t, "revision", s.revision(), revision+1)
	equal(t, "throttled names", len(s.refusals.last), 0)
}

// TestThrottle forgets, and lets nothing through more often for it.
func TestThrottle(t *testing.T) {
	limit, now := &throttle{last: map[string]time.Time{}}, noon
	for i := range 1000 {
		name := fmt.Sprintf("n%d", i)
		equal(t, name, limit.allow(name, now), true)
		now = now.Add(time.Second)
		equal(t, name+" again", limit.allow(name, now), false)
	}
	if n := len(limit.last); n > 120 {
		t.Errorf("%d names are remembered", n)
	}
	equal(t, "after a minute", limit.allow("n999", now.Add(time.Minute)), true)
	equal(t, "when the clock was set back", limit.allow("n999", now.Add(-time.Hour)), true)
	equal(t, "again", limit.allow("n999", now.Add(-time.Hour)), false)
}

// TestStrangersArePushedOutByStrangers and by nobody else.
func TestStrangersArePushedOutByStrangers(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()))
	stranger := aChip(t).nodeKey()
	refusedWith(t, s.post(wire.PathChallenge, stranger.ChallengeRequest("n0")), wire.NotEnabled)
	for i := range maxStrangers + 500 {
		s.post(wire.PathChallenge, stranger.ChallengeRequest(fmt.Sprintf("x%d", i)))
	}
	equal(t, "reason", s.reason("n0"), whyOtherTPM)
	equal(t, "strangers", len(s.seen.strangers), maxStrangers)
	equal(t, "strangers in order", s.seen.order.Len(), maxStrangers)
	equal(t, "known", len(s.seen.known), 1)
	if s.seen.of("x499") != (trace{}) {
		t.Error("the oldest strangers are still there")
	}
	if last := s.seen.of(fmt.Sprintf("x%d", maxStrangers+499)).last; last == nil || last.Count != 1 {
		t.Error("the newest stranger is not there")
	}
	// What is kept of each is small, whatever it sends.
	soft := softKey(t)
	huge := certificate(t, softCA(t, &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject: pkix.Name{CommonName: strings.Repeat("x", 60000)}}, s.ca().cert, soft.Public(), s.ca().key))
	who := &peer{}
	_, no := s.self(t.Context(), huge, who)
	if len(who.node) > maxNodeName || len(no.detail) > 200 {
		t.Errorf("remembers %d bytes of a name and %d of a reason", len(who.node), len(no.detail))
	}
}

func TestSightingsCount(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	for range 3 {
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}
	if last := s.seen.of("n0").last; last.Count != 3 || last.Reason != whyUnknown {
		t.Errorf("got %+v", last)
	}
	s.enable("n0")
	s.challenged(k, "n0")
	if last := s.seen.of("n0").last; last.Count != 1 || last.Reason != "" {
		t.Errorf("got %+v", last)
	}
}

// loopback dials from an address of 127.0.0.0/8.
func loopback(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// admitted says whether the head speaks TLS with c.
func (d *door) admitted(c net.Conn) bool { return tls.Client(c, d.tls(nil, nil)).Handshake() == nil }

func TestConnectionLimits(t *testing.T) {
	s := newSite(t)
	s.gate.limits.PerAddress, s.gate.limits.Total = 3, 5
	d := s.serve(t)
	var first net.Conn
	for i, from := range []string{"127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		c := loopback(t, from, d.addr)
		if !d.admitted(c) {
			t.Fatalf("connection %d was refused", i)
		}
		if first == nil {
			first = c
		}
	}
	for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.9"} {
		if d.admitted(loopback(t, from, d.addr)) {
			t.Errorf("one more connection from %s was admitted", from)
		}
	}
	first.Close()
	for try := 0; !d.admitted(loopback(t, "127.0.0.1", d.addr)); try++ {
		if try == 500 {
			t.Fatal("the room of a closed connection is not free again")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestLimitOfOneAddress(t *testing.T) {
	s := newSite(t)
	s.gate.limits.PerAddress, s.gate.limits.Total = 2, 5
	d := s.serve(t)
	for i := range 3 {
		if got := d.admitted(loopback(t, "127.0.0.1", d.addr)); got != (i < 2) {
			t.Errorf("connection %d: admitted %v", i, got)
		}
	}
	if !d.admitted(loopback(t, "127.0.0.2", d.addr)) {
		t.Error("another address was refused")
	}
}

// TestSources: an IPv6 peer counts for its address and for its /64.
func TestSources(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1":             "[10.0.0.1/32]",
		"::ffff:10.0.0.1":      "[10.0.0.1/32]",
		"2001:db8:1:2:3:4:5:6": "[2001:db8:1:2:3:4:5:6/128 2001:db8:1:2::/64]",
		"fe80::1%eth0":         "[fe80::1/128 fe80::/64]",
	} {
		ip := netip.MustParseAddr(addr)
		if got := fmt.Sprint(sources(net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 1)))); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
}

// TestOneHostDoesNotShutOutItsSubnet: nor does one with very many addresses take all there is.
func TestOneHostDoesNotShutOutItsSubnet(t *testing.T) {
	l := newGate(Limits{PerAddress: 3, Total: 20})
	from := func(addr string) bool {
		return l.enter(sources(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1))))
	}
	for i := range 5 {
		equal(t, fmt.Sprintf("connection %d of one host", i), from("fd00::2"), i < 3)
	}
	equal(t, "its neighbour", from("fd00::3"), true)
	admitted := 0
	for i := range 100 {
		if from(fmt.Sprintf("fd00::1:%x", i)) {
			admitted++
		}
	}
	equal(t, "connections of one /64", admitted+4, 10)
	equal(t, "another network", from("fd00:1::1"), true)
}

// TestFloodOfCertificates: what a stranger sends in a handshake is neither taken in whole nor kept.
func TestFloodOfCertificates(t *testing.T) {
	d := newSite(t).serve(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for count, taken := range map[int]bool{1: true, 8: false, 600: false} {
		crowd := tls.Certificate{PrivateKey: key}
		for range count {
			crowd.Certificate = append(crowd.Certificate, der)
		}
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
			InsecureSkipVerify:   true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &crowd, nil },
		}}}
		resp, err := c.Get("https://" + d.addr + wire.PathBundle)
		if err == nil {
			resp.Body.Close()
		}
		equal(t, fmt.Sprintf("%d certificates taken", count), err == nil, taken)
		c.CloseIdleConnections()
	}
}

func TestDefaultLimits(t *testing.T) {
	equal(t, "limits", Limits{}.orDefault(), Limits{PerAddress: 256, Total: 8192, Queue: 5 * time.Second})
	equal(t, "one set", Limits{Total: 9}.orDefault(), Limits{PerAddress: 256, Total: 9, Queue: 5 * time.Second})
	srv := newServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if srv.ReadHeaderTimeout == 0 || srv.ReadTimeout == 0 || srv.WriteTimeout == 0 || srv.IdleTimeout == 0 || srv.MaxHeaderBytes > 16<<10 {
		t.Errorf("a server without deadlines: %+v", srv)
	}
}

// TestSilentConnectionsAreClosed: before, in and after the handshake, and in the middle of a request.
func TestSilentConnectionsAreClosed(t *testing.T) {
	t.Parallel() // it waits for the server's deadlines
	d := newSite(t).serve(t)
	hello := func(c net.Conn) { io.WriteString(c, "\x16\x03\x01\x02\x00\x01") }
	for name, say := range map[string]func(net.Conn) net.Conn{
		"nothing":        func(c net.Conn) net.Conn { return c },
		"half a hello":   func(c net.Conn) net.Conn { hello(c); return c },
		"no request":     func(c net.Conn) net.Conn { return d.over(c, "") },
		"half a request": func(c net.Conn) net.Conn { return d.over(c, "GET /v1/bundle HTTP/1.1\r\nHost:") },
		"no body": func(c net.Conn) net.Conn {
			return d.over(c, "POST /v1/enroll HTTP/1.1\r\nHost: head\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", d.addr)
			d.must(err)
			defer c.Close()
			spoken := say(c)
			c.SetReadDeadline(time.Now().Add(2 * time.Minute)) // far beyond the server's; only so that a failure is one
			if _, err := io.Copy(io.Discard, spoken); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("still open")
			}
		})
	}
}

// over completes the handshake and sends text.
func (d *door) over(c net.Conn, text string) net.Conn {
	t := tls.Client(c, d.tls(nil, nil))
	io.WriteString(t, text)
	return t
}

// TestLongHeaders: a request's head has a bound too.
func TestLongHeaders(t *testing.T) {
	d := newSite(t).serve(t)
	r, _ := d.raw(t, "GET /v1/bundle HTTP/1.1\r\nHost: head\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	equal(t, "status", r.status, http.StatusRequestHeaderFieldsTooLarge)
}

// TestOverload: a request that finds no processor in time is told to come back.
func TestOverload(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	s.queue = time.Nanosecond
	for range cap(s.working) {
		s.working <- struct{}{}
	}
	r := s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	refusedWith(t, r, wire.Busy)
	if r.header.Get("Retry-After") == "" {
		t.Error("busy without Retry-After")
	}
	<-s.working
	s.challenged(k, "n0")
	equal(t, "places taken", len(s.working), cap(s.working)-1)
	if bytes.Contains(r.body, []byte("n0")) {
		t.Errorf("the answer tells of the node: %s", r.body)
	}
}

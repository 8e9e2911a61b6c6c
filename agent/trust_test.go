package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// listen serves TLS with cert on loopback.
func listen(t testing.TB, cert tls.Certificate, h http.Handler) (*url.URL, *server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert,
	}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.ServeTLS(s, "", "")
	t.Cleanup(func() { srv.Close() })
	return &url.URL{Scheme: "https", Host: l.Addr().String()}, s
}

// server counts connections.
type server struct {
	net.Listener
	accepted atomic.Int32
}

func (s *server) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.accepted.Add(1)
	}
	return c, err
}

func testBoot(tr *trust, heads ...*url.URL) *boot {
	return &boot{trust: tr, Agent: &Agent{
		heads: heads, wait: 5 * time.Second, log: slog.New(slog.DiscardHandler),
		named: true, network: func(context.Context, error) error { return nil },
		clock: &clock{now: func() time.Time { return day0 }, synchronised: func() bool { return true }, mode: clockTrust},
	}}
}

// TestHandshake: what a head must show before it gets so much as a request.
// TestRemedy: the hint about a wrong pin names the place that counts.
func TestRemedy(t *testing.T) {
	for from, want := range map[string]string{
		"--ca":                           "behind --ca",
		"kernel command line, muster.ca": "behind muster.ca= on the kernel command line",
		"/etc/muster/agent.toml:2: ca":   "into that file",
		"/etc/muster/ca.pem":             "into that file",
	} {
		o := (&trust{from: from}).headError("h:8443", errMismatch).(*Outcome)
		if !strings.Contains(o.Hint, want) {
			t.Errorf("%s: %s", from, o.Hint)
		}
	}
}

func TestHandshake(t *testing.T) {
	ours, next := newCA(t, "ours"), newCA(t, "ours 2")
	sameName := newCA(t, "ours")
	self := newCA(t, "head")
	chain := func(leaf tls.Certificate, more ...*x509.Certificate) tls.Certificate {
		for _, c := range more {
			leaf.Certificate = append(leaf.Certificate, c.Raw)
		}
		return leaf
	}
	pinned := &trust{pins: []pin{ours.pin()}}
	leaf := ours.head(t, nil)
	for name, c := range map[string]struct {
		cert  tls.Certificate
		trust *trust
		want  error
	}{
		"a head":                     {leaf, pinned, nil},
		"second of two pins":         {leaf, &trust{pins: []pin{next.pin(), ours.pin()}}, nil},
		"root from a file only":      {tls.Certificate{Certificate: leaf.Certificate[:1], PrivateKey: leaf.PrivateKey}, &trust{pins: pinned.pins, certs: []*x509.Certificate{ours.cert}}, nil},
		"successor, cross-certified": {chain(next.head(t, nil), ours.cross(t, next), ours.cert), pinned, nil},
		"first use":                  {leaf, &trust{tofu: true}, nil},
		"successor, no cross":        {chain(next.head(t, nil), ours.cert), pinned, errMismatch},
		"root not sent":              {tls.Certificate{Certificate: leaf.Certificate[:1], PrivateKey: leaf.PrivateKey}, pinned, errMismatch},
		"file of another CA":         {leaf, &trust{pins: []pin{next.pin()}, certs: []*x509.Certificate{ours.cert}}, errMismatch},
		"pin of a leaf, which is no CA": {tls.Certificate{Certificate: [][]byte{leaf.Certificate[0], leaf.Certificate[0]}, PrivateKey: leaf.PrivateKey},
			&trust{pins: []pin{pinOf(leaf.Leaf)}}, errMismatch},
		"nothing pinned":              {leaf, &trust{}, errMismatch},
		"self-signed":                 {tls.Certificate{Certificate: [][]byte{self.cert.Raw}, PrivateKey: self.key}, pinned, errMismatch},
		"self-signed and the root":    {tls.Certificate{Certificate: [][]byte{self.cert.Raw, ours.cert.Raw}, PrivateKey: self.key}, pinned, errMismatch},
		"other CA, same subject":      {sameName.head(t, nil), pinned, errMismatch},
		"other CA, and the root sent": {chain(sameName.head(t, nil), ours.cert), pinned, errMismatch},
		"clientAuth only": {ours.head(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), pinned, errNotHead},
		"HeadEKU without serverAuth": {ours.head(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), pinned, errNotHead},
		"no HeadEKU":                 {ours.head(t, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), pinned, errNotHead},
		"another EKU": {ours.head(t, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 25, 1959598272, 2}}
		}), pinned, errNotHead},
		"no EKU at all": {ours.head(t, func(c *x509.Certificate) { c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, nil }), pinned, errNotHead},
		"the CA itself": {tls.Certificate{Certificate: [][]byte{ours.cert.Raw, ours.cert.Raw}, PrivateKey: ours.key}, pinned, errNotHead},
		"expired":       {ours.head(t, func(c *x509.Certificate) { c.NotAfter = day0.Add(-time.Minute) }), pinned, errTime},
		"not yet valid": {ours.head(t, func(c *x509.Certificate) { c.NotBefore = day0.Add(time.Minute) }), pinned, errTime},
		"another host":  {ours.head(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} }), pinned, errHost},
		"name, not address": {ours.head(t, func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"127.0.0.1", "head"}
		}), pinned, errHost},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			u, _ := listen(t, c.cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				w.Write([]byte("{}"))
			}))
			b := testBoot(c.trust, u)
			b.wait = 0
			cl := b.client(nil)
			defer cl.close()
			made := false
			err := cl.call(context.Background(), "/v1/x", func() ([]byte, error) { made = true; return []byte("{}"), nil }, &struct{}{})
			if c.want == nil {
				if err != nil || requests.Load() != 1 {
					t.Fatalf("%d requests, %v", requests.Load(), err)
				}
				return
			}
			if made || requests.Load() != 0 {
				t.Error("a stranger got a request")
			}
			if ExitStatus(err) != StatusConfig || !strings.Contains(Describe(err), "hint: ") {
				t.Errorf("status %d: %s", ExitStatus(err), Describe(err))
			}
			if _, err := cl.dial(context.Background(), u.Host); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestFirstUseHappensOnce: the CA that was met first stays the only one.
func TestFirstUseHappensOnce(t *testing.T) {
	one, two := newCA(t, "one"), newCA(t, "two")
	first, _ := listen(t, one.head(t, nil), http.NotFoundHandler())
	second, _ := listen(t, two.head(t, nil), http.NotFoundHandler())
	tr := &trust{tofu: true}
	c := testBoot(tr, first).client(nil)
	defer c.close()
	if conn, err := c.dial(context.Background(), first.Host); err != nil {
		t.Fatal(err)
	} else {
		conn.Close()
	}
	if _, err := c.dial(context.Background(), second.Host); !errors.Is(err, errMismatch) {
		t.Errorf("another CA after first use: %v", err)
	}
	if tr.tofu || len(tr.pins) != 1 || tr.pins[0] != one.pin() {
		t.Errorf("pins %v", tr.pins)
	}
}

// TestFirstUseNeedsTheKey: a head that shows another's certificate without its key settles nothing.
func TestFirstUseNeedsTheKey(t *testing.T) {
	one := newCA(t, "one")
	stolen := one.head(t, nil)
	stolen.PrivateKey = newKey(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{stolen}}).Handshake()
			conn.Close()
		}
	}()
	tr := &trust{tofu: true}
	c := testBoot(tr).client(nil)
	if _, err := c.dial(context.Background(), l.Addr().String()); err == nil {
		t.Fatal("a handshake without the key")
	}
	if !tr.tofu {
		t.Error("trust was settled by it")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	ours := newCA(t, "ours")
	cert := ours.head(t, nil)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	c := testBoot(&trust{pins: []pin{ours.pin()}}).client(nil)
	if _, err := c.dial(context.Background(), l.Addr().String()); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestRoots(t *testing.T) {
	old, next, other := newCA(t, "old"), newCA(t, "next"), newCA(t, "other")
	cross := old.cross(t, next)
	leaf := next.node(t, "n0", newKey(t).Public(), nil)
	sent := []*x509.Certificate{next.cert, cross, old.cert, other.cert}
	tr := &trust{pins: []pin{old.pin()}}
	roots := tr.roots(sent, day0)
	if len(roots) != 2 || !roots[0].Equal(old.cert) || !roots[1].Equal(next.cert) {
		t.Errorf("ca.pem would hold %d certificates, first of %v", len(roots), roots[0].Subject)
	}
	chain, err := tr.verifyNode(leaf, sent, day0)
	if err != nil {
		t.Fatal(err)
	}
	// The pin that goes to NV is the successor's, so that the old CA may retire.
	if got := pinFor(chain, roots); got != next.pin() {
		t.Errorf("pin %v, want the successor's", got)
	}
	if _, err := tr.verifyNode(leaf, []*x509.Certificate{next.cert, old.cert}, day0); err == nil {
		t.Error("a successor without cross-certificate is believed")
	}
	server := next.node(t, "n0", newKey(t).Public(), func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	if _, err := tr.verifyNode(server, sent, day0); err == nil {
		t.Error("a node certificate without clientAuth is believed")
	}
}

func TestResolveTrust(t *testing.T) {
	image, nv := newCA(t, "image"), newCA(t, "nv")
	given, err := parseCA(image.pin().String())
	if err != nil {
		t.Fatal(err)
	}
	inImage := t.TempDir()
	os.MkdirAll(filepath.Join(inImage, "etc/muster"), 0o755)
	text, _ := os.ReadFile(image.file(t))
	if err := os.WriteFile(filepath.Join(inImage, imageCA), text, 0o644); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	os.MkdirAll(filepath.Join(damaged, "etc/muster"), 0o755)
	os.WriteFile(filepath.Join(damaged, imageCA), []byte("nothing"), 0o644)
	fromFile, err := parseCA(image.file(t))
	if err != nil {
		t.Fatal(err)
	}
	nvPin := []pin{nv.pin()}
	for name, c := range map[string]struct {
		root     string
		ca       caOption
		nv       []pin
		pin      pin
		tofu, nO bool // nO: NV's pin alone
		fails    bool
	}{
		"pin before NV":           {t.TempDir(), given, nvPin, image.pin(), false, false, false},
		"file":                    {t.TempDir(), fromFile, nvPin, image.pin(), false, false, false},
		"image before NV":         {inImage, caOption{}, nvPin, image.pin(), false, false, false},
		"NV last":                 {t.TempDir(), caOption{}, nvPin, nv.pin(), false, true, false},
		"tofu with NV":            {t.TempDir(), caOption{tofu: true}, nvPin, nv.pin(), false, true, false},
		"tofu":                    {t.TempDir(), caOption{tofu: true}, nil, pin{}, true, false, false},
		"nothing":                 {t.TempDir(), caOption{}, nil, pin{}, false, false, true},
		"damaged image, never NV": {damaged, caOption{}, nvPin, pin{}, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{root: c.root, ca: c.ca}
			tr, err := a.resolveTrust(c.nv)
			if c.fails {
				if ExitStatus(err) != StatusConfig || !strings.Contains(Describe(err), "hint: ") {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tr.tofu != c.tofu || tr.nv != c.nO || !c.tofu && (len(tr.pins) != 1 || tr.pins[0] != c.pin) {
				t.Errorf("%+v", tr)
			}
		})
	}
}

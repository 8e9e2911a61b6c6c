package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

func TestPlan(t *testing.T) {
	good := testPlan()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	open := Plan{Cluster: "Hpc1", Hosts: []string{"head.example.org", "10.0.0.1", "2001:db8::1"}}
	if err := open.Check(); err != nil || open.TrustDomain == "" {
		t.Errorf("trust domain %q, %v", open.TrustDomain, err)
	}
	for name, change := range map[string]func(*Plan){
		"no cluster":                  func(p *Plan) { p.Cluster = "" },
		"a cluster with a space":      func(p *Plan) { p.Cluster = "my cluster" },
		"a cluster with a slash":      func(p *Plan) { p.Cluster = "a/b" },
		"a cluster with a line":       func(p *Plan) { p.Cluster = "a\nb" },
		"a cluster that ends a line":  func(p *Plan) { p.Cluster = "a\n" },
		"a cluster with umlauts":      func(p *Plan) { p.Cluster = "müster" },
		"a cluster with a comma":      func(p *Plan) { p.Cluster = "a,CN=b" },
		"an endless cluster":          func(p *Plan) { p.Cluster = strings.Repeat("c", 64) },
		"a trust domain in capitals":  func(p *Plan) { p.TrustDomain = "HPC.example" },
		"a trust domain with a path":  func(p *Plan) { p.TrustDomain = "hpc.example/node" },
		"a trust domain with a port":  func(p *Plan) { p.TrustDomain = "hpc.example:1" },
		"a trust domain with a user":  func(p *Plan) { p.TrustDomain = "a@hpc.example" },
		"a trust domain with a blank": func(p *Plan) { p.TrustDomain = "hpc .example" },
		"no host":                     func(p *Plan) { p.Hosts = nil },
		"an empty host":               func(p *Plan) { p.Hosts = []string{""} },
		"a host with a port":          func(p *Plan) { p.Hosts = []string{"head:8443"} },
		"a host with a wildcard":      func(p *Plan) { p.Hosts = []string{"*.example"} },
		"a host with a scheme":        func(p *Plan) { p.Hosts = []string{"https://head"} },
		"a second host that is bad":   func(p *Plan) { p.Hosts = []string{"head", "he ad"} },
		"a host that starts with -":   func(p *Plan) { p.Hosts = []string{"-head"} },
		"a host with an empty label":  func(p *Plan) { p.Hosts = []string{"head..example"} },
		"an address with a zone":      func(p *Plan) { p.Hosts = []string{"fe80::1%eth0"} },
	} {
		p := testPlan()
		change(&p)
		if err := p.Check(); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// emptyStore is a new store in a new directory.
func emptyStore(t *testing.T) (dir string, st *bolt.Store) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "store.db")
	if err := bolt.Create(path, "head1"); err != nil {
		t.Fatal(err)
	}
	st, err := bolt.Open(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return dir, st
}

// TestInitRefusesABadPlan and leaves nothing behind.
func TestInitRefusesABadPlan(t *testing.T) {
	dir, st := emptyStore(t)
	if _, err := Init(t.Context(), dir, st, Plan{Cluster: "a b", Hosts: []string{"head"}}, noon); !errors.Is(err, ErrPlan) {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Store: st}); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("open: got %v", err)
	}
}

// TestInitOnce: a cluster is made once, and a run that was cut short can be repeated.
func TestInitOnce(t *testing.T) {
	dir, st := emptyStore(t)
	cut := &faulty{Store: st, fail: func(store.Tx) (bool, error) { return false, store.ErrFull }}
	if _, err := Init(t.Context(), dir, cut, testPlan(), noon); !errors.Is(err, store.ErrFull) {
		t.Fatalf("got %v", err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Store: st}); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("open after half an init: got %v", err)
	}
	made, err := Init(t.Context(), dir, st, testPlan(), noon)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Open(t.Context(), Config{Dir: dir, Store: st, Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	if made.Pin != h.Pin() || made.Cert != h.ring.Load().bundle() || made.Cluster != "Muster" || !strings.HasPrefix(made.Pin, "sha256:") {
		t.Errorf("made %+v, opened %s", made, h.Pin())
	}
	if _, err := Init(t.Context(), dir, st, testPlan(), noon); !errors.Is(err, store.ErrExists) {
		t.Errorf("a second init: got %v", err)
	}
	if again, err := Open(t.Context(), Config{Dir: dir, Store: st, Now: func() time.Time { return noon }}); err != nil || again.Pin() != made.Pin {
		t.Errorf("the second init broke the first: %v", err)
	}
}

func TestCA(t *testing.T) {
	c := newSite(t).ca().cert
	equal(t, "CA", c.IsCA && c.BasicConstraintsValid, true)
	equal(t, "key usage", c.KeyUsage, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	equal(t, "life", c.NotAfter.Sub(noon.Truncate(time.Second)), caLife)
	equal(t, "not before", c.NotBefore, noon.Add(-backdate).Truncate(time.Second))
	longest, err := newAuthority(strings.Repeat("c", 63), noon)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(longest.cert.Subject.CommonName); n > 64 {
		t.Errorf("the common name has %d characters, ub-common-name is 64 (RFC 5280, appendix A)", n)
	}
}

// TestOpenRefuses: a head never makes up what it does not find.
func TestOpenRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*site) error{
		"no CA key":          func(s *site) error { return os.Remove(filepath.Join(s.dir, caKeyFile)) },
		"no epoch key":       func(s *site) error { return os.Remove(filepath.Join(s.dir, epochFile)) },
		"an empty CA key":    func(s *site) error { return os.WriteFile(filepath.Join(s.dir, caKeyFile), nil, 0o600) },
		"an empty epoch key": func(s *site) error { return os.WriteFile(filepath.Join(s.dir, epochFile), nil, 0o600) },
		"another CA's key": func(s *site) error {
			other, err := newAuthority("Other", noon)
			s.must(err)
			text, err := marshalKey(other.key, nil)
			s.must(err)
			return os.WriteFile(filepath.Join(s.dir, caKeyFile), text, 0o600)
		},
		"no CA on record": func(s *site) error {
			return s.store.Commit(context.Background(), store.Tx{Deletes: []string{keyCAs}})
		},
		"a damaged CA record": func(s *site) error {
			return s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: keyCAs, Value: []byte("{}")}}})
		},
		"a damaged cluster record": func(s *site) error {
			return s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: keyCluster, Value: []byte("{")}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			before := len(s.journal())
			s.must(spoil(s))
			if h, err := s.another(); err == nil || h != nil {
				t.Errorf("opened")
			}
			equal(t, "journal entries", len(s.journal()), before)
		})
	}
}

func TestPublicURL(t *testing.T) {
	s := newSite(t)
	for url, want := range map[string]string{
		"http://head:8080": "http://head:8080", "http://crl.example/": "http://crl.example", "": "http://head:9090",
	} {
		h, err := Open(t.Context(), Config{Dir: s.dir, Store: s.store, PublicURL: url, PublicAddr: ":9090", Now: s.clock.now})
		s.must(err)
		equal(t, url, h.publicURL, want)
	}
	for _, url := range []string{"https://head", "head:8080", "http://", "http://head?x=1", "ftp://head", "http://he ad", ":"} {
		if _, err := Open(t.Context(), Config{Dir: s.dir, Store: s.store, PublicURL: url, Now: s.clock.now}); !errors.Is(err, ErrPublicURL) {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

// TestEnableRefuses: what makes no sense changes nothing at all.
func TestEnableRefuses(t *testing.T) {
	s := newSite(t)
	before := len(s.journal())
	for name, option := range map[string]func(*EnableRequest){
		"no window":             func(r *EnableRequest) { r.For = 0 },
		"a negative window":     func(r *EnableRequest) { r.For = -time.Hour },
		"an endless window":     func(r *EnableRequest) { r.For = MaxWindow + 1 },
		"an unknown level":      func(r *EnableRequest) { r.Level = "PINNED" },
		"an EK that is no hash": func(r *EnableRequest) { r.EK = strings.Repeat("g", 64) },
		"a short EK":            func(r *EnableRequest) { r.EK = "ab" },
		"an EK in capitals":     func(r *EnableRequest) { r.EK = strings.Repeat("A", 64) },
		"an EK for two":         func(r *EnableRequest) { r.IDs, r.EK = []string{"n[0-1]"}, strings.Repeat("a", 64) },
		"a DNS name for two":    func(r *EnableRequest) { r.IDs, r.DNS = []string{"n[0-1]"}, []string{"n"} },
		"a bad DNS name":        func(r *EnableRequest) { r.DNS = []string{"*.example"} },
		"a bad address":         func(r *EnableRequest) { r.IP = []string{"10.0.0.256"} },
		"nobody":                func(r *EnableRequest) { r.IDs = nil },
		"some and all":          func(r *EnableRequest) { r.All = true },
		"a name too long":       func(r *EnableRequest) { r.IDs = []string{"n" + strings.Repeat("x", 64)} },
		"a name that is a path": func(r *EnableRequest) { r.IDs = []string{"../n0"} },
		"one good and one bad":  func(r *EnableRequest) { r.IDs = []string{"n0,-x"} },
		"a name that is a dot":  func(r *EnableRequest) { r.IDs = []string{"."} },
		"two dots":              func(r *EnableRequest) { r.IDs = []string{".."} },
	} {
		if err := s.tryEnable("n0", option); err == nil {
			t.Errorf("%s: enabled", name)
		}
	}
	equal(t, "journal entries", len(s.journal()), before)
}

// TestEnableExtends the window of an open grant, never shortens it, and opens another after its use.
func TestEnableExtends(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", atLevel(""))
	g := s.record("n0").Grant
	equal(t, "level", g.Level, wire.TOFU)
	s.enable("n0", func(r *EnableRequest) { r.For = time.Minute })
	equal(t, "the grant", *s.record("n0").Grant, *g)
	s.enable("n0", func(r *EnableRequest) { r.For = 2 * time.Hour })
	if got := s.record("n0").Grant; got.ID != g.ID || !got.Until.Equal(noon.Add(2*time.Hour)) {
		t.Errorf("got %+v", got)
	}
	s.clock.move(2*time.Hour - time.Nanosecond)
	s.challenged(k, "n0")
	s.clock.move(time.Nanosecond)
	if r := s.post(wire.PathChallenge, k.ChallengeRequest("n0")); r.status == http.StatusOK {
		t.Error("the window is still open at its end")
	}
	s.enable("n0")
	if s.record("n0").Grant.ID == g.ID {
		t.Error("the old grant lives again")
	}
	s.enable("n0", pinned(k.ekHash()))
	s.enable("n0", atLevel(""))
	equal(t, "level of an extended grant", s.record("n0").Grant.Level, wire.Pinned)
}

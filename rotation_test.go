package muster_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"muster/internal/testtpm"
)

// prober is a node that talks mTLS to its head again and again, trusting what it is told to.
type prober struct {
	*node
	pin   atomic.Value // string
	boots atomic.Int64
}

// probe boots until stop is closed. A boot that fails is a gap.
func (p *prober) probe(stop <-chan struct{}, ended chan<- string) {
	for {
		select {
		case <-stop:
			ended <- ""
			return
		default:
		}
		r := p.bootAt(p.head.url(), p.pin.Load().(string))
		if r.status != 0 || !strings.Contains(r.stdout, "confirmed by") {
			ended <- p.name + ": " + r.String()
			return
		}
		p.boots.Add(1)
	}
}

// settled waits until each prober has begun and ended a boot since now.
func settled(t *testing.T, probers []*prober, ended chan string) {
	t.Helper()
	for _, p := range probers {
		for from := p.boots.Load(); p.boots.Load() < from+2; {
			select {
			case gap := <-ended:
				t.Fatalf("a gap: %s", gap)
			default:
			}
		}
	}
}

// TestRotationWithoutAGap: while a CA is replaced, each node's mTLS with the head goes on, whether it pins the old
// CA, both, or the new one (I12); and whoever holds one bundle alone verifies what each node has.
func TestRotationWithoutAGap(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "swtpm")
	testtpm.Need(t, "openssl")
	h := newHead(t)
	h.must("certs", "enable", "-i", "n[0-3]")
	var probers []*prober
	for _, name := range []string{"n0", "n1", "n2"} {
		p := &prober{node: newNode(t, h, name)}
		p.pin.Store(h.pin)
		p.mustBoot()
		probers = append(probers, p)
	}
	bundles := map[string]string{"old": bundleFile(t, h)}
	stop, ended := make(chan struct{}), make(chan string, len(probers))
	for _, p := range probers {
		go p.probe(stop, ended)
	}
	verified := func(step string) {
		t.Helper()
		settled(t, probers, ended)
		for name, bundle := range bundles {
			for _, p := range probers {
				chain := filepath.Join(p.root, "run/muster/chain.pem")
				r := runProgram(t, "openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", bundle, "-untrusted", chain, chain)
				if r.status != 0 {
					t.Errorf("%s: %s, for who trusts %s: %v", step, p.name, name, r)
				}
			}
		}
	}
	verified("before")

	old := h.pin
	var done struct{ Pin, Waiting string }
	h.json(&done, "ca", "rotate", "--json")
	probers[1].pin.Store(old + "," + done.Pin)
	probers[2].pin.Store(done.Pin)
	settled(t, probers, ended)
	bundles["both"] = bundleFile(t, h)
	bundles["new"] = filepath.Join(t.TempDir(), "new.pem")
	first, _, _ := strings.Cut(h.must("ca", "export"), "-----END CERTIFICATE-----\n") // the newest comes first
	if err := os.WriteFile(bundles["new"], []byte(first+"-----END CERTIFICATE-----\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	verified("next made")

	var ca struct{ Waiting, Pin string }
	h.json(&ca, "ca", "show", "--json")
	if ca.Waiting != "" || ca.Pin != old {
		t.Errorf("after two boots of each node: %+v", ca)
	}
	h.must("ca", "rotate", "--finish")
	verified("finished")
	h.json(&ca, "ca", "show", "--json")
	if ca.Pin != done.Pin {
		t.Errorf("the CA that signs is %s", ca.Pin)
	}
	close(stop)
	for range probers {
		if gap := <-ended; gap != "" {
			t.Errorf("a gap: %s", gap)
		}
	}
	// A node that is new trusts the new CA, and one that knows but the old pin comes in along the cross-certificate.
	last := newNode(t, h, "n3")
	if r := last.bootAt(h.url(), old); r.status != 0 {
		t.Errorf("with the old pin: %v", r)
	}
	last.loseRun()
	if r := last.agent("run", "--head", h.url(), "--ca", "tofu"); r.status != 0 { // the pin of NV alone, which has moved
		t.Errorf("with NV's pin: %v", r)
	}
	if got := string(last.file("status.json")); !strings.Contains(got, done.Pin) {
		t.Errorf("the pin that it holds is not the new CA's: %s", got)
	}
}

func bundleFile(t *testing.T, h *head) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, []byte(h.must("ca", "export")), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRotationKilled kills the head at each step of each kind of rotation. After its restart the command can be
// given again, and ends as if nothing had happened.
func TestRotationKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := build(dir, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	begin := []string{"ca", "rotate"}
	for _, c := range []struct {
		name, point string
		before      [][]string
		command     []string
		turned      bool // the step was taken before the head died
	}{
		{"next, keyed", "keyed", nil, begin, false},
		{"next, turned", "turned", nil, begin, true},
		{"finish, turned", "turned", [][]string{begin}, []string{"ca", "rotate", "--finish", "--force", "--yes"}, true},
		{"revoke all, keyed", "keyed", nil, []string{"ca", "rotate", "--revoke-all", "--yes"}, false},
		{"revoke all, turned", "turned", nil, []string{"ca", "rotate", "--revoke-all", "--yes"}, true},
		{"compromised, turned", "turned", nil, []string{"ca", "rotate", "--compromised", "--yes"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHeadAt(t, "127.0.0.1", filepath.Join(dir, "muster"))
			for _, command := range c.before {
				h.must(command...)
			}
			h.kill()
			h.env = []string{"MUSTER_FAILPOINT=" + c.point}
			h.start()
			var was, is ringView
			h.json(&was, "ca", "show", "--json")
			if r := h.run(c.command...); r.status == 0 {
				t.Fatalf("the head did not die: %v", r)
			}
			h.await()
			h.env = nil
			h.start()
			h.json(&is, "ca", "show", "--json")
			if turned := is.roles() != was.roles(); turned != c.turned {
				t.Fatalf("before %s, after the crash %s", was.roles(), is.roles())
			}
			if !c.turned {
				h.must(c.command...)
				h.json(&is, "ca", "show", "--json")
			}
			if len(is.CAs) != 2 {
				t.Errorf("the CAs are %s", is.roles())
			}
			keys, err := filepath.Glob(filepath.Join(h.dir, "ca/*.key"))
			if err != nil || len(keys) != 3 { // and the witness's
				t.Errorf("the keys are %v, %v", keys, err)
			}
			if got := runProgram(t, "openssl", "verify", "-crl_check", "-CAfile", filepath.Join(h.dir, "public/ca.pem"),
				"-CRLfile", filepath.Join(h.dir, "public/crl.pem"), headCertificate(t, h, t.TempDir())); got.status != 0 {
				t.Errorf("the head's own certificate: %v", got)
			}
		})
	}
}

type ringView struct {
	CAs []struct{ Role, ID string }
}

func (r ringView) roles() string {
	var roles []string
	for _, ca := range r.CAs {
		roles = append(roles, ca.Role)
	}
	return strings.Join(roles, " ")
}

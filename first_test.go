package muster_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/testtpm"
	"muster/internal/wire"
)

// TestDemo is what a new user sees first.
func TestDemo(t *testing.T) {
	testtpm.Need(t, "swtpm")
	// The demo runs what is in bin/ beside it; give it the programs under test.
	dir := t.TempDir()
	script, err := os.ReadFile("demo.sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "demo.sh"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	r := runProgram(t, filepath.Join(dir, "demo.sh"))
	if r.status != 0 || !strings.HasSuffix(r.stdout, "Done. Nothing is left running.\n") {
		t.Fatal(r)
	}
	if !strings.Contains(r.stdout, "(new lines in the head's journal: 0)") {
		t.Errorf("the second boot left lines in the journal:\n%s", r)
	}
}

// TestSecondBoot: the certificate comes from NV, no CSR is sent, and the TPM is asked three times
// at most, up to and including the TLS handshake.
func TestSecondBoot(t *testing.T) {
	h := newHead(t)
	n := newNode(t, h, "n0")
	h.must("certs", "enable", "-i", "n0")
	n.mustBoot()
	first := n.file("node.crt")
	challenges, enrolls := h.count(wire.PathChallenge), h.count(wire.PathEnroll)
	if challenges == 0 || enrolls == 0 {
		t.Fatalf("the head's log does not show the first boot's requests:\n%s", h.log)
	}
	n.loseRun()
	if err := n.tpm.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	counter := n.counted(t)
	n.mustBoot()
	if got := h.count(wire.PathChallenge) + h.count(wire.PathEnroll); got != challenges+enrolls {
		t.Errorf("the second boot sent %d requests of an enrolment", got-challenges-enrolls)
	}
	if !bytes.Equal(n.file("node.crt"), first) {
		t.Error("another certificate than at the first boot")
	}
	count := counter.ToHandshake()
	t.Logf("second boot: %d TPM commands up to the handshake: %x", count, counter.Commands())
	if count == 0 || count > 3 {
		t.Errorf("%d TPM commands up to the handshake, more than 3: %x", count, counter.Commands())
	}
}

// TestFirstBootCommands counts the commands from open to the read-back of the NV record.
func TestFirstBootCommands(t *testing.T) {
	for name, options := range map[string][]testtpm.Option{
		"blank TPM":            nil,
		"P-256 EK certificate": {testtpm.P256Certificate()},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHead(t)
			h.must("certs", "enable", "-i", "n0")
			n := newNode(t, h, "n0", options...)
			counter := n.counted(t)
			n.mustBoot()
			count := counter.ToStored()
			t.Logf("first boot: %d TPM commands to the NV read-back: %x", count, counter.Commands())
			if count == 0 || count > 18 {
				t.Errorf("%d TPM commands to the NV read-back, more than 18: %x", count, counter.Commands())
			}
		})
	}
}

// TestFirstBootThroughResourceManager counts what reaches the chip behind the kernel's resource manager.
func TestFirstBootThroughResourceManager(t *testing.T) {
	h := newHead(t)
	h.must("certs", "enable", "-i", "n0")
	n := newNode(t, h, "n0")
	var chip *testtpm.Counter
	n.double(t, func(tpm transport.TPM) transport.TPM {
		chip = testtpm.Count(tpm)
		manager, err := testtpm.Manage(chip)
		if err != nil {
			t.Fatal(err)
		}
		chip.Reset()
		return manager
	})
	n.mustBoot()
	count := chip.ToStored()
	t.Logf("first boot: %d chip commands to the NV read-back, %d in all", count, len(chip.Commands()))
	if count == 0 || count > 54 {
		t.Errorf("%d chip commands to the NV read-back, more than 54: %x", count, chip.Commands())
	}
}

// TestLevels: a certificate says that its key is TPM-resident only where that was proven for a TPM
// that the administrator recorded.
func TestLevels(t *testing.T) {
	h := newHead(t)
	tofu, pinned := newNode(t, h, "n0"), newNode(t, h, "n1")
	ek := strings.Fields(pinned.agent("ek").stdout)[0]
	h.must("certs", "enable", "-i", "n0")
	h.must("certs", "enable", "-i", "n1", "--ek", ek)
	tofu.mustBoot()
	pinned.mustBoot()
	for _, c := range []struct {
		n        *node
		level    wire.Level
		policies []x509.OID
		resident bool
	}{{tofu, wire.TOFU, wire.TOFU.Policies(), false}, {pinned, wire.Pinned, wire.Pinned.Policies(), true}} {
		cert := parseCertificate(t, c.n.file("node.crt"))
		resident := false
		for _, p := range cert.Policies {
			resident = resident || p.Equal(wire.PolicyTPMResidency) || p.Equal(wire.PolicyTPMFixed)
		}
		if resident != c.resident || len(cert.Policies) != len(c.policies) {
			t.Errorf("%s: policies %v", c.level, cert.Policies)
		}
		if got := h.record(c.n.name).Level; got != string(c.level) {
			t.Errorf("%s: the record says level %s", c.n.name, got)
		}
	}
}

// TestRefusedLeavesGrant: strangers and mistakes do not use up a grant.
func TestRefusedLeavesGrant(t *testing.T) {
	h := newHead(t)
	owner, stranger := newNode(t, h, "n0"), newNode(t, h, "n0")
	h.must("certs", "enable", "-i", "n0", "--ek", strings.Fields(owner.agent("ek").stdout)[0])
	if r := stranger.boot("--wait", "1s"); r.status != 75 {
		t.Errorf("a stranger with another TPM: %v", r)
	}
	if _, err := os.Stat(filepath.Join(stranger.root, "run/muster/node.crt")); err == nil {
		t.Error("the stranger has a certificate")
	}
	owner.mustBoot()
}

func TestIPv6(t *testing.T) {
	h := newHeadAt(t, "::1", filepath.Join(bin, "muster"))
	n := newNode(t, h, "n0")
	h.must("certs", "enable", "-i", "n0")
	n.mustBoot()
	if err := n.tpm.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	n.mustBoot()
	if r := n.agent("get", h.url()+wire.PathSelf); r.status != 0 || !strings.Contains(r.stdout, `"node":"n0"`) {
		t.Errorf("get: %v", r)
	}
}

// counted puts a counter in front of the node's TPM for the real agent.
func (n *node) counted(t *testing.T) *testtpm.Counter {
	t.Helper()
	var counter *testtpm.Counter
	n.double(t, func(tpm transport.TPM) transport.TPM {
		counter = testtpm.Count(tpm)
		return counter
	})
	return counter
}

// double puts a double in front of the node's TPM until the test ends.
func (n *node) double(t *testing.T, make func(transport.TPM) transport.TPM) {
	t.Helper()
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	spec, closer, err := testtpm.Serve(make(tpm), filepath.Join(n.tpm.Dir(), "double"))
	if err != nil {
		t.Fatal(err)
	}
	old := n.spec
	n.spec = spec
	t.Cleanup(func() {
		closer.Close()
		tpm.Close()
		n.spec = old
	})
}

func parseCertificate(t testing.TB, b []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("no PEM in %q", b)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

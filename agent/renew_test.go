package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/wire"
)

// enrolled is a machine with a certificate that is due.
func enrolled(t *testing.T) (*fakeHead, *machine) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.renewAt = day0
	h.renewal = func(old *x509.Certificate) (*x509.Certificate, wire.Code) {
		return h.ca.node(t, "n0", old.PublicKey, nil), ""
	}
	h.paths()
	return h, m
}

func (m *machine) file(name string) []byte {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.config.Root, name))
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

// TestRenewAtBoot: a boot renews what is due, and the next one finds the new certificate in NV.
func TestRenewAtBoot(t *testing.T) {
	h, m := enrolled(t)
	old := h.cert
	if line := m.must(); !strings.Contains(line, "renewed at") || !strings.HasSuffix(line, "storage nv") {
		t.Error(line)
	}
	if got := h.paths(); !slices.Equal(got, []string{wire.PathSelf, wire.PathRenew, wire.PathSelf}) {
		t.Errorf("requests %v", got)
	}
	if h.cert.Equal(old) || !bytes.Equal(m.file(fileCert), pemOf(h.cert)) {
		t.Error("installed: the old certificate")
	}
	if n := m.did(tpm2.TPMCCCreatePrimary) + m.did(tpm2.TPMCCActivateCredential) + m.did(tpm2.TPMCCCreateLoaded); n != 0 {
		t.Errorf("commands %v", m.counts.Commands())
	}
	if line := m.must(); !strings.Contains(line, "confirmed by") {
		t.Error(line)
	}
	// Both records are read now, and nothing else is asked of the TPM.
	want := []tpm2.TPMCC{tpm2.TPMCCNVRead, tpm2.TPMCCNVRead, tpm2.TPMCCSign}
	if got := m.counts.Commands(); !slices.Equal(got, want) {
		t.Errorf("commands of the next boot: %v", got)
	}
}

// TestDueByTheHeadsClock: the node's own does not matter.
func TestDueByTheHeadsClock(t *testing.T) {
	h, m := enrolled(t)
	h.renewAt = day0.Add(time.Second)
	if line := m.must(); !strings.Contains(line, "confirmed by") {
		t.Error(line)
	}
	h.now = func() time.Time { return day0.Add(time.Second) }
	if line := m.must(); !strings.Contains(line, "renewed at") {
		t.Error(line)
	}
}

// TestRenewalFails: whatever a head does instead of renewing, a boot goes on with the certificate that it has, and
// neither NV nor a file changes.
func TestRenewalFails(t *testing.T) {
	other := newCA(t, "other")
	certificate := func(f func(h *fakeHead, old *x509.Certificate) *x509.Certificate) func(*fakeHead, *x509.Certificate) (*x509.Certificate, wire.Code) {
		return func(h *fakeHead, old *x509.Certificate) (*x509.Certificate, wire.Code) { return f(h, old), "" }
	}
	code := func(c wire.Code) func(*fakeHead, *x509.Certificate) (*x509.Certificate, wire.Code) {
		return func(*fakeHead, *x509.Certificate) (*x509.Certificate, wire.Code) { return nil, c }
	}
	for name, c := range map[string]struct {
		renewal func(*fakeHead, *x509.Certificate) (*x509.Certificate, wire.Code)
		status  int // of renew
	}{
		"busy":        {code(wire.Busy), StatusTryAgain},
		"not enabled": {code(wire.NotEnabled), StatusTryAgain},
		"refused":     {code(wire.Refused), StatusRefused},
		"not found":   {code(wire.NotFound), StatusConfig},
		"another CA's certificate": {certificate(func(_ *fakeHead, old *x509.Certificate) *x509.Certificate {
			return other.node(t, "n0", old.PublicKey, nil)
		}), StatusConfig},
		"another name": {certificate(func(h *fakeHead, old *x509.Certificate) *x509.Certificate {
			return h.ca.node(t, "n1", old.PublicKey, nil)
		}), StatusConfig},
		"another key": {certificate(func(h *fakeHead, _ *x509.Certificate) *x509.Certificate {
			return h.ca.node(t, "n0", newKey(t).Public(), nil)
		}), StatusConfig},
		"expired": {certificate(func(h *fakeHead, old *x509.Certificate) *x509.Certificate {
			return h.ca.node(t, "n0", old.PublicKey, func(c *x509.Certificate) { c.NotAfter = day0.Add(-time.Minute) })
		}), StatusConfig},
	} {
		t.Run(name, func(t *testing.T) {
			h, m := enrolled(t)
			h.renewal = func(old *x509.Certificate) (*x509.Certificate, wire.Code) { return c.renewal(h, old) }
			before := m.file(fileCert)
			m.log.Reset()
			if line := m.must(); !strings.Contains(line, "confirmed by") || !strings.Contains(m.log.String(), "event=not-renewed") {
				t.Errorf("%s\n%s", line, m.log.String())
			}
			m.config.TPM = m.tpm.Spec()
			a, err := New(m.config)
			if err != nil {
				t.Fatal(err)
			}
			if line, err := a.Renew(context.Background(), false); ExitStatus(err) != c.status {
				t.Errorf("%q, %v: status %d", line, err, ExitStatus(err))
			}
			if !bytes.Equal(m.file(fileCert), before) {
				t.Error("node.crt has changed")
			}
			h.renewAt = time.Time{}
			m.must()
			if got := m.counts.Commands(); !slices.Equal(got, []tpm2.TPMCC{tpm2.TPMCCNVRead, tpm2.TPMCCSign}) {
				t.Errorf("NV has changed: %v", got)
			}
		})
	}
}

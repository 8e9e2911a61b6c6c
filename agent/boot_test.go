package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/agent/internal/tpm"
	"muster/internal/template"
	"muster/internal/testtpm"
	"muster/internal/wire"
)

// machine is a node: a TPM, and a root directory that is its /run.
type machine struct {
	t      *testing.T
	tpm    *testtpm.TPM
	config Config
	log    bytes.Buffer
	counts *testtpm.Counter
}

func newMachine(t *testing.T, h *fakeHead, options ...testtpm.Option) *machine {
	m := &machine{t: t, tpm: testtpm.Start(t, options...), config: testConfig(t, "", "")}
	m.config.Head, m.config.CA, m.config.Node, m.config.Wait = h.url.String(), h.ca.pin().String(), "n0", "0"
	m.config.Log = slog.New(slog.NewTextHandler(&m.log, nil))
	return m
}

// run is one run of the boot flow.
func (m *machine) run() (string, error) {
	return m.runWith(func(t transport.TPM) transport.TPM { return t })
}

func (m *machine) runWith(double func(transport.TPM) transport.TPM) (string, error) {
	m.t.Helper()
	link, err := m.tpm.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	defer link.Close()
	m.counts = testtpm.Count(double(link))
	d := tpm.New(m.counts)
	defer d.Close()
	a, err := New(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	b := &boot{Agent: a, tpm: d}
	return b.run(context.Background())
}

// must is run, and it must succeed.
func (m *machine) must() string {
	m.t.Helper()
	line, err := m.run()
	if err != nil {
		m.t.Fatalf("%s%s", Describe(err), m.log.String())
	}
	return line
}

// fails is run, and it must end with this status and a hint.
func (m *machine) fails(status int) string {
	m.t.Helper()
	line, err := m.run()
	text := Describe(orNone(err))
	if ExitStatus(err) != status || !strings.Contains(text, "hint: ") {
		m.t.Fatalf("status %d, want %d: %q %s%s", ExitStatus(err), status, line, text, m.log.String())
	}
	return text
}

func orNone(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

// reboot empties /run and cuts the TPM's power.
func (m *machine) reboot() {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.config.Root, "run")); err != nil {
		m.t.Fatal(err)
	}
	if err := m.tpm.PowerCycle(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) installed(want bool) {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.config.Root, runDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(fileLock) })
	if want && len(entries) != 6 || !want && len(entries) != 0 {
		m.t.Errorf("installed: %v", entries)
	}
}

// did returns how many commands of a kind the last run sent.
func (m *machine) did(cc tpm2.TPMCC) int {
	n := 0
	for _, c := range m.counts.Commands() {
		if c == cc {
			n++
		}
	}
	return n
}

func TestFirstBoot(t *testing.T) {
	h := newHead(t)
	m := newMachine(t, h)
	if text := m.fails(StatusTryAgain); !strings.Contains(text, "hint: on the head: muster why n0 (if it never was enabled: muster certs enable -i n0)") {
		t.Errorf("%s", text)
	}
	m.installed(false)
	h.paths()
	h.tcp.accepted.Store(0)
	h.set(func() { h.enabled = true })
	line := m.must()
	want := "n0: enrolled at " + h.url.String() + ", level tofu, certificate " + short(serialHex(h.cert.SerialNumber)) +
		" until 2027-02-22, storage nv"
	if line != want {
		t.Errorf("\n got %s\nwant %s", line, want)
	}
	if got := h.paths(); !slices.Equal(got, []string{wire.PathChallenge, wire.PathEnroll, wire.PathSelf}) || !h.active {
		t.Errorf("requests %v, active %v", got, h.active)
	}
	if n := h.tcp.accepted.Load(); n != 2 {
		t.Errorf("%d connections: the two legs share one, the first use is another", n)
	}
	m.installed(true)
	var s Status
	if a, err := New(m.config); err != nil {
		t.Fatal(err)
	} else {
		s = a.lastStatus()
	}
	if s.Node != "n0" || s.State != "active" || s.Serial != serialHex(h.cert.SerialNumber) || s.Storage != "nv" ||
		s.Pin != h.ca.pin().String() || s.Head != h.url.String() {
		t.Errorf("%+v", s)
	}
}

// TestNextBoot: one read of NV and one signature up to the confirmation; no challenge, no CSR.
func TestNextBoot(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.paths()
	m.reboot()
	m.must()
	if got := h.paths(); !slices.Equal(got, []string{wire.PathSelf}) {
		t.Errorf("requests %v", got)
	}
	m.installed(true)
	// The rest is the export of node.key, which /run had lost.
	if got := m.counts.Commands(); len(got) < 2 || got[0] != tpm2.TPMCCNVRead || got[1] != tpm2.TPMCCSign {
		t.Errorf("commands %v", got)
	}
	m.must()
	if got := m.counts.Commands(); !slices.Equal(got, []tpm2.TPMCC{tpm2.TPMCCNVRead, tpm2.TPMCCSign}) {
		t.Errorf("with the files in place: commands %v", got)
	}
}

// TestStrangerGetsNothing: not a signature, not a credential, not a file; nor does NV change.
func TestStrangerGetsNothing(t *testing.T) {
	for _, enrolled := range []bool{false, true} {
		h := newHead(t)
		h.enabled = true
		m := newMachine(t, h)
		if enrolled {
			m.must()
			m.reboot()
		}
		stranger := newHead(t)
		stranger.enabled = true
		m.config.Head = stranger.url.String()
		m.fails(StatusConfig)
		if got := stranger.paths(); len(got) > 0 {
			t.Errorf("it got requests: %v", got)
		}
		for _, cc := range []tpm2.TPMCC{tpm2.TPMCCSign, tpm2.TPMCCActivateCredential, tpm2.TPMCCNVWrite, tpm2.TPMCCNVUndefineSpace} {
			if n := m.did(cc); n > 0 {
				t.Errorf("%d × %#x", n, uint32(cc))
			}
		}
		m.installed(false)
	}
}

// TestMismatchOnNVPin: without a pin from a person another CA is a mismatch until forget.
func TestMismatchOnNVPin(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.config.CA = "tofu"
	m.must()
	m.reboot()
	other := newHead(t)
	other.enabled = true
	m.config.Head = other.url.String()
	if text := m.fails(StatusConfig); !strings.Contains(text, "ca_mismatch") || !strings.Contains(text, "hint: if the CA was replaced on purpose: muster-agent forget") {
		t.Errorf("%s", text)
	}
	m.installed(false)
	m.config.Forget = "1"
	m.must()
	m.config.Forget = ""
	m.reboot()
	m.must()
}

// TestRecordOfAnotherCA counts as absent when a person pins this one, and is reported.
func TestRecordOfAnotherCA(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.reboot()
	other := newHead(t)
	other.enabled = true
	m.config.Head, m.config.CA = other.url.String(), other.ca.pin().String()
	if line := m.must(); !strings.Contains(line, "enrolled at "+other.url.String()) {
		t.Errorf("%s", line)
	}
	if !strings.Contains(m.log.String(), "enrolling again") {
		t.Error("not reported")
	}
	m.reboot()
	if line := m.must(); !strings.Contains(line, "confirmed by") {
		t.Errorf("%s", line)
	}
}

// TestRotation: an old pin on the command line does no harm once the CA has changed, and NV's pin
// has moved on.
func TestRotation(t *testing.T) {
	h := newHead(t)
	old, next := h.ca, newCA(t, "next")
	leaf := next.head(t, nil)
	leaf.Certificate = append(leaf.Certificate, old.cross(t, next).Raw, old.cert.Raw)
	h.ca = next
	h.url, h.tcp = listen(t, leaf, h)
	h.enabled = true
	m := newMachine(t, h)
	m.config.CA = old.pin().String()
	m.must()
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.lastStatus().Pin; got != next.pin().String() {
		t.Errorf("pin %s", got)
	}
	certs, err := readCertificates(a.path(fileCA))
	if err != nil || len(certs) != 2 {
		t.Errorf("ca.pem: %d certificates, %v", len(certs), err)
	}
	m.reboot()
	if line := m.must(); !strings.Contains(line, "confirmed by") {
		t.Errorf("old pin: %s", line)
	}
	m.reboot()
	m.config.CA = "tofu" // that is, NV's pin
	if line := m.must(); !strings.Contains(line, "confirmed by") {
		t.Errorf("NV's pin: %s", line)
	}
}

func TestNoHeadInReach(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.reboot()
	m.config.Head = "https://127.0.0.1:1"
	m.fails(StatusTryAgain) // ca.pem cannot be had
	m.installed(false)
	m.config.CA = h.ca.file(t)
	if line := m.must(); !strings.Contains(line, "from the TPM") {
		t.Errorf("%s", line)
	}
	m.installed(true)
	m.reboot()
	m.config.Head = ""
	if line := m.must(); !strings.Contains(line, "no head is configured") {
		t.Errorf("%s", line)
	}
	m.reboot()
	m.config.Now = func() time.Time { return time.Unix(0, 0) } // the CA's signature says that it is later
	m.must()
	m.reboot()
	m.config.Now = func() time.Time { return day0.AddDate(0, 0, 91) }
	m.fails(StatusConfig) // expired, and nobody to ask
	m.installed(false)
}

// TestStrangerInTheHeadsPlace: with its CA at hand, a node needs no head to keep its certificate.
func TestStrangerInTheHeadsPlace(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.reboot()
	stranger := newHead(t)
	m.config.Head, m.config.CA = stranger.url.String(), h.ca.file(t)
	if line := m.must(); !strings.Contains(line, "ca_mismatch") {
		t.Errorf("%s", line)
	}
	m.installed(true)
	if ca, err := os.ReadFile(filepath.Join(m.config.Root, fileCA)); err != nil || !bytes.Equal(ca, pemOf(h.ca.cert)) {
		t.Errorf("ca.pem: %v", err)
	}
	if got := stranger.paths(); len(got) > 0 || m.did(tpm2.TPMCCSign) > 0 {
		t.Errorf("requests %v", got)
	}
}

// TestDeadClock: whatever the battery says, the node gets there, and the clock is set.
func TestDeadClock(t *testing.T) {
	for name, year := range map[string]int{"1970": 1970, "2000": 2000, "2106": 2106} {
		t.Run(name, func(t *testing.T) {
			h := newHead(t)
			h.enabled = true
			m := newMachine(t, h)
			now := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
			m.config.Now = func() time.Time { return now }
			m.config.Synchronised = func() bool { return false }
			m.config.SetClock = func(to time.Time) error { now = to; return nil }
			m.config.Clock = "off"
			m.fails(StatusConfig)
			m.config.Clock = "trust"
			m.must()
			if now.Year() != year {
				t.Error("the clock was set")
			}
			m.reboot()
			if line := m.must(); !strings.Contains(line, "confirmed by") {
				t.Errorf("next boot: %s", line)
			}
			m.config.Clock = "set"
			m.must()
			if !now.Equal(day0) {
				t.Errorf("the clock is %v", now)
			}
		})
	}
}

// TestExpired: the same key comes back by proof.
func TestExpired(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	h.forge = func(pub crypto.PublicKey) *x509.Certificate {
		return h.ca.node(t, "n0", pub, func(c *x509.Certificate) { c.NotAfter = day0.Add(time.Hour) })
	}
	m := newMachine(t, h)
	m.must()
	m.reboot()
	m.config.Now = func() time.Time { return day0.Add(2 * time.Hour) }
	h.set(func() { h.cert, h.forge = nil, nil; h.enabled = true })
	if line := m.must(); !strings.Contains(line, "enrolled") {
		t.Errorf("%s", line)
	}
	if m.did(tpm2.TPMCCCreateLoaded) != 0 {
		t.Error("another key was made")
	}
}

// TestExpiredInTheOtherSlot: the head has bound the key of the certificate in NV, not whatever key is
// found first.
func TestExpiredInTheOtherSlot(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.revoke()
	h.again()
	m.must()
	m.reboot()
	h.set(func() {
		clear(h.barred)
		h.cert = h.ca.node(t, "n0", h.cert.PublicKey, func(c *x509.Certificate) { c.NotAfter = day0.AddDate(1, 0, 0) })
	})
	m.config.Now = func() time.Time { return day0.AddDate(0, 0, 91) }
	h.set(func() { h.now = m.config.Now })
	h.url, h.tcp = listen(t, h.ca.head(t, func(c *x509.Certificate) { c.NotAfter = day0.AddDate(1, 0, 0) }), h)
	m.config.Head = h.url.String()
	if line := m.must(); !strings.Contains(line, "enrolled") {
		t.Errorf("%s", line)
	}
}

// TestHeadForgot: the record on the head is gone, so that the certificate means nothing there.
func TestHeadForgot(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.reboot()
	h.set(func() { h.cert, h.key, h.enabled = nil, nil, true })
	if line := m.must(); !strings.Contains(line, "enrolled") {
		t.Errorf("%s", line)
	}
}

func TestRevoked(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.reboot()
	h.revoke()
	m.fails(StatusRefused)
	m.installed(false)
	for i := range 3 { // the third finds barred keys in both slots
		first := h.key
		h.again()
		if line := m.must(); !strings.Contains(line, "enrolled") || bytes.Equal(h.key, first) {
			t.Errorf("round %d: %s, same key %v", i, line, bytes.Equal(h.key, first))
		}
		m.reboot()
		if line := m.must(); !strings.Contains(line, "confirmed by") {
			t.Errorf("round %d, next boot: %s", i, line)
		}
		h.revoke()
	}
}

// TestLostRecord: without NV the bound key is found again, in whichever slot.
func TestLostRecord(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.revoke()
	h.again()
	m.must() // the key is in the other slot now
	key := h.key
	m.config.Forget = "1"
	m.reboot()
	if line := m.must(); !strings.Contains(line, "enrolled") || !bytes.Equal(h.key, key) {
		t.Errorf("%s", line)
	}
}

func TestRefused(t *testing.T) {
	h := newHead(t)
	h.enabled, h.key = true, []byte("another")
	m := newMachine(t, h)
	if text := m.fails(StatusRefused); !strings.Contains(text, "muster why n0") {
		t.Errorf("%s", text)
	}
}

func TestStaleChallenge(t *testing.T) {
	h := newHead(t)
	h.enabled, h.stale = true, 2
	m := newMachine(t, h)
	m.config.Wait = "20s"
	m.must()
	if got := h.paths(); len(got) != 7 {
		t.Errorf("requests %v", got)
	}
}

// TestLyingHead: even a head of the right CA cannot make the node prove what it did not ask for, nor
// keep a certificate that is not its own.
func TestLyingHead(t *testing.T) {
	other := newCA(t, "other")
	for name, c := range map[string]struct {
		lie   func(*wire.Challenge)
		forge func(*fakeHead, crypto.PublicKey) *x509.Certificate
	}{
		"unprintable slot": {lie: func(ch *wire.Challenge) { ch.Slot = "n0\x1b[2J" }},
		"no slot":          {lie: func(ch *wire.Challenge) { ch.Slot = "" }},
		"no level":         {lie: func(ch *wire.Challenge) { ch.Level = "best" }},
		"another EK":       {lie: func(ch *wire.Challenge) { ch.EK = strings.Repeat("0", 64) }},
		"another CA's certificate": {forge: func(_ *fakeHead, pub crypto.PublicKey) *x509.Certificate {
			return other.node(t, "n0", pub, nil)
		}},
		"another name": {forge: func(h *fakeHead, pub crypto.PublicKey) *x509.Certificate {
			return h.ca.node(t, "n1", pub, nil)
		}},
		"another key": {forge: func(h *fakeHead, _ crypto.PublicKey) *x509.Certificate {
			return h.ca.node(t, "n0", newKey(t).Public(), nil)
		}},
		"no clientAuth": {forge: func(h *fakeHead, pub crypto.PublicKey) *x509.Certificate {
			return h.ca.node(t, "n0", pub, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
		}},
		"expired": {forge: func(h *fakeHead, pub crypto.PublicKey) *x509.Certificate {
			return h.ca.node(t, "n0", pub, func(c *x509.Certificate) { c.NotAfter = day0.Add(-time.Minute) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHead(t)
			h.enabled, h.lie = true, c.lie
			if c.forge != nil {
				h.forge = func(pub crypto.PublicKey) *x509.Certificate { return c.forge(h, pub) }
			}
			m := newMachine(t, h)
			m.fails(StatusConfig)
			m.installed(false)
			if m.did(tpm2.TPMCCNVWrite) > 0 || c.lie != nil && m.did(tpm2.TPMCCActivateCredential) > 0 {
				t.Errorf("commands %v", m.counts.Commands())
			}
		})
	}
}

// TestChangedTerms: a challenge whose terms were changed on the way opens, but its proof fits nothing.
func TestChangedTerms(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	h.lie = func(ch *wire.Challenge) { ch.Slot = "n1" }
	m := newMachine(t, h)
	m.config.Wait = "1s"
	m.fails(StatusTryAgain)
	m.installed(false)
	if h.cert != nil {
		t.Error("a certificate was issued")
	}
}

// TestPowerCut cuts the power before and after each TPM command of a first boot. The next boot gets
// there, with one key and one certificate in all.
func TestPowerCut(t *testing.T) {
	commands := 0
	for _, after := range []bool{false, true} {
		for at := 1; ; at++ {
			h := newHead(t)
			h.enabled = true
			m := newMachine(t, h)
			var k *testtpm.Killer
			line, err := m.runWith(func(t transport.TPM) transport.TPM { k = m.tpm.CutPower(t, at, after); return k })
			if !k.Fired() {
				if err != nil {
					t.Fatal(line, err)
				}
				commands = at - 1
				break
			}
			if _, e := os.Stat(filepath.Join(m.config.Root, fileCert)); err == nil && e != nil {
				t.Errorf("command %d: done, but no certificate", at)
			}
			cert := h.cert
			m.reboot()
			if _, err = m.run(); err != nil {
				t.Errorf("command %d, after %v: %v\n%s", at, after, err, m.log.String())
			}
			if cert != nil && !cert.Equal(h.cert) {
				t.Errorf("command %d, after %v: a second certificate", at, after)
			}
			m.installed(true)
			m.reboot()
			if line, err = m.run(); err != nil || !strings.Contains(line, "confirmed by") {
				t.Errorf("command %d, after %v, third boot: %s, %v", at, after, line, err)
			}
		}
	}
	if commands < 10 {
		t.Errorf("only %d commands", commands)
	}
}

// TestNoRoomInNV: it goes on without, says so, and enrols again at each boot with the same key.
func TestNoRoomInNV(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	full := func(next transport.TPM) transport.TPM {
		return testtpm.Inject(next, testtpm.Fault{Code: tpm2.TPMCCNVDefineSpace, At: 1, Times: 99, Answer: testtpm.RC(tpm2.TPMRCNVSpace)})
	}
	line, err := m.runWith(full)
	if err != nil || !strings.HasSuffix(line, "storage head") {
		t.Fatalf("%s, %v", line, err)
	}
	if !strings.Contains(m.log.String(), "fetched again at each boot") {
		t.Error("not said")
	}
	cert := h.cert
	m.reboot()
	if line, err = m.runWith(full); err != nil || !strings.HasSuffix(line, "storage head") || !cert.Equal(h.cert) {
		t.Errorf("%s, %v", line, err)
	}
}

// fault makes a TPM answer some commands with a code.
func fault(code tpm2.TPMRC, commands ...tpm2.TPMCC) func(transport.TPM) transport.TPM {
	return func(next transport.TPM) transport.TPM {
		var faults []testtpm.Fault
		for _, c := range commands {
			faults = append(faults, testtpm.Fault{Code: c, At: 1, Times: 99, Answer: testtpm.RC(code)})
		}
		return testtpm.Inject(next, faults...)
	}
}

// keys are those in the slots.
func (m *machine) keys() (keys []*tpm.Key) {
	m.withTPM(func(d *tpm.Device) (err error) {
		keys, err = d.Keys(tpm.DefaultSlots)
		return err
	})
	return keys
}

func (m *machine) withTPM(f func(*tpm.Device) error) {
	m.t.Helper()
	link, err := m.tpm.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	defer link.Close()
	d := tpm.New(link)
	defer d.Close()
	if err := f(d); err != nil {
		m.t.Fatal(err)
	}
}

// TestRoomComes: a node whose TPM had no room at its first boot has its certificate for a primary key. It keeps that
// when there is room, and makes another key only when it is asked to.
func TestRoomComes(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	full := fault(tpm2.TPMRCNVSpace, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCEvictControl)
	for range 2 {
		if line, err := m.runWith(full); err != nil || !strings.HasSuffix(line, "storage head") {
			t.Fatal(line, err)
		}
		m.reboot()
	}
	cert := h.cert
	if line := m.must(); !strings.Contains(line, "enrolled at") || !strings.HasSuffix(line, "storage nv") {
		t.Error(line)
	}
	if n := len(m.keys()); n > 0 {
		t.Errorf("%d keys of no use are left in the TPM", n)
	}
	for range 2 {
		m.reboot()
		if line := m.must(); !strings.Contains(line, "confirmed by") {
			t.Error(line)
		}
		if m.did(tpm2.TPMCCCreateLoaded) > 0 {
			t.Error("another key was made")
		}
	}
	if !cert.Equal(h.cert) {
		t.Error("another certificate")
	}
}

// TestRoomComesPowerCut cuts the power at each command of the boot that finds room. The next one gets there, with the same
// certificate.
func TestRoomComesPowerCut(t *testing.T) {
	t.Parallel()
	full := fault(tpm2.TPMRCNVSpace, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCEvictControl)
	for _, after := range []bool{false, true} {
		for at := 1; ; at++ {
			h := newHead(t)
			h.enabled = true
			m := newMachine(t, h)
			if line, err := m.runWith(full); err != nil {
				t.Fatal(line, err)
			}
			m.reboot()
			cert := h.cert
			var k *testtpm.Killer
			m.runWith(func(t transport.TPM) transport.TPM { k = m.tpm.CutPower(t, at, after); return k })
			m.reboot()
			if line, err := m.run(); err != nil || !cert.Equal(h.cert) {
				t.Errorf("command %d, after %v: %s %v", at, after, line, err)
			}
			m.tpm.Stop()
			if !k.Fired() {
				if at < 15 {
					t.Errorf("only %d commands", at-1)
				}
				break
			}
		}
	}
}

// TestRoomComesForAKey: with a certificate in NV that is of no use any more, and no place for its key, the boot goes on
// with that key at once.
func TestRoomComesForAKey(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	if line, err := m.runWith(fault(tpm2.TPMRCNVSpace, tpm2.TPMCCEvictControl)); err != nil || !strings.HasSuffix(line, "storage nv") {
		t.Fatal(line, err)
	}
	m.reboot()
	h.set(func() { h.cert = h.ca.node(t, "n0", h.cert.PublicKey, nil) }) // as when it was over, and renewed by the key
	if line := m.must(); !strings.Contains(line, "enrolled at") {
		t.Error(line)
	}
	if m.did(tpm2.TPMCCCreateLoaded) > 0 || len(m.keys()) > 0 {
		t.Errorf("another key was made; %d are in the TPM", len(m.keys()))
	}
}

// TestKeyOnRecord: of all keys that the TPM has, the one that the head has on record is found without NV, and those that
// it refused go: as after a cut in `renew --new-key`, from a slot or from the primary.
func TestKeyOnRecord(t *testing.T) {
	for name, c := range map[string]struct{ right, left int }{
		"first slot":  {0, 1},
		"second slot": {1, 2}, // the first that is tried, for its algorithm
		"primary":     {tpm.PrimarySlot, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHead(t)
			m := newMachine(t, h)
			var key *tpm.Key
			m.withTPM(func(d *tpm.Device) error {
				first, _, err := d.NodeKey(tpm.DefaultSlots, template.P384) // of another algorithm than is now asked for
				if err != nil {
					return err
				}
				second, _, err := d.OtherKey(tpm.DefaultSlots, template.P256, first)
				if err != nil {
					return err
				}
				primary, err := d.PrimaryKey(template.P256, nil)
				key = map[int]*tpm.Key{0: first, 1: second, tpm.PrimarySlot: primary}[c.right]
				return err
			})
			h.cert = h.ca.node(t, "n0", key.Public(), nil)
			h.key = h.cert.RawSubjectPublicKeyInfo
			if line := m.must(); !strings.Contains(line, "enrolled at") {
				t.Error(line)
			}
			if left := m.keys(); len(left) != c.left {
				t.Errorf("%d keys are left, not %d", len(left), c.left)
			}
			m.reboot()
			if line := m.must(); !strings.Contains(line, "confirmed by") {
				t.Error(line)
			}
		})
	}
}

// TestOtherKeyIsLookedFor: to look for the key of the certificate in NV makes none in the other slot.
func TestOtherKeyIsLookedFor(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.revoke()
	h.again()
	m.must() // in the second slot now, and so it is in NV
	m.withTPM(func(d *tpm.Device) error { return d.EvictSlot(tpm.DefaultSlots, 1) })
	h.set(func() { clear(h.barred) })
	m.reboot()
	m.fails(StatusRefused)
	if keys := m.keys(); len(keys) != 1 || keys[0].Slot() != 0 {
		t.Errorf("%d keys", len(keys))
	}
}

// TestBrokenTPM: a TPM that dies in the middle is told as such.
func TestBrokenTPM(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	_, err := m.runWith(func(next transport.TPM) transport.TPM {
		return testtpm.Inject(next, testtpm.Fault{Code: tpm2.TPMCCActivateCredential, At: 1, Times: 99, Answer: testtpm.RC(tpm2.TPMRCFailure)})
	})
	if ExitStatus(err) != StatusNoTPM {
		t.Errorf("%v", err)
	}
	m.installed(false)
}

func TestCommandsThatLook(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.paths()
	m.config.TPM = m.tpm.Spec()
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if s, err := a.Status(ctx); err != nil || s.Node != "n0" || s.State != "active" || s.Storage != "nv" || s.Pin != h.ca.pin().String() {
		t.Errorf("status: %+v, %v", s, err)
	}
	if text, err := a.Certificate(ctx); err != nil || !bytes.Equal(text, pemOf(h.cert)) {
		t.Errorf("cert: %s, %v", text, err)
	}
	var out bytes.Buffer
	if err := a.EKs(ctx, &out); err != nil || !strings.HasSuffix(out.String(), "  ECC P-256\n") {
		t.Errorf("ek: %s, %v", out.String(), err)
	}
	if got := h.paths(); len(got) > 0 {
		t.Errorf("they went to the network: %v", got)
	}
	out.Reset()
	if err := a.Doctor(ctx, &out); err != nil {
		t.Errorf("doctor: %v\n%s", err, out.String())
	}
	for _, part := range []string{"tpm", "nv", "key", "clock", "name", "config", "network", "head", "certificate"} {
		if !strings.Contains(out.String(), "  "+part+" ") {
			t.Errorf("doctor says nothing of %s", part)
		}
	}
	out.Reset()
	if err := a.Get(ctx, h.url.String()+wire.PathSelf, &out); err != nil || !strings.Contains(out.String(), `"node":"n0"`) {
		t.Errorf("get: %s, %v", out.String(), err)
	}
	if err := a.Get(ctx, h.url.String()+"/nothing", &out); ExitStatus(err) != StatusFailed || !strings.HasSuffix(err.Error(), ": 404 Not Found: not_found: says the test") {
		t.Errorf("get: %v", err)
	}
	root, err := filepath.Abs(m.config.Root)
	if err != nil {
		t.Fatal(err)
	}
	if conf, err := os.ReadFile(a.path(fileConf)); err != nil || !bytes.Contains(conf, []byte("OPENSSL_CONF="+root+fileConf+" curl --cert "+root+fileChain+" ")) {
		t.Errorf("openssl.cnf: %s, %v", conf, err)
	}
	if line, err := a.Forget(ctx, true); err != nil || !strings.HasPrefix(line, "forgotten: ") {
		t.Errorf("forget: %s, %v", line, err)
	}
	for _, key := range []bool{false, true} {
		if line, err := a.Forget(ctx, key); err != nil || line != "nothing to forget" {
			t.Errorf("forget again: %s, %v", line, err)
		}
	}
	m.installed(false)
	if s, err := a.Status(ctx); err != nil || s.State != "none" || s.Serial != "" {
		t.Errorf("after forget: %+v, %v", s, err)
	}
	if _, err := a.Certificate(ctx); ExitStatus(err) != StatusFailed {
		t.Errorf("after forget: %v", err)
	}
}

// TestForgetIsForRun: muster.forget=1 stays on the kernel command line after the boot, and only run
// obeys it. What is then left to status are the files.
func TestForgetIsForRun(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.config.TPM, m.config.Forget = m.tpm.Spec(), "1"
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for range 2 {
		if err := a.Get(ctx, h.url.String()+wire.PathSelf, io.Discard); err != nil {
			t.Errorf("get: %v", err)
		}
	}
	if s, err := a.Status(ctx); err != nil || s.Storage != "nv" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := a.withTPM(ctx, func(d *tpm.Device) error { _, err := d.EraseRecords(a.slots); return err }); err != nil {
		t.Fatal(err)
	}
	if s, err := a.Status(ctx); err != nil || s.Storage != "head" || s.Serial != serialHex(h.cert.SerialNumber) {
		t.Errorf("NV is empty: %+v, %v", s, err)
	}
}

// TestWithoutNV: where NV has no room for the certificate, the one that run has installed serves.
func TestWithoutNV(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.config.TPM = m.tpm.Spec()
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := a.withTPM(ctx, func(d *tpm.Device) error { _, err := d.EraseRecords(a.slots); return err }); err != nil {
		t.Fatal(err)
	}
	if err := a.Get(ctx, h.url.String()+wire.PathSelf, io.Discard); err != nil {
		t.Errorf("get: %v", err)
	}
	if text, err := a.Certificate(ctx); err != nil || !bytes.Equal(text, pemOf(h.cert)) {
		t.Errorf("cert: %s, %v", text, err)
	}
	late := 2
	m.config.Online = func(context.Context, error) error {
		if late--; late >= 0 {
			return errors.New("no link")
		}
		return nil
	}
	if b, err := New(m.config); err != nil || b.Get(ctx, h.url.String()+wire.PathSelf, io.Discard) != nil || late >= 0 {
		t.Errorf("get does not wait for the network: %v, %d", err, late)
	}
	// Another key's certificate in its place is of no use, and none is nothing to go on with.
	file := filepath.Join(m.config.Root, fileCert)
	other := newCA(t, "other").cert
	if err := os.WriteFile(file, pemOf(other), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.Get(ctx, h.url.String()+wire.PathSelf, io.Discard); err == nil {
		t.Error("a certificate of another key was used")
	}
	for _, text := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := a.Get(ctx, h.url.String()+wire.PathSelf, io.Discard); ExitStatus(err) != StatusFailed {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestForgetOnce: muster.forget=1 is obeyed once a boot. The system's run, which reads the same kernel
// command line, and a run that is repeated find the record that the first one wrote.
func TestForgetOnce(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.config.Forget = "1"
	for boot := range 2 {
		m.reboot()
		if line := m.must(); !strings.Contains(line, "enrolled at") {
			t.Errorf("boot %d: the record was not erased: %s", boot, line)
		}
		if line := m.must(); !strings.Contains(line, "confirmed by") {
			t.Errorf("boot %d: the second run erased it again: %s", boot, line)
		}
	}
}

// TestOnline: the key is made while the network comes up, and nothing is sent before; the name may come
// with the network.
func TestOnline(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.config.Node, m.config.Wait = "", "1m"
	name, failures := "(none)", 1
	m.config.Hostname = func() (string, error) { return name, nil }
	m.config.Online = func(context.Context, error) error {
		if m.did(tpm2.TPMCCEvictControl) != 1 {
			t.Error("the key is not in its place")
		}
		if h.tcp.accepted.Load() > 0 && name == "(none)" {
			t.Error("a head was asked without a network")
		}
		if failures--; failures >= 0 {
			return errors.New("no link")
		}
		name = "n0"
		return nil
	}
	if line := m.must(); !strings.HasPrefix(line, "n0: enrolled at") {
		t.Errorf("%s", line)
	}
	if !strings.Contains(m.log.String(), "no link") {
		t.Error("what the network waits for is not said")
	}
}

// TestOnlineHearsOfFailures: whoever looks after the network is told why no head was met over it.
func TestOnlineHearsOfFailures(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	stranger, _ := listen(t, newCA(t, "foreign").head(t, nil), reply(500, ""))
	m.config.Head, m.config.Wait = stranger.String(), "4s"
	var heard []error
	m.config.Online = func(_ context.Context, failed error) error {
		heard = append(heard, failed)
		return nil
	}
	m.fails(StatusConfig)
	if len(heard) < 2 || heard[0] != nil || !errors.Is(heard[1], errMismatch) {
		t.Errorf("of a stranger in the head's place: %v", heard)
	}
	m.config.Head, heard = h.url.String(), nil
	if m.must(); len(heard) == 0 || errors.Join(heard...) != nil {
		t.Errorf("of a head that was met: %v", heard)
	}
}

// TestGetTrusts: a server of the pinned CA need not be a head, but must be the URL's host.
func TestGetTrusts(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.config.TPM = m.tpm.Spec()
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := listen(t, h.ca.head(t, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), reply(200, "hello"))
	var out bytes.Buffer
	if err := a.Get(context.Background(), plain.String(), &out); err != nil || out.String() != "hello" {
		t.Errorf("%q, %v", out.String(), err)
	}
	foreign := newCA(t, "foreign").head(t, nil)
	clientOnly := h.ca.head(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	for name, cert := range map[string]tls.Certificate{"another CA": foreign, "clientAuth only": clientOnly} {
		u, _ := listen(t, cert, reply(200, "hello"))
		out.Reset()
		if err := a.Get(context.Background(), u.String(), &out); ExitStatus(err) != StatusConfig || out.Len() > 0 {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"busy": reply(503, "busy"),
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
		},
	} {
		u, _ := listen(t, h.ca.head(t, nil), answer)
		if err := a.Get(context.Background(), u.String(), io.Discard); ExitStatus(err) != StatusTryAgain || !strings.Contains(Describe(err), "hint: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := a.Get(context.Background(), "http://127.0.0.1/", &out); ExitStatus(err) != StatusConfig {
		t.Errorf("plain HTTP: %v", err)
	}
}

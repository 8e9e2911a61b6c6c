package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"muster/agent/internal/tpm"
	"muster/internal/testtpm"
	"muster/internal/wire"
)

func TestTroubleOf(t *testing.T) {
	command := func(auth tpm2.TPMHandle, rc tpm2.TPMRC) error {
		return fmt.Errorf("x: %w", &tpm.CommandError{Command: "tpm2.CreatePrimary", Auth: auth, Err: rc})
	}
	for _, c := range []struct {
		err  error
		want wire.Trouble
	}{
		{tpm.ErrNoTPM, wire.TPMMissing},
		{tpm.ErrAbsent, wire.NoTPM},
		{tpm.ErrTPM12, wire.TPM12},
		{fmt.Errorf("open: %w", unix.EBUSY), wire.TPMBusy},
		{&fs.PathError{Op: "open", Path: "/dev/tpmrm0", Err: unix.EACCES}, ""},
		{command(tpm2.TPMRHOwner, tpm2.TPMRCBadAuth), wire.TPMLocked},
		{command(tpm2.TPMRHEndorsement, tpm2.TPMRCAuthFail), wire.TPMLocked},
		{command(tpm2.TPMRHOwner, tpm2.TPMRCHierarchy), wire.TPMLocked},
		{command(0, tpm2.TPMRCLockout), wire.TPMLocked},
		{command(0, tpm2.TPMRCBadAuth), wire.TPMFailed},
		{command(0, tpm2.TPMRCFailure), wire.TPMFailed},
		{errors.New("anything"), wire.TPMFailed},
	} {
		if got := troubleOf(c.err); got != c.want {
			t.Errorf("%v: %q, %q expected", c.err, got, c.want)
		}
	}
}

// reporter is a machine whose firmware shows no TPM, so that its runs fail at once.
func reporter(t *testing.T, heads ...*url.URL) *machine {
	m := &machine{t: t, config: testConfig(t, "", "")}
	m.config.Node, m.config.Wait, m.config.Dev = "n7", "1m", m.config.Root
	write(t, filepath.Join(m.config.Sys, "firmware/acpi/tables/DSDT"), "")
	var urls []string
	for _, u := range heads {
		urls = append(urls, u.String())
	}
	m.config.Head = strings.Join(urls, ",")
	return m
}

// ends is a run, whose end the report must not change.
func (m *machine) ends() {
	m.t.Helper()
	_, err := m.boots(context.Background())
	if text := Describe(orNone(err)); ExitStatus(err) != StatusNoTPM || !strings.HasPrefix(text, "no usable TPM: the firmware shows no TPM (") {
		m.t.Errorf("status %d: %s", ExitStatus(err), text)
	}
}

func TestReport(t *testing.T) {
	h := newHead(t)
	m := reporter(t, h.url)
	m.config.CA = h.ca.pin().String()
	write(t, filepath.Join(m.config.Sys, "class/dmi/id/product_serial"), "B5TCY1\n")
	m.ends()
	if len(h.reports) != 1 || h.reports[0].Node != "n7" || h.reports[0].Hints.Serial != "B5TCY1" || h.reports[0].Code != wire.NoTPM {
		t.Errorf("reports %+v", h.reports)
	}
	if got := h.paths(); len(got) != 1 {
		t.Errorf("requests %v", got)
	}
}

// TestReportTrusts: nothing is sent to who is not a head of the pinned CA, nor while none is pinned.
func TestReportTrusts(t *testing.T) {
	h, other := newHead(t), newCA(t, "other")
	server, _ := listen(t, h.ca.head(t, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), h)
	for name, c := range map[string]struct {
		head *url.URL
		ca   string
		want int
	}{
		"the pinned CA's head":            {h.url, h.ca.pin().String(), 1},
		"a head of another CA":            {h.url, other.pin().String(), 0},
		"tofu, and nothing is pinned yet": {h.url, "tofu", 0},
		"no CA":                           {h.url, "", 0},
		"a server of the CA, no head":     {server, h.ca.pin().String(), 0},
	} {
		h.reports = nil
		m := reporter(t, c.head)
		m.config.CA = c.ca
		m.ends()
		if len(h.reports) != c.want || len(h.paths()) != c.want {
			t.Errorf("%s: %d reports, %d expected", name, len(h.reports), c.want)
		}
	}
	m := reporter(t)
	m.config.CA = h.ca.pin().String()
	m.ends() // no head is configured
	h.reports = nil
	m = reporter(t, h.url)
	write(t, filepath.Join(m.config.Root, imageCA), string(pemOf(h.ca.cert)))
	if m.ends(); len(h.reports) != 1 {
		t.Error("not told to a head of the image's CA")
	}
}

// TestReportByADeadClock is told as anything is: a head is believed at its certificate's own time. A
// clock that is believed keeps it from being told.
func TestReportByADeadClock(t *testing.T) {
	for _, year := range []int{1970, 2106} {
		for synchronised, want := range map[bool]int{false: 1, true: 0} {
			h := newHead(t)
			m := reporter(t, h.url)
			m.config.CA = h.ca.pin().String()
			m.config.Now = func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
			m.config.Synchronised = func() bool { return synchronised }
			if m.ends(); len(h.reports) != want {
				t.Errorf("%d, synchronised %v: %d reports", year, synchronised, len(h.reports))
			}
		}
	}
}

// TestReportOnce: one head is told, and one that is down, busy, a stranger or silent is passed over.
func TestReportOnce(t *testing.T) {
	h, other := newHead(t), newHead(t)
	busy, refusals := replies(replyCode(wire.Busy))
	full, _ := listen(t, h.ca.head(t, nil), busy)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	down := &url.URL{Scheme: "https", Host: "127.0.0.1:1"}
	m := reporter(t, h.url, full, other.url, down, &url.URL{Scheme: "https", Host: silent.Addr().String()})
	m.config.CA = h.ca.pin().String()
	for n := 1; n <= 4; n++ {
		if m.ends(); len(h.reports) != n || len(other.paths()) > 0 {
			t.Errorf("run %d: %d reports", n, len(h.reports))
		}
	}
	refusals.Store(0)
	m = reporter(t, full)
	m.config.CA = h.ca.pin().String()
	if m.ends(); refusals.Load() != 1 {
		t.Errorf("a busy head was asked %d times", refusals.Load())
	}
}

// TestReportOfARun: what a run with a TPM ends with, where the head cannot see it.
func TestReportOfARun(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*fakeHead, *machine)
		status  int
		want    []wire.Trouble
	}{
		"not enabled": {func(h *fakeHead, m *machine) { h.enabled = false }, StatusTryAgain, nil},
		"refused":     {func(h *fakeHead, m *machine) { h.key = []byte("another") }, StatusRefused, nil},
		"well":        {func(h *fakeHead, m *machine) {}, StatusDone, nil},
		"no room for files": {func(h *fakeHead, m *machine) {
			write(t, filepath.Join(m.config.Root, "run"), "a file")
		}, StatusTryAgain, []wire.Trouble{wire.InstallFailed}},
		"a challenge without sense": {func(h *fakeHead, m *machine) {
			h.lie = func(ch *wire.Challenge) { ch.EK = strings.Repeat("0", 64) }
		}, StatusConfig, []wire.Trouble{wire.BadAnswer}},
		"another's certificate": {func(h *fakeHead, m *machine) {
			h.forge = func(crypto.PublicKey) *x509.Certificate { return h.ca.node(t, "n0", newKey(t).Public(), nil) }
		}, StatusConfig, []wire.Trouble{wire.BadAnswer}},
		"a broken TPM": {func(h *fakeHead, m *machine) {
			link, err := m.tpm.Dial()
			if err != nil {
				t.Fatal(err)
			}
			faulty := testtpm.Inject(link, testtpm.Fault{Code: tpm2.TPMCCActivateCredential, At: 1, Times: 99, Answer: testtpm.RC(tpm2.TPMRCFailure)})
			spec, closer, err := testtpm.Serve(faulty, filepath.Join(m.tpm.Dir(), "faulty"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closer.Close(); link.Close() })
			m.config.TPM = spec
		}, StatusNoTPM, []wire.Trouble{wire.TPMFailed}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHead(t)
			h.enabled = true
			m := newMachine(t, h)
			m.config.TPM = m.tpm.Spec()
			c.prepare(h, m)
			_, err := m.boots(context.Background())
			var got []wire.Trouble
			for _, r := range h.reports {
				got = append(got, r.Code)
			}
			if ExitStatus(err) != c.status || fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("status %d, reports %v, %v", ExitStatus(err), got, err)
			}
		})
	}
}

// TestReportWaitsForTheNetwork, with which the name may come; and without one nothing is sent.
func TestReportWaitsForTheNetwork(t *testing.T) {
	h := newHead(t)
	m := reporter(t, h.url)
	m.config.CA, m.config.Node = h.ca.pin().String(), ""
	name := ""
	m.config.Hostname = func() (string, error) { return name, nil }
	m.config.Online = func(context.Context, error) error { return errors.New("no network yet") }
	if m.ends(); len(h.reports) > 0 {
		t.Errorf("without a network: %+v", h.reports)
	}
	m.config.Online = func(context.Context, error) error { name = "n8"; return nil }
	if m.ends(); len(h.reports) != 1 || h.reports[0].Node != "n8" {
		t.Errorf("reports %+v", h.reports)
	}
}

// TestReportToAnOlderHead, which does not know the path, changes nothing.
func TestReportToAnOlderHead(t *testing.T) {
	ca := newCA(t, "ca")
	h, asked := replies(replyCode(wire.NotFound))
	u, _ := listen(t, ca.head(t, nil), h)
	m := reporter(t, u)
	m.config.CA = ca.pin().String()
	if m.ends(); asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

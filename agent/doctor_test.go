package agent

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
)

// doctor runs it and returns its table.
func (m *machine) doctor() string {
	m.t.Helper()
	m.config.TPM = m.tpm.Spec()
	a, err := New(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	var out bytes.Buffer
	a.Doctor(context.Background(), &out)
	return out.String()
}

// says fails the test unless the table has the lines.
func (m *machine) says(table string, lines ...string) {
	m.t.Helper()
	for _, line := range lines {
		if !strings.Contains(table, line+"\n") {
			m.t.Errorf("no line %q:\n%s", line, table)
		}
	}
}

// TestDoctorLeftOvers: a TPM has room for few objects, and who leaves some takes it from everybody.
func TestDoctorLeftOvers(t *testing.T) {
	m := newMachine(t, newHead(t))
	if table := m.doctor(); strings.Contains(table, "tpm2_flushcontext") {
		t.Errorf("%s", table)
	}
	link, err := m.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template.SRK())}).Execute(link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tpm2.PolicySession(link, tpm2.TPMAlgSHA256, 16); err != nil {
		t.Fatal(err)
	}
	link.Close()
	table := m.doctor()
	if !strings.HasPrefix(table, "warn  tpm  ") || !strings.Contains(table, "(objects: 1, sessions: 1)") {
		t.Errorf("%s", table)
	}
	m.says(table, "                   tpm2_flushcontext -t; tpm2_flushcontext -l")
}

// TestDoctorKey: forget keeps the key in its slot, and doctor says where.
func TestDoctorKey(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	table := m.doctor()
	m.says(table, "ok    key          none yet",
		"                   muster-agent run; if it does not end with a certificate, on the head: muster why n0")
	m.must()
	if table := m.doctor(); !strings.Contains(table, "ok    key          p256 at 0x81004E00 signs in ") {
		t.Errorf("%s", table)
	}
	a, err := New(m.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Forget(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	m.says(m.doctor(), "ok    key          p256 at 0x81004E00, no certificate yet")
}

// TestDoctorUnconfigured: after a run that was told everything on its command line, doctor looks at that head, and
// says that the next boot will not know it.
func TestDoctorUnconfigured(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.config.Options = Options{}
	m.config.Hostname = func() (string, error) { return "other", nil }
	table := m.doctor()
	if strings.Contains(table, "fail  ") || !strings.Contains(table, "warn  config       no head is configured; looking at that of the last run, https://") || !strings.Contains(table, "active at the head") {
		t.Errorf("%s", table)
	}
	m.says(table, "warn  name         other, but the certificate is for n0: the head decides names")
}

// TestDisabled: its certificate lives on, and run and doctor say what the head makes of the node.
func TestDisabled(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	h.set(func() { h.disabled = true })
	table := m.doctor()
	if !strings.Contains(table, "\nwarn  certificate  n0 until 2027-02-22 ") || !strings.Contains(table, "disabled on the head") {
		t.Errorf("%s", table)
	}
	m.says(table, "                   on the head: muster why n0")
	if line := m.must(); !strings.HasSuffix(line, ", storage nv, disabled on the head") {
		t.Errorf("%s", line)
	}
	if table := m.doctor(); !strings.Contains(table, "disabled on the head") {
		t.Errorf("after run: %s", table)
	}
	h.set(func() { h.disabled = false })
	if table := m.doctor(); !strings.Contains(table, "active at the head") {
		t.Errorf("enabled again: %s", table)
	}
}

// TestDoctorSaysItOnce: a head that is down fails in one line, and no log line is between them.
func TestDoctorSaysItOnce(t *testing.T) {
	h := newHead(t)
	h.enabled = true
	m := newMachine(t, h)
	m.must()
	m.log.Reset()
	m.config.Now = func() time.Time { return day0.Add(2 * time.Hour) }
	m.config.Synchronised = func() bool { return false }
	if table := m.doctor(); !strings.Contains(table, "active at the head") || m.log.Len() > 0 {
		t.Errorf("%s%s", table, m.log.String())
	}
	m.config.Head = "https://127.0.0.1:1"
	if table := m.doctor(); strings.Count(table, "fail  ") != 1 || strings.Count(table, "refused") != 1 || m.log.Len() > 0 {
		t.Errorf("%s%s", table, m.log.String())
	}
}

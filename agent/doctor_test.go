package agent

import (
	"bytes"
	"context"
	"strings"
	"testing"

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

package testtpm

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
)

const handle = 0x81004E00

func persist(t *testing.T, tpm transport.TPM) {
	t.Helper()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template.NodeKey(template.P256))}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, PersistentHandle: handle,
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
}

func persists(t *testing.T, m *TPM) bool {
	t.Helper()
	tpm, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	_, err = tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(tpm)
	return err == nil
}

func TestStateSurvives(t *testing.T) {
	m := Start(t)
	m.Kill()
	blank := filepath.Join(t.TempDir(), "blank")
	if err := m.Snapshot(blank); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	tpm, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	persist(t, tpm)
	tpm.Close()
	if err := m.PowerCycle(); err != nil || !persists(t, m) {
		t.Errorf("the key is lost with the power: %v", err)
	}
	m.Stop()
	again, err := Run(m.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	if !persists(t, again) {
		t.Error("Run does not continue the TPM of its directory")
	}
	again.Kill()
	if err := again.Restore(blank); err != nil {
		t.Fatal(err)
	}
	if err := again.PowerCycle(); err != nil || persists(t, again) {
		t.Errorf("after Restore the key is still there: %v", err)
	}
}

// TestServe reaches the doubles, one behind another, through a socket as another program does.
func TestServe(t *testing.T) {
	m := Start(t)
	chip, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer chip.Close()
	counter := Count(chip)
	manager, err := Manage(counter)
	if err != nil {
		t.Fatal(err)
	}
	counter.Reset()
	spec, closer, err := Serve(manager, filepath.Join(m.Dir(), "double"))
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	conn, err := net.Dial("unix", strings.TrimPrefix(spec, "swtpm:path="))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	persist(t, &link{conn: conn})
	// CreatePrimary: itself, save, flush. EvictControl: load, itself, save, flush. FlushContext: load,
	// itself, a save that finds nothing.
	want := []tpm2.TPMCC{
		tpm2.TPMCCCreatePrimary, tpm2.TPMCCContextSave, tpm2.TPMCCFlushContext,
		tpm2.TPMCCContextLoad, tpm2.TPMCCEvictControl, tpm2.TPMCCContextSave, tpm2.TPMCCFlushContext,
		tpm2.TPMCCContextLoad, tpm2.TPMCCFlushContext, tpm2.TPMCCContextSave,
	}
	got := counter.Commands()
	if len(got) != len(want) {
		t.Fatalf("the chip sees %v, %v expected", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("command %d is %v, %v expected", i+1, got[i], want[i])
		}
	}
}

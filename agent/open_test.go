package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/internal/testtpm"
	"muster/internal/wire"
)

// sentry calls then when a record with its message is logged.
type sentry struct {
	slog.Handler
	message string
	then    func()
}

func (s *sentry) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == s.message {
		s.then()
	}
	return s.Handler.Handle(ctx, r)
}

// when runs then at the moment when run begins to wait for the TPM.
func (m *machine) whenWaiting(then func()) {
	m.config.Log = slog.New(&sentry{slog.NewTextHandler(&m.log, nil), "waiting for the TPM", then})
}

func (m *machine) waits() int { return strings.Count(m.log.String(), "waiting for the TPM") }

// boots is Run, which opens the TPM by itself.
func (m *machine) boots(ctx context.Context) (string, error) {
	m.t.Helper()
	a, err := New(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	return a.Run(ctx)
}

// TestLateTPM: a socket that is not there yet, and one that nobody listens at yet.
func TestLateTPM(t *testing.T) {
	for name, options := range map[string][]testtpm.Option{"unix socket": nil, "TCP": {testtpm.TCP()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHead(t)
			h.enabled = true
			m := newMachine(t, h, options...)
			m.config.TPM, m.config.Wait = m.tpm.Spec(), "1m"
			m.tpm.Stop()
			m.whenWaiting(func() {
				if err := m.tpm.PowerCycle(); err != nil {
					t.Error(err)
				}
			})
			line, err := m.boots(context.Background())
			if err != nil || !strings.Contains(line, "enrolled") {
				t.Fatalf("%s, %v\n%s", line, err, m.log.String())
			}
			if m.waits() != 1 {
				t.Errorf("said %d times that it waits", m.waits())
			}
		})
	}
}

// TestWaitForTPMInterrupted ends at once, and says nothing to a head.
func TestWaitForTPMInterrupted(t *testing.T) {
	h := newHead(t)
	m := newMachine(t, h)
	m.config.TPM, m.config.Wait = "swtpm:path="+filepath.Join(t.TempDir(), "never"), "1m"
	ctx, cancel := context.WithCancel(context.Background())
	m.whenWaiting(cancel)
	if _, err := m.boots(ctx); !errors.Is(err, context.Canceled) || ExitStatus(err) != StatusTryAgain {
		t.Errorf("%v", err)
	}
	if got := h.paths(); len(got) > 0 {
		t.Errorf("requests %v", got)
	}
}

// TestNoTPM has one machine for each way of having no usable TPM. What is announced or named is waited
// for; what nothing announces is not.
func TestNoTPM(t *testing.T) {
	acpi := func(table string) map[string]string {
		return map[string]string{"sys/firmware/acpi/tables/" + table: ""}
	}
	with := func(files map[string]string, more ...string) map[string]string {
		for _, path := range more {
			files[path] = ""
		}
		return files
	}
	v1 := map[string]string{"sys/firmware/acpi/tables/DSDT": "", "sys/class/tpm/tpm0/tpm_version_major": "1\n"}
	const (
		absent   = "the firmware shows no TPM ("
		old      = "this machine has a TPM 1.2, which cannot be used ("
		noDriver = "the firmware announces a TPM, but the kernel has no device for it ("
		nowhere  = "there is no TPM at the place named ("
	)
	for name, c := range map[string]struct {
		files  map[string]string // below the root
		spec   string            // DEV stands for the directory of devices
		waits  bool
		says   string
		hint   string
		report wire.Trouble
	}{
		"nothing announces one":          {acpi("DSDT"), "", false, absent, "Intel PTT", wire.NoTPM},
		"the same in an initramfs":       {with(acpi("DSDT"), "etc/initrd-release"), "", false, absent, "AMD fTPM", wire.NoTPM},
		"nothing announces it, named":    {acpi("DSDT"), "device:DEV/tpmrm0", true, absent, "discrete TPM", wire.NoTPM},
		"announced":                      {acpi("TPM2"), "", true, noDriver, "tpm_crb", wire.TPMMissing},
		"announced, in an initramfs":     {with(acpi("TPM2"), "etc/initrd-release"), "", true, noDriver, "initramfs", wire.TPMMissing},
		"no sysfs":                       {nil, "", true, nowhere, "tpm_crb", wire.TPMMissing},
		"another device named":           {acpi("TPM2"), "device:DEV/tpm9", true, nowhere, "tpm_crb", wire.TPMMissing},
		"a socket named":                 {acpi("DSDT"), "swtpm:path=DEV/s", true, nowhere, "start swtpm", wire.TPMMissing},
		"ACPI table of a 1.2":            {acpi("TCPA"), "", false, old, "2.0", wire.TPM12},
		"ACPI table of a 1.2, named":     {acpi("TCPA"), "device:DEV/tpm0", false, old, "2.0", wire.TPM12},
		"driver of a 1.2":                {v1, "", false, old, "2.0", wire.TPM12},
		"driver of a 1.2, its device":    {with(map[string]string{"sys/class/tpm/tpm0/tpm_version_major": "1\n"}, "etc/initrd-release", "DEV/tpm0"), "", false, old, "2.0", wire.TPM12},
		"a device that is no TPM":        {with(acpi("TPM2"), "DEV/tpmrm0"), "", false, "what answered is not a TPM 2.0 (", "--tpm", wire.TPMFailed},
		"the bare device is none":        {with(acpi("TPM2"), "etc/initrd-release", "DEV/tpm0"), "", false, "what answered is not a TPM 2.0 (", "--tpm", wire.TPMFailed},
		"the bare device cannot be had":  {with(acpi("TPM2"), "etc/initrd-release", "DEV/tpm0/busy", "DEV/tpmrm0"), "", false, "what answered is not a TPM 2.0 (", "--tpm", wire.TPMFailed},
		"not an initramfs, bare device":  {with(acpi("TPM2"), "DEV/tpm0"), "", true, noDriver, "tpm_crb", wire.TPMMissing},
		"a bare device while both exist": {with(acpi("TPM2"), "etc/initrd-release", "DEV/tpm0", "DEV/tpmrm0"), "", false, "what answered is not a TPM 2.0 (", "--tpm", wire.TPMFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHead(t)
			m := &machine{t: t, config: testConfig(t, "", "")}
			m.config.Head, m.config.CA, m.config.Node, m.config.Wait = h.url.String(), h.ca.pin().String(), "n7", "300ms"
			m.config.Log = slog.New(slog.NewTextHandler(&m.log, nil))
			m.config.Dev = filepath.Join(m.config.Root, "dev")
			m.config.TPM = strings.Replace(c.spec, "DEV", m.config.Dev, 1)
			for path, text := range c.files {
				place(t, m.config.Root, path, text)
			}
			_, err := m.boots(context.Background())
			if text := Describe(orNone(err)); ExitStatus(err) != StatusNoTPM || !strings.HasPrefix(text, "no usable TPM: "+c.says) || !strings.Contains(text, "\nhint: ") || !strings.Contains(text, c.hint) {
				t.Errorf("status %d: %s", ExitStatus(err), text)
			}
			if got := m.waits() > 0; got != c.waits {
				t.Errorf("waits %v", got)
			}
			if len(h.reports) != 1 || h.reports[0].Code != c.report || h.reports[0].Node != "n7" {
				t.Errorf("reports %+v", h.reports)
			}
			m.installed(false)
			m.log.Reset()
			if a, err := New(m.config); err != nil {
				t.Fatal(err)
			} else if _, err := a.Status(context.Background()); ExitStatus(err) != StatusNoTPM || m.waits() > 0 || len(h.reports) > 1 {
				t.Errorf("status waits %d times, %d reports, %v", m.waits(), len(h.reports), err)
			}
		})
	}
}

// place makes a file, or for a device one that is no TPM.
func place(t *testing.T, root, path, text string) {
	t.Helper()
	device := filepath.Join(root, strings.Replace(path, "DEV", "dev", 1))
	if !strings.HasPrefix(path, "DEV/") || strings.Count(path, "/") > 1 {
		write(t, device, text)
		return
	}
	if err := os.MkdirAll(filepath.Dir(device), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, device); err != nil {
		t.Fatal(err)
	}
}

// TestLateDevice: the kernel's device appears while run waits, and it is the one that is used.
func TestLateDevice(t *testing.T) {
	for _, initramfs := range []bool{false, true} {
		m := &machine{t: t, config: testConfig(t, "", "")}
		m.config.CA, m.config.Wait = newCA(t, "ca").pin().String(), "1m"
		m.config.Dev = filepath.Join(m.config.Root, "dev")
		write(t, filepath.Join(m.config.Sys, "firmware/acpi/tables/TPM2"), "")
		device := "DEV/tpmrm0"
		if initramfs {
			write(t, filepath.Join(m.config.Root, "etc/initrd-release"), "")
			device = "DEV/tpm0"
		}
		m.whenWaiting(func() { place(t, m.config.Root, device, "") })
		if _, err := m.boots(context.Background()); !strings.Contains(Describe(orNone(err)), "what answered is not a TPM 2.0") {
			t.Errorf("initramfs %v: %v", initramfs, err)
		}
	}
}

// TestWaitZeroDoesNotWait for a TPM either.
func TestWaitZeroDoesNotWait(t *testing.T) {
	m := newMachine(t, newHead(t))
	m.config.TPM = "swtpm:path=" + filepath.Join(t.TempDir(), "never")
	if _, err := m.boots(context.Background()); ExitStatus(err) != StatusNoTPM || m.waits() > 0 {
		t.Errorf("%v\n%s", err, m.log.String())
	}
}

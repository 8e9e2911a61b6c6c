package tpm

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Presence is what firmware and kernel say of a TPM, without a word from the TPM.
type Presence int

const (
	Unknown   Presence = iota // there is no sysfs to ask
	Absent                    // neither shows one: it is switched off in the firmware, or none is fitted
	Announced                 // a TPM 2.0, or one whose version nothing tells
	Old                       // a TPM 1.2
)

// Look reads sysfs, which is at sys: what the kernel's drivers have found (class/tpm), else the
// firmware's ACPI tables (TPM2, or TCPA for a TPM 1.2), else its device tree.
func Look(sys string) Presence {
	if version := Version(sys); version != "" {
		if version == "1" {
			return Old
		}
		return Announced
	}
	firmware := filepath.Join(sys, "firmware")
	switch {
	case exists(filepath.Join(sys, "class/tpm/tpm0")), exists(filepath.Join(firmware, "acpi/tables/TPM2")):
		return Announced
	case exists(filepath.Join(firmware, "acpi/tables/TCPA")):
		return Old
	case inDeviceTree(filepath.Join(firmware, "devicetree/base")):
		return Announced
	case exists(firmware):
		return Absent
	}
	return Unknown
}

// Version returns the version of the first TPM that the kernel has a driver for, "1" or "2", and ""
// while there is none, or of a kernel that does not tell (before 5.6).
func Version(sys string) string {
	b, err := os.ReadFile(filepath.Join(sys, "class/tpm/tpm0/tpm_version_major"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Missing adds to an [ErrNoTPM] of the kernel's TPM what Look says of it: the error is [ErrAbsent] or
// [ErrTPM12] as well. Its text stays.
func Missing(sys string, err error) error {
	switch Look(sys) {
	case Old:
		return reasoned{err, ErrTPM12}
	case Absent:
		return reasoned{err, ErrAbsent}
	case Announced:
		return reasoned{err, errNoDriver}
	}
	return err
}

// reasoned is an error that has another one for a reason.
type reasoned struct {
	error
	reason error
}

func (r reasoned) Unwrap() []error { return []error{r.reason, r.error} }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// inDeviceTree looks for a node with one of the names that TPMs have there (Devicetree
// Specification, 2.2.2, and what POWER and OP-TEE call theirs) and that is not disabled.
func inDeviceTree(base string) bool {
	found := false
	filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		name, _, _ := strings.Cut(d.Name(), "@")
		if !slices.Contains([]string{"tpm", "tpm_tis", "vtpm", "ftpm"}, name) {
			return nil
		}
		status, err := os.ReadFile(filepath.Join(path, "status"))
		if err == nil && !bytes.HasPrefix(status, []byte("ok")) {
			return nil
		}
		found = true
		return fs.SkipAll
	})
	return found
}

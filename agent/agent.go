// Package agent brings a node from power-on to mTLS.
//
// It holds one invariant: the node obeys no stranger. No TPM proof, no file and no change of trust
// comes from the word of a head that does not chain to the pinned CA; and no key of the node exists
// outside its TPM.
//
// The files follow the flow: configuration (config, cmdline), what the node knows of itself (name,
// record), the TPM (open), whom it trusts and when (trust, clock), how it talks (client), and what it does
// (boot, contact, enroll, install, report). The rest are the commands that look: status, doctor, ek, get.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"muster/agent/cmdline"
	"muster/agent/internal/tpm"
	"muster/internal/template"
)

// Agent is a checked configuration, ready to work. Its methods are the commands; each opens the TPM
// for as long as it runs. One method runs at a time.
type Agent struct {
	heads    []*url.URL
	ca       caOption
	name     string
	named    bool // by the configuration, not by the hostname
	wait     time.Duration
	spec     string
	slots    tpm.Slots
	profiles []string
	alg      template.Algorithm
	forget   bool
	clock    *clock
	root     string
	sys, dev string
	hostname func() (string, error)
	network  func(context.Context, error) error
	log      *slog.Logger
	warnings []string // what the configuration said that nothing understands, or that something overrules
}

// path puts an absolute path under the root directory.
func (a *Agent) path(abs string) string { return filepath.Join(a.root, abs) }

// withTPM opens the TPM for fn, and puts a failure of the TPM into a person's words.
func (a *Agent) withTPM(ctx context.Context, fn func(*tpm.Device) error) error {
	d, err := a.openTPM(ctx)
	if err != nil {
		return tpmError(err)
	}
	defer d.Close()
	return fn(d)
}

func (a *Agent) initramfs() bool { return stage(a.root) == cmdline.Initramfs }

// stage says what root is of (os-release(5), /etc/initrd-release).
func stage(root string) cmdline.Stage {
	if _, err := os.Stat(filepath.Join(root, "/etc/initrd-release")); err == nil {
		return cmdline.Initramfs
	}
	return cmdline.System
}

// tpmError is the outcome of a TPM that did not do what was asked; an interruption stays one.
func tpmError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	sentence, hint := tpm.Explain(err)
	if sentence == "" {
		sentence = "the TPM failed"
	}
	return &Outcome{
		Status: StatusNoTPM, Message: fmt.Sprintf("no usable TPM: %s (%v)", sentence, err), Hint: hint, cause: err, trouble: troubleOf(err),
	}
}

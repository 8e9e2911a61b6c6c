package agent

import (
	"context"
	"errors"
	"time"

	"muster/agent/internal/tpm"
)

const (
	lateTPM   = 10 * time.Second // from when its driver may be loaded until it is there
	pollTPM   = 25 * time.Millisecond
	bareTPM   = "/tpm0"   // the device itself, which one program can open
	sharedTPM = "/tpmrm0" // the kernel's resource manager before it
)

// openTPM opens the TPM that was named, else the kernel's resource manager. The error says what
// firmware and kernel know of a TPM that is not there.
func (a *Agent) openTPM(ctx context.Context) (*tpm.Device, error) {
	d, err := a.openNow(ctx)
	return d, a.missing(err)
}

// openNow prefers the bare device in an initramfs: nobody else uses the TPM yet, and it saves the
// resource manager's many context swaps.
func (a *Agent) openNow(ctx context.Context) (*tpm.Device, error) {
	if a.ofKernel() && tpm.Version(a.sys) == "1" {
		return nil, tpm.ErrTPM12
	}
	if a.spec != "" {
		return tpm.Open(ctx, a.spec)
	}
	if a.initramfs() {
		if d, err := tpm.Open(ctx, "device:"+a.dev+bareTPM); err == nil {
			return d, nil
		}
	}
	return tpm.Open(ctx, "device:"+a.dev+sharedTPM)
}

// ofKernel says whether the TPM is the one that sysfs shows, named or not.
func (a *Agent) ofKernel() bool {
	return a.spec == "" || a.spec == "device:"+a.dev+bareTPM || a.spec == "device:"+a.dev+sharedTPM
}

// missing adds to an error what sysfs has to say.
func (a *Agent) missing(err error) error {
	if a.ofKernel() && errors.Is(err, tpm.ErrNoTPM) {
		return tpm.Missing(a.sys, err)
	}
	return err
}

// awaitTPM is openTPM for a machine that is just coming up, where the device of a TPM may appear late.
// It waits for one that the firmware announces or a person has named, and --wait bounds that too.
func (a *Agent) awaitTPM(ctx context.Context) (*tpm.Device, error) {
	d, err := a.openTPM(ctx)
	limit := min(lateTPM, a.wait)
	if !a.mayCome(err) || limit == 0 {
		return d, err
	}
	a.log.Info("waiting for the TPM", "tpm", a.tpmSpec(), "up_to", limit)
	over := time.After(limit)
	poll := time.NewTicker(pollTPM)
	defer poll.Stop()
	for errors.Is(err, tpm.ErrNoTPM) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over:
			return nil, a.missing(err)
		case <-poll.C:
			d, err = a.openNow(ctx)
		}
	}
	return d, err
}

// mayCome says whether a TPM that could not be opened is worth waiting for.
func (a *Agent) mayCome(err error) bool {
	switch {
	case !errors.Is(err, tpm.ErrNoTPM), errors.Is(err, tpm.ErrTPM12):
		return false
	case errors.Is(err, tpm.ErrAbsent):
		return a.spec != ""
	}
	return true
}

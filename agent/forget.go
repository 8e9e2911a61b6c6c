package agent

import (
	"bytes"
	"context"
	"os"

	"muster/agent/internal/tpm"
	"muster/internal/durable"
)

// fileForgotten holds the id of the boot whose muster.forget=1 was obeyed. The word stays on the kernel
// command line while the system's run comes after the initramfs's, and a run that failed is repeated.
const fileForgotten = runDir + "/forgotten"

// forgetOnce obeys muster.forget=1, once a boot.
func (b *boot) forgetOnce() error {
	if !b.forget {
		return nil
	}
	// random(4): another one at each boot. Where it cannot be read /run alone tells boots apart.
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if last, err := os.ReadFile(b.path(fileForgotten)); err == nil && bytes.Equal(last, id) {
		return nil
	}
	if _, err := b.tpm.EraseRecords(b.slots); err != nil {
		return tpmError(err)
	}
	if err := b.makeRunDir(); err != nil {
		return err
	}
	if err := durable.WriteFile(b.path(fileForgotten), id, 0o644); err != nil {
		return installError(err)
	}
	return nil
}

// Forget erases the records in NV, and with them the CA's pin, and the files that run has installed.
// The key stays, so that the head recognises the node; with key it goes too, and the head must enable
// the node again before another one gets a certificate. It returns the line that says what happened.
func (a *Agent) Forget(ctx context.Context, key bool) (string, error) {
	unlock, _, err := a.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	var records, keys bool
	err = a.withTPM(ctx, func(d *tpm.Device) (err error) {
		if records, err = d.EraseRecords(a.slots); err == nil && key {
			keys, err = d.EvictKey(a.slots)
		}
		return tpmError(err)
	})
	if err != nil {
		return "", err
	}
	files, err := a.uninstall()
	switch {
	case err != nil:
		return "", installError(err)
	case !records && !keys && !files:
		return "nothing to forget", nil
	case key:
		return "forgotten: certificate, CA and key; on the head: muster certs enable -i " + hintName(a.name), nil
	}
	return "forgotten: certificate and CA; the key is kept", nil
}

package agent

import (
	"context"

	"muster/agent/internal/tpm"
)

// Forget erases the records in NV, and with them the CA's pin, and the files that run has installed.
// The key stays, so that the head recognises the node; with key it goes too, and the head must enable
// the node again before another one gets a certificate. It returns the line that says what happened.
func (a *Agent) Forget(ctx context.Context, key bool) (string, error) {
	err := a.withTPM(ctx, func(d *tpm.Device) error {
		if err := d.EraseRecords(a.slots); err != nil {
			return tpmError(err)
		}
		if key {
			return tpmError(d.EvictKey(a.slots))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if err := a.uninstall(); err != nil {
		return "", installError(err)
	}
	if key {
		return "forgotten: certificate, CA and key; on the head: muster certs enable -i " + hintName(a.name), nil
	}
	return "forgotten: certificate and CA; the key is kept", nil
}

package agent

import (
	"context"

	"muster/agent/internal/tpm"
)

// Forget erases the records in NV, and with them the CA's pin, and the files that run has installed.
// The key stays, so that the head recognises the node; with key it goes too, and the head must enable
// the node again before another one gets a certificate. It returns the line that says what happened.
func (a *Agent) Forget(ctx context.Context, key bool) (string, error) {
	var records, keys bool
	err := a.withTPM(ctx, func(d *tpm.Device) (err error) {
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

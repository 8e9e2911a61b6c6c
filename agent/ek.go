package agent

import (
	"context"
	"fmt"
	"io"

	"muster/agent/internal/tpm"
)

// EKs writes a line for each endorsement key: SHA-256 of its SubjectPublicKeyInfo in hex, as
// `muster certs enable --ek` takes it on the head, and its kind. The first one is that which
// enrolment would use.
func (a *Agent) EKs(ctx context.Context, w io.Writer) error {
	return a.withTPM(ctx, func(d *tpm.Device) error {
		eks, err := d.EKs(true)
		if err != nil {
			return tpmError(err)
		}
		for _, ek := range eks {
			if _, err := fmt.Fprintf(w, "%x  %s\n", ek.Fingerprint, ek.Kind); err != nil {
				return err
			}
		}
		return nil
	})
}

package agent

import (
	"context"
	"fmt"
	"io"
	"time"

	"muster/agent/internal/tpm"
)

// Status tells what this node holds, from the TPM and the files alone: no network, no change. What
// only a head knows is as old as the last contact.
func (a *Agent) Status(ctx context.Context) (Status, error) {
	var s Status
	err := a.withTPM(ctx, func(d *tpm.Device) error {
		ids, err := a.identities(d)
		if err != nil {
			return tpmError(err)
		}
		s = a.status(ids)
		return nil
	})
	return s, err
}

func (a *Agent) status(ids []*identity) Status {
	file := a.lastStatus()
	s := Status{Node: a.name, State: "none", TPM: a.tpmSpec(), Storage: "none"}
	switch {
	case len(ids) > 0:
		id := ids[0]
		s = Status{
			Node: id.node(), State: "issued", Serial: id.serial(), Expires: &id.leaf.NotAfter,
			Pin: id.pin.String(), TPM: a.tpmSpec(), Storage: "nv",
		}
		if file.Serial == s.Serial {
			s.State, s.Head = file.State, file.Head
		}
	case file.Serial != "": // NV had no room, or has been erased since
		s = file
		s.TPM, s.Storage = a.tpmSpec(), "head"
	}
	if s.Expires != nil && a.clock.time().After(*s.Expires) {
		s.State = "expired"
	}
	return s
}

// WriteText writes s for people.
func (s Status) WriteText(w io.Writer) {
	expires := "-"
	if s.Expires != nil {
		expires = s.Expires.Format(time.RFC3339)
	}
	for _, line := range [][2]string{
		{"node", s.Node}, {"state", s.State}, {"serial", s.Serial}, {"expires", expires},
		{"head", s.Head}, {"pin", s.Pin}, {"tpm", s.TPM}, {"storage", s.Storage},
	} {
		if line[1] == "" {
			line[1] = "-"
		}
		fmt.Fprintf(w, "%-8s %s\n", line[0], line[1])
	}
}

// Certificate returns the node's certificate, PEM.
func (a *Agent) Certificate(ctx context.Context) ([]byte, error) {
	var text []byte
	err := a.withTPM(ctx, func(d *tpm.Device) error {
		ids, err := a.identities(d)
		if err != nil {
			return tpmError(err)
		}
		id, err := a.newest(d, ids)
		if err == nil {
			text = pemOf(id.leaf)
		}
		return err
	})
	return text, err
}

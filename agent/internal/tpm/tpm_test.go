package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/testtpm"
)

var errorf = fmt.Errorf

func isErr(err, target error) bool { return errors.Is(err, target) }

// dial opens m until the test ends or another dial is made: swtpm serves one connection at a time.
func dial(t *testing.T, m *testtpm.TPM) *redial {
	t.Helper()
	return &redial{t: t, m: m}
}

// redial connects for one command at a time, as swtpm serves one connection only.
type redial struct {
	t *testing.T
	m *testtpm.TPM
}

func (r *redial) Send(command []byte) ([]byte, error) {
	link, err := r.m.Dial()
	if err != nil {
		return nil, err
	}
	defer link.Close()
	return link.Send(command)
}

// open opens m with the agent's own transport.
func open(t *testing.T, m *testtpm.TPM) *Device {
	t.Helper()
	d, err := Open(context.Background(), m.Spec())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// idle fails the test when an object or a session is loaded.
func idle(t *testing.T, d *Device) {
	t.Helper()
	h, err := d.Handles()
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Transient) != 0 || len(h.Sessions) != 0 {
		t.Errorf("left behind: objects %#x, sessions %#x", h.Transient, h.Sessions)
	}
}

// narrow is a TPM that takes limit bytes in one NV command; a silent one does not say so.
type narrow struct {
	transport.TPM
	limit  int
	silent bool
}

func (n *narrow) Send(command []byte) ([]byte, error) {
	size := 0
	switch cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])); {
	case cc == tpm2.TPMCCNVRead:
		size = int(binary.BigEndian.Uint16(command[len(command)-4:]))
	case cc == tpm2.TPMCCNVWrite:
		size = len(command) - 35 // header, two handles, a password session, the sizes
	case cc == tpm2.TPMCCGetCapability && binary.BigEndian.Uint32(command[14:]) == uint32(tpm2.TPMPTNVBufferMax):
		if n.silent {
			return testtpm.RC(tpm2.TPMRCValue)(command)
		}
		response, err := n.TPM.Send(command)
		if err == nil {
			binary.BigEndian.PutUint32(response[len(response)-4:], uint32(n.limit))
		}
		return response, err
	}
	if size > n.limit {
		return testtpm.RC(tpm2.TPMRCSize | 0x140)(command)
	}
	return n.TPM.Send(command)
}

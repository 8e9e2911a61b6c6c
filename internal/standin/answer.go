package standin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/wire"
)

// ChallengeRequest is leg 1 of a node that believes to be called node.
func (t *TPM) ChallengeRequest(node string) wire.ChallengeRequest {
	return wire.ChallengeRequest{
		V: wire.Version, Node: node, EKs: []wire.EK{{Pub: t.EK()}}, Key: t.Key(), CSR: t.csr,
	}
}

// Answer is leg 2: it opens the challenge and proves so.
func (t *TPM) Answer(node string, c wire.Challenge) (wire.EnrollRequest, error) {
	secret, err := t.Activate(c.IDObject, c.EncSecret)
	if err != nil {
		return wire.EnrollRequest{}, err
	}
	transcript, err := t.transcript(c)
	if err != nil {
		return wire.EnrollRequest{}, err
	}
	return wire.EnrollRequest{
		V: wire.Version, Node: node, EKs: []wire.EK{{Pub: t.EK()}}, Key: t.Key(), CSR: t.csr,
		Exp: c.Exp, Epoch: c.Epoch, Slot: c.Slot, Level: c.Level, EK: c.EK,
		Proof: transcript.Proof(secret),
	}, nil
}

// transcript is the node's own view of what the head decided: the keys are computed here, the rest is
// the challenge's.
func (t *TPM) transcript(c wire.Challenge) (*wire.Transcript, error) {
	ek, err := template.Fingerprint(&t.ekArea)
	if err != nil {
		return nil, err
	}
	if c.EK != hex.EncodeToString(ek[:]) {
		return nil, fmt.Errorf("challenge: for another EK, %s", c.EK)
	}
	ekName, err := tpm2.ObjectName(&t.ekArea)
	if err != nil {
		return nil, err
	}
	keyName, err := tpm2.ObjectName(&t.area)
	if err != nil {
		return nil, err
	}
	return &wire.Transcript{
		Cluster: c.Cluster, Purpose: wire.PurposeEnroll, Grant: c.Grant, Slot: c.Slot, Exp: c.Exp, Epoch: c.Epoch,
		EK: ek, EKName: ekName.Buffer, KeyName: keyName.Buffer, CSR: sha256.Sum256(t.csr), Level: c.Level,
	}, nil
}

package attest

import (
	"crypto/rand"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/wire"
)

// Life is how long a node may take to answer a challenge.
const Life = 5 * time.Minute

// Terms are what the head's record decided for a claim. The challenge binds them: an answer is good
// for these terms and no others.
type Terms struct {
	Cluster string
	Purpose string // wire.PurposeEnroll or wire.PurposeRenew
	Grant   string // as wire.Transcript has it
	Slot    string // the name, from the administrator's record
	Level   wire.Level
}

// Verifier makes challenges and checks their answers.
type Verifier struct{ Epochs *Epochs }

// Challenge wraps a secret for the TPM that holds both ek and the claimed key. ek must be one of
// the claim's. It writes nothing and keeps nothing.
func (v Verifier) Challenge(c *Claim, ek Key, terms Terms, now time.Time) (wire.Challenge, error) {
	ep := v.Epochs.current()
	t := transcript(ek, c.Key, csrHash(c.csr), terms, now.Add(Life).Unix(), ep.id)
	id, enc, err := makeCredential(ek.TPMT(), c.Key.Name, t.Secret(ep.key))
	if err != nil {
		return wire.Challenge{}, err
	}
	return wire.Challenge{
		Cluster: terms.Cluster, Grant: terms.Grant, Slot: terms.Slot, Level: terms.Level,
		Exp: t.Exp, Epoch: ep.id, EK: ek.Fingerprint,
		IDObject: id, EncSecret: enc, Time: now.Unix(),
	}, nil
}

// makeCredential is TPM2_MakeCredential (TPM 2.0 part 3, 12.6) in software. The results are the
// contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
func makeCredential(ek tpm2.TPMTPublic, name, secret []byte) (idObject, encSecret []byte, err error) {
	key, err := tpm2.ImportEncapsulationKey(&ek)
	if err != nil {
		return nil, nil, fmt.Errorf("EK: %v", err)
	}
	return tpm2.CreateCredential(rand.Reader, key, name, secret)
}

func transcript(ek, key Key, csr [32]byte, terms Terms, exp int64, epoch string) *wire.Transcript {
	return &wire.Transcript{
		Cluster: terms.Cluster, Purpose: terms.Purpose, Grant: terms.Grant, Slot: terms.Slot,
		Exp: exp, Epoch: epoch,
		EK: ek.Public.Fingerprint, EKName: ek.Name, KeyName: key.Name, CSR: csr, Level: terms.Level,
	}
}

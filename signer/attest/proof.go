package attest

import (
	"crypto"
	"crypto/hmac"
	"errors"
	"time"

	"muster/internal/template"
	"muster/internal/wire"
)

// ErrStale means that an answer does not fit any challenge that could still be answered: it is too
// late, or for other terms, or made up. The node starts again with leg 1; nothing else is told.
var ErrStale = errors.New("the answer does not fit a challenge that is still good")

// Answer is a leg 2 request whose form has been checked. Nothing in it is proven yet.
type Answer struct {
	Node  string
	Slot  string // untrusted until Verify: the proof binds it
	Level wire.Level
	EK    Key
	Key   Key
	csr   [32]byte
	exp   int64
	epoch string
	proof []byte
}

// ParseAnswer checks the form of a leg 2 body. Its errors may be told to anybody.
func ParseAnswer(body []byte) (*Answer, error) {
	var req wire.EnrollRequest
	if err := wire.Decode(body, &req); err != nil {
		return nil, err
	}
	if err := wire.CheckPeer(req.V, req.Node, req.Hints); err != nil {
		return nil, err
	}
	if len(req.EKs) != 1 || len(req.EKs[0].Certs) != 0 {
		return nil, errors.New("eks: not exactly the challenged EK, without certificates")
	}
	if len(req.Slot) > wire.MaxName || len(req.Epoch) > wire.MaxName || req.Level.Rank() == 0 {
		return nil, errors.New("slot, epoch, level: not as the challenge gave them")
	}
	key, err := newKey(template.ReadNodeKey(req.Key))
	if err != nil {
		return nil, err
	}
	ek, err := newKey(template.ReadEK(req.EKs[0].Pub))
	if err != nil {
		return nil, err
	}
	if ek.Fingerprint != req.EK {
		return nil, errors.New("ek: not the hash of the EK in eks")
	}
	if ek.Fingerprint == key.Fingerprint {
		return nil, errors.New("eks: the node key is no EK")
	}
	return &Answer{
		Node: req.Node, Slot: req.Slot, Level: req.Level, EK: ek, Key: key, csr: csrHash(req.CSR),
		exp: req.Exp, epoch: req.Epoch, proof: req.Proof,
	}, nil
}

// Attested is a node key that was proven to live in the TPM of an EK, for one slot and grant. Only
// Verify makes it.
type Attested struct {
	terms Terms
	ek    Key
	key   Key
}

// Verify recomputes the challenge that a must be answering, under the terms that the record gives
// now, and compares proofs in constant time. Its only error is ErrStale.
func (v Verifier) Verify(a *Answer, terms Terms, now time.Time) (*Attested, error) {
	key, known := v.Epochs.byID(a.epoch)
	// A challenge is never good for longer than Life, whatever the peer says it expires at.
	if !known || now.Unix() > a.exp || a.exp > now.Add(Life).Unix() {
		return nil, ErrStale
	}
	if a.Slot != terms.Slot || a.Level != terms.Level {
		return nil, ErrStale
	}
	t := transcript(a.EK, a.Key, a.csr, terms, a.exp, a.epoch)
	if !hmac.Equal(a.proof, t.Proof(t.Secret(key))) {
		return nil, ErrStale
	}
	return &Attested{terms: terms, ek: a.EK, key: a.Key}, nil
}

// Slot is the name that the proof is for.
func (a *Attested) Slot() string { return a.terms.Slot }

// Grant is the id of the grant that the proof is for; empty when it was for none.
func (a *Attested) Grant() string { return a.terms.Grant }

// Level is the level that was proven.
func (a *Attested) Level() wire.Level { return a.terms.Level }

// EK is the fingerprint of the EK that proved itself.
func (a *Attested) EK() string { return a.ek.Fingerprint }

// Key is the fingerprint of the proven node key.
func (a *Attested) Key() string { return a.key.Fingerprint }

// PublicKey is the proven node key.
func (a *Attested) PublicKey() crypto.PublicKey { return a.key.Public.Key }

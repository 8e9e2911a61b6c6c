// Package attest decides whether a key lives in the TPM that it claims to live in.
//
// It holds one invariant: an [Attested] value exists only for a key whose exact public area was
// proven, through a fresh challenge, to be loaded in the TPM that holds the named EK. Nothing else
// in the head can make one, and signing takes nothing else. The package knows no store, no names
// and no grants; those arrive as [Terms], which the challenge binds.
//
// The two legs keep no state between them: the challenge's secret is an HMAC under an epoch key over
// everything that leg 1 decided, so leg 2 recomputes it. docs/protocol.md tells the whole story.
package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"muster/internal/template"
	"muster/internal/wire"
)

// Bounds on what one request may carry; the body's own limit is wire.MaxBody.
const (
	maxEKs   = 8
	maxCerts = 4
)

// Key is a node key or EK as its TPM describes it. Name and fingerprint are computed here, never
// taken from a peer.
type Key struct {
	*template.Public
	Fingerprint string   // SHA-256 of the SPKI, lower-case hex
	Certs       [][]byte // that a claim brings with an EK: anybody's bytes
}

func newKey(p *template.Public, err error) (Key, error) {
	if err != nil {
		return Key{}, err
	}
	return Key{Public: p, Fingerprint: hex.EncodeToString(p.Fingerprint[:])}, nil
}

// Claim is a leg 1 request whose form has been checked: strict encoding, templates, sizes. Nothing
// in it is proven yet.
type Claim struct {
	Node  string // what the peer calls itself; untrusted
	Hints wire.Hints
	EKs   []Key // in the peer's order, all different, none the node key
	Key   Key
	csr   []byte
}

// ParseClaim checks the form of a leg 1 body. Its errors may be told to anybody.
func ParseClaim(body []byte) (*Claim, error) {
	var req wire.ChallengeRequest
	if err := wire.Decode(body, &req); err != nil {
		return nil, err
	}
	if err := wire.CheckPeer(req.V, req.Node, req.Hints); err != nil {
		return nil, err
	}
	if len(req.EKs) == 0 || len(req.EKs) > maxEKs {
		return nil, fmt.Errorf("eks: %d are not between 1 and %d", len(req.EKs), maxEKs)
	}
	key, err := newKey(template.ReadNodeKey(req.Key))
	if err != nil {
		return nil, err
	}
	c := &Claim{Node: req.Node, Hints: req.Hints, Key: key, csr: req.CSR}
	seen := map[string]bool{key.Fingerprint: true}
	for _, ek := range req.EKs {
		if len(ek.Certs) > maxCerts {
			return nil, fmt.Errorf("eks: more than %d certificates for one EK", maxCerts)
		}
		k, err := newKey(template.ReadEK(ek.Pub))
		if err != nil {
			return nil, err
		}
		if seen[k.Fingerprint] {
			return nil, errors.New("eks: an EK twice, or the node key among them")
		}
		seen[k.Fingerprint] = true
		k.Certs = ek.Certs
		c.EKs = append(c.EKs, k)
	}
	return c, nil
}

// CheckCSR verifies that the CSR is well-formed, is for exactly the claimed key, and is signed by
// it. Nothing but the key is used of it, ever. It costs a signature verification, so callers look
// at the grant first.
func (c *Claim) CheckCSR() error {
	csr, err := x509.ParseCertificateRequest(c.csr)
	if err != nil {
		return errors.New("csr: not a PKCS#10 request")
	}
	if sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo); sum != c.Key.Public.Fingerprint {
		return errors.New("csr: for another key than the one in key")
	}
	if err := csr.CheckSignature(); err != nil {
		return errors.New("csr: its signature does not verify")
	}
	return nil
}

func csrHash(csr []byte) [sha256.Size]byte { return sha256.Sum256(csr) }

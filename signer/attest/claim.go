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
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/wire"
)

// Bounds on what one request may carry; the body's own limit is wire.MaxBody.
const (
	maxEKs   = 8
	maxCerts = 4
	maxName  = 253
	maxHints = 32
)

// Key is a node key or EK as its TPM describes it.
type Key struct {
	Area        *tpm2.TPMTPublic
	Name        []byte // nameAlg || H(area), computed here, never taken from a peer
	Fingerprint string // SHA-256 of the SPKI, lower-case hex
}

func parseKey(area []byte) (Key, error) {
	pub, err := template.Parse(area)
	if err != nil {
		return Key{}, err
	}
	sum, err := template.Fingerprint(pub)
	if err != nil {
		return Key{}, err
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return Key{}, err
	}
	return Key{Area: pub, Name: name.Buffer, Fingerprint: hex.EncodeToString(sum[:])}, nil
}

func parseNodeKey(area []byte) (Key, error) {
	key, err := parseKey(area)
	if err != nil {
		return Key{}, fmt.Errorf("key: %v", err)
	}
	if _, err := template.CheckNodeKey(key.Area); err != nil {
		return Key{}, err
	}
	return key, nil
}

func parseEK(area []byte) (Key, error) {
	key, err := parseKey(area)
	if err != nil {
		return Key{}, fmt.Errorf("EK: %v", err)
	}
	if _, err := template.CheckEK(key.Area); err != nil {
		return Key{}, err
	}
	return key, nil
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
	if err := checkHead(req.V, req.Node, req.Hints); err != nil {
		return nil, err
	}
	if len(req.EKs) == 0 || len(req.EKs) > maxEKs {
		return nil, fmt.Errorf("eks: %d are not between 1 and %d", len(req.EKs), maxEKs)
	}
	key, err := parseNodeKey(req.Key)
	if err != nil {
		return nil, err
	}
	c := &Claim{Node: req.Node, Hints: req.Hints, Key: key, csr: req.CSR}
	seen := map[string]bool{key.Fingerprint: true}
	for _, ek := range req.EKs {
		if len(ek.Certs) > maxCerts {
			return nil, fmt.Errorf("eks: more than %d certificates for one EK", maxCerts)
		}
		k, err := parseEK(ek.Pub)
		if err != nil {
			return nil, err
		}
		if seen[k.Fingerprint] {
			return nil, errors.New("eks: an EK twice, or the node key among them")
		}
		seen[k.Fingerprint] = true
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
	key, err := template.Key(c.Key.Area)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(csr.RawSubjectPublicKeyInfo, spki) {
		return errors.New("csr: for another key than the one in key")
	}
	if err := csr.CheckSignature(); err != nil {
		return errors.New("csr: its signature does not verify")
	}
	return nil
}

func checkHead(version int, node string, hints wire.Hints) error {
	if version != wire.Version {
		return fmt.Errorf("v: %d is not %d", version, wire.Version)
	}
	if len(node) > maxName || len(hints.UUID) > maxName || len(hints.Serial) > maxName || len(hints.MACs) > maxHints {
		return errors.New("node, hints: too long")
	}
	for _, mac := range hints.MACs {
		if len(mac) > maxName {
			return errors.New("hints: too long")
		}
	}
	return nil
}

// public returns the key as crypto/x509 takes it. The area was parsed, so it cannot fail.
func (k Key) public() crypto.PublicKey {
	pub, err := template.Key(k.Area)
	if err != nil {
		panic("attest: " + err.Error())
	}
	return pub
}

func csrHash(csr []byte) [sha256.Size]byte { return sha256.Sum256(csr) }

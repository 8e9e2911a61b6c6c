// Package standin plays, in software, the part of a node and its TPM in an enrolment. It is no TPM: its
// keys lie in memory, and its public areas claim attributes (fixedTPM, sensitiveDataOrigin) that
// nothing stands behind.
//
// It serves the load generator, which needs thousands of nodes, and the tests that show what level
// tofu is worth: a head without the EK on record cannot tell a stand-in from a chip. No shipped program
// links it.
package standin

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
)

// TPM is the software of one node: an EK and a node key. Its methods may be called at once.
type TPM struct {
	ek     *ecdh.PrivateKey
	ekArea tpm2.TPMTPublic
	key    *ecdsa.PrivateKey
	area   tpm2.TPMTPublic
	csr    []byte
}

// New makes the two keys and the node key's CSR. The EK is of template ek, which must be one of ECC
// P-256 (L-2 or H-2).
func New(ek template.EK) (*TPM, error) {
	t := &TPM{ekArea: ek.Public, area: template.NodeKey(template.P256)}
	parms, err := ek.Public.Parameters.ECCDetail()
	if err != nil || parms.CurveID != tpm2.TPMECCNistP256 {
		return nil, fmt.Errorf("template %s: not of ECC P-256", ek.Name)
	}
	if t.ek, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	if t.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	key, err := t.key.PublicKey.ECDH()
	if err != nil {
		return nil, err
	}
	t.ekArea.Unique, t.area.Unique = unique(t.ek.PublicKey()), unique(key)
	if t.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, t.key); err != nil {
		return nil, fmt.Errorf("CSR: %v", err)
	}
	return t, nil
}

// unique is the point as a public area has it.
func unique(pub *ecdh.PublicKey) tpm2.TPMUPublicID {
	x, y := coordinates(pub)
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
	})
}

// coordinates are those of a P-256 point, each of 32 bytes.
func coordinates(pub *ecdh.PublicKey) (x, y []byte) {
	point := pub.Bytes() // 0x04 || X || Y
	return point[1:33], point[33:]
}

// EK is the EK's marshalled TPMT_PUBLIC.
func (t *TPM) EK() []byte { return tpm2.Marshal(t.ekArea) }

// Key is the node key's marshalled TPMT_PUBLIC.
func (t *TPM) Key() []byte { return tpm2.Marshal(t.area) }

// CSR is a PKCS#10 request of the node key, DER.
func (t *TPM) CSR() []byte { return t.csr }

// Signer is the node key, for TLS.
func (t *TPM) Signer() crypto.Signer { return t.key }

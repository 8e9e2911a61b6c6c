package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/ekcert"
	"muster/internal/template"
)

// readCert reads an EK certificate from NV. A certificate that is absent, may not be read or does not
// parse is nil without an error: it is optional evidence.
func (d *Device) readCert(index uint32) ([]byte, crypto.PublicKey, error) {
	b, err := d.readIndex(index)
	if refused(err) || errors.Is(err, errUnreadable) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	c, err := ekcert.Parse(b)
	if err != nil {
		return nil, nil, nil
	}
	return c.Raw, c.Key, nil
}

func fingerprintOf(key crypto.PublicKey) ([32]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(spki), nil
}

// publicOf is tmpl's public area around a certificate's key.
func publicOf(tmpl template.EK, key crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	pub := tmpl.Public
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		raw, err := key.Bytes()
		if err != nil {
			return nil, err
		}
		n := len(raw) / 2
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: raw[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[1+n:]},
		})
		if pub.Type != tpm2.TPMAlgECC {
			return nil, errors.New("EK certificate: its key is not of its template")
		}
	case *rsa.PublicKey:
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
		if pub.Type != tpm2.TPMAlgRSA || key.E != 65537 {
			return nil, errors.New("EK certificate: its key is not of its template")
		}
	default:
		return nil, fmt.Errorf("EK certificate: a %T", key)
	}
	return template.Parse(tpm2.Marshal(pub)) // the curve or the size may be another template's
}

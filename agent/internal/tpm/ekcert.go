package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

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
	der, key, err := parseEKCertificate(b)
	if err != nil {
		return nil, nil, nil
	}
	return der, key, nil
}

var oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}

// parseEKCertificate finds the certificate in what a manufacturer wrote: possibly behind the TCG's
// header for stored certificates (TCG PC Client Specific Implementation 1.21, 7.4.3), possibly
// followed by padding. It returns the certificate alone, and its key.
func parseEKCertificate(b []byte) (der []byte, key crypto.PublicKey, err error) {
	// Tag 0x1001, type full (0), length, tag 0x1002: Intel and Infineon have been seen to keep it.
	if len(b) > 7 && bytes.HasPrefix(b, []byte{0x10, 0x01, 0x00}) && bytes.Equal(b[5:7], []byte{0x10, 0x02}) {
		b = b[7:]
	}
	size, err := sequenceSize(b)
	if err != nil {
		return nil, nil, err
	}
	der = bytes.Clone(b[:size])
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	key = cert.PublicKey
	if key == nil {
		key, err = oaepKey(cert.RawSubjectPublicKeyInfo)
	}
	if err == nil {
		_, err = fingerprintOf(key)
	}
	if err != nil {
		return nil, nil, err
	}
	return der, key, nil
}

// sequenceSize returns how long the DER SEQUENCE is that starts b. Certificates have between 128
// and 65535 bytes, so that their length takes one octet or two.
func sequenceSize(b []byte) (int, error) {
	size := 0
	switch {
	case len(b) > 3 && b[0] == 0x30 && b[1] == 0x81:
		size = 3 + int(b[2])
	case len(b) > 4 && b[0] == 0x30 && b[1] == 0x82:
		size = 4 + int(binary.BigEndian.Uint16(b[2:]))
	default:
		return 0, errors.New("EK certificate: not a DER sequence")
	}
	if size > len(b) {
		return 0, errors.New("EK certificate: cut short")
	}
	return size, nil
}

// oaepKey reads an RSA key that is declared as id-RSAES-OAEP, as some manufacturers do and the
// standard library does not know.
func oaepKey(spki []byte) (crypto.PublicKey, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) != 0 || !info.Algorithm.Algorithm.Equal(oidRSAESOAEP) {
		return nil, errors.New("EK certificate: unknown key algorithm")
	}
	return x509.ParsePKCS1PublicKey(info.Key.RightAlign())
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

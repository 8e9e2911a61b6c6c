package testtpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
)

// certifyP256 derives the L-2 EK, issues a certificate for it and puts that in NV.
func (m *TPM) certifyP256() error {
	t, err := m.Dial()
	if err != nil {
		return err
	}
	defer t.Close()
	ek := template.EKs()[0]
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(ek.Public)}.Execute(t)
	if err != nil {
		return err
	}
	defer tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(t)
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return err
	}
	key, err := template.Key(pub)
	if err != nil {
		return err
	}
	cert, ca, err := EKCertificate(key)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})
	if err := os.WriteFile(filepath.Join(m.dir, "ek-ca.pem"), block, 0o600); err != nil {
		return err
	}
	return DefineNV(t, uint32(ek.Cert), cert, len(cert))
}

// EKCertificate issues a manufacturer's certificate for an EK's public key under a new CA.
func EKCertificate(key any) (cert, ca []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test TPM Manufacturer"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if ca, err = x509.CreateCertificate(rand.Reader, issuer, issuer, signer.Public(), signer); err != nil {
		return nil, nil, err
	}
	cert, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter,
		KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}, // tcg-kp-EKCertificate
	}, issuer, key, signer)
	return cert, ca, err
}

// DefineNV makes an index of size bytes as a manufacturer does, readable by anyone, and writes data at
// its start.
func DefineNV(t transport.TPM, index uint32, data []byte, size int) error {
	public := tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(size),
		Attributes: tpm2.TPMANV{
			PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true,
		},
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHPlatform, PublicInfo: tpm2.New2B(public)}.Execute(t)
	if err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHPlatform,
			NVIndex:    tpm2.NamedHandle{Handle: public.NVIndex, Name: tpm2.TPM2BName{Buffer: make([]byte, 34)}},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]},
			Offset:     uint16(offset),
		}.Execute(t)
		if err != nil {
			return err
		}
	}
	return nil
}

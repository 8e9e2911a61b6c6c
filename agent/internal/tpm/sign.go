package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"

	"github.com/google/go-tpm/tpm2"
)

// Sign signs a digest of SHA-256, SHA-384 or SHA-512 in the TPM (part 3, 20.2): an ASN.1 ECDSA
// signature, or for RSA PKCS #1 v1.5, or PSS with *rsa.PSSOptions and a salt as long as the hash. It
// uses none of the random source. It verifies the signature before returning it: the error is
// [ErrBadSignature] when the handle holds another key by now.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := k.scheme(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("sign: %v", err)
	}
	k.dev.signing.RLock()
	defer k.dev.signing.RUnlock()
	if k.dev.closed {
		return nil, fmt.Errorf("sign: %w", os.ErrClosed)
	}
	handle, err := k.loaded()
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Sign{
		KeyHandle:  authorized(handle),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   scheme,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.dev.tpm)
	if err != nil {
		return nil, failed("tpm2.Sign", 0, err)
	}
	signature, err := k.verified(&rsp.Signature, digest, opts)
	return signature, failed("tpm2.Sign", 0, err)
}

func (k *Key) scheme(digest []byte, opts crypto.SignerOpts) (tpm2.TPMTSigScheme, error) {
	algs := map[crypto.Hash]tpm2.TPMAlgID{
		crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
	}
	hash, ok := algs[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return tpm2.TPMTSigScheme{}, fmt.Errorf("not a digest of SHA-256, SHA-384 or SHA-512: %d bytes", len(digest))
	}
	pss, isPSS := opts.(*rsa.PSSOptions)
	_, isRSA := k.pub.(*rsa.PublicKey)
	alg := tpm2.TPMAlgECDSA
	switch {
	case isPSS && !isRSA:
		return tpm2.TPMTSigScheme{}, errors.New("PSS needs an RSA key")
	case isPSS && pss.SaltLength > 0 && pss.SaltLength != len(digest):
		return tpm2.TPMTSigScheme{}, errors.New("a TPM's PSS salt is as long as the hash")
	case isPSS:
		alg = tpm2.TPMAlgRSAPSS
	case isRSA:
		alg = tpm2.TPMAlgRSASSA
	}
	return tpm2.TPMTSigScheme{
		Scheme:  alg,
		Details: tpm2.NewTPMUSigScheme(alg, &tpm2.TPMSSchemeHash{HashAlg: hash}),
	}, nil
}

// verified returns the signature in the form that crypto.Signer promises, once it verifies. It also
// refuses a chip's PSS signature with another salt length, which no TLS 1.3 peer would take.
func (k *Key) verified(s *tpm2.TPMTSignature, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch pub := k.pub.(type) {
	case *ecdsa.PublicKey:
		return verifiedECDSA(pub, s, digest)
	case *rsa.PublicKey:
		return verifiedRSA(pub, s, digest, opts)
	}
	return nil, ErrBadSignature
}

func verifiedECDSA(pub *ecdsa.PublicKey, s *tpm2.TPMTSignature, digest []byte) ([]byte, error) {
	sig, err := s.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBadSignature, err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{bigInt(sig.SignatureR), bigInt(sig.SignatureS)})
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(pub, digest, der) {
		return nil, ErrBadSignature
	}
	return der, nil
}

func verifiedRSA(pub *rsa.PublicKey, s *tpm2.TPMTSignature, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss {
		sig, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrBadSignature, err)
		}
		strict := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: opts.HashFunc()}
		if rsa.VerifyPSS(pub, opts.HashFunc(), digest, sig.Sig.Buffer, strict) != nil {
			return nil, ErrBadSignature
		}
		return sig.Sig.Buffer, nil
	}
	sig, err := s.Signature.RSASSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBadSignature, err)
	}
	if rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, sig.Sig.Buffer) != nil {
		return nil, ErrBadSignature
	}
	return sig.Sig.Buffer, nil
}

func bigInt(b tpm2.TPM2BECCParameter) *big.Int { return new(big.Int).SetBytes(b.Buffer) }

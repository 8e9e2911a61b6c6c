package ekcert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // of signatures
	_ "crypto/sha512"
	"encoding/asn1"
	"errors"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidRSA       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidEC        = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// curves are those that TPMs and their makers use, by name. A curve that is spelt out in parameters is none of them:
// it could be any (CVE-2020-0601).
var curves = []struct {
	oid   asn1.ObjectIdentifier
	curve elliptic.Curve
}{
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256()},
	{asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384()},
	{asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521()},
}

var errKey = errors.New("its key cannot be read")

// readKey reads the content of a SubjectPublicKeyInfo.
func (c *Certificate) readKey(spki cryptobyte.String) error {
	var algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	var bits asn1.BitString
	if !spki.ReadASN1(&algorithm, tag.SEQUENCE) || !readOID(&algorithm, &oid) ||
		!spki.ReadASN1BitString(&bits) || !spki.Empty() {
		return errForm
	}
	var err error
	switch {
	case oid.Equal(oidRSA), oid.Equal(oidRSAESOAEP): // whatever the parameters, the key is the same
		c.Key, err = rsaKey(bits.RightAlign())
	case oid.Equal(oidEC):
		c.Key, err = ecKey(algorithm, bits.RightAlign())
	default:
		return errors.New("its key is of a kind that no TPM's is")
	}
	if err != nil {
		return err
	}
	return c.fingerprint()
}

// rsaKey takes the modulus for positive, also where its leading zero is missing.
func rsaKey(b []byte) (crypto.PublicKey, error) {
	s := cryptobyte.String(b)
	var content, n, e cryptobyte.String
	if !s.ReadASN1(&content, tag.SEQUENCE) || !s.Empty() || !content.ReadASN1(&n, tag.INTEGER) ||
		!content.ReadASN1(&e, tag.INTEGER) || !content.Empty() {
		return nil, errKey
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < 1024 || bits > 4096 || modulus.Bit(0) == 0 {
		return nil, errKey
	}
	if exponent.BitLen() > 31 || exponent.Int64() < 3 || exponent.Bit(0) == 0 {
		return nil, errKey
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func ecKey(parameters cryptobyte.String, point []byte) (crypto.PublicKey, error) {
	var named asn1.ObjectIdentifier
	if !readOID(&parameters, &named) || !parameters.Empty() {
		return nil, errKey
	}
	for _, c := range curves {
		if named.Equal(c.oid) {
			key, err := ecdsa.ParseUncompressedPublicKey(c.curve, point)
			if err != nil {
				return nil, errKey
			}
			return key, nil
		}
	}
	return nil, errKey
}

// algorithms are those of signatures that count. SHA-1 is none: two certificates can be made that share one.
var algorithms = []struct {
	oid  asn1.ObjectIdentifier
	rsa  bool
	hash crypto.Hash
}{
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true, crypto.SHA256},
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, true, crypto.SHA384},
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, true, crypto.SHA512},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false, crypto.SHA256},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false, crypto.SHA384},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, false, crypto.SHA512},
}

// minIssuer is the shortest RSA key whose signature counts, in bits.
const minIssuer = 2048

// SignedBy verifies c's signature with issuer's key, and nothing else.
func (c *Certificate) SignedBy(issuer *Certificate) error {
	for _, a := range algorithms {
		if !a.oid.Equal(c.algorithm) {
			continue
		}
		h := a.hash.New()
		h.Write(c.tbs)
		digest := h.Sum(nil)
		switch key := issuer.Key.(type) {
		case *rsa.PublicKey:
			if a.rsa && key.N.BitLen() >= minIssuer && rsa.VerifyPKCS1v15(key, a.hash, digest, c.signature) == nil {
				return nil
			}
		case *ecdsa.PublicKey:
			if !a.rsa && ecdsa.VerifyASN1(key, digest, c.signature) {
				return nil
			}
		}
		return errors.New("its signature is wrong")
	}
	return errors.New("it is signed with an algorithm that does not count (" + c.algorithm.String() + ")")
}

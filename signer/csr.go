package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
)

// csr is a certificate signing request of a stranger. Nothing in it is kept but its key (I4).
type csr struct {
	key         crypto.PublicKey
	fingerprint string // SHA-256 of the SPKI, lower-case hex
	request     *x509.CertificateRequest
}

// parseCSR reads base64 of a PKCS#10 request (RFC 7030, 4.2.1; RFC 8951, 3.2), in lines or in one. It checks form and
// kind of the key, and leaves what costs public-key work to check. Errors may be told to anybody.
func parseCSR(body []byte) (*csr, error) {
	text := bytes.Join(bytes.Fields(body), nil)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(der, text)
	if err != nil || n == 0 {
		return nil, errors.New("the body is not a PKCS#10 request in base64")
	}
	request, err := x509.ParseCertificateRequest(der[:n])
	if err != nil {
		return nil, errors.New("the body is not a PKCS#10 request")
	}
	if err := checkKeyKind(request.PublicKey); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(request.PublicKey)
	if err != nil {
		return nil, errors.New("the key cannot be written down")
	}
	sum := sha256.Sum256(spki)
	return &csr{request.PublicKey, hex.EncodeToString(sum[:]), request}, nil
}

// check says whether whoever made the request has its key, and whether that is worth something.
func (c *csr) check() error {
	if err := c.request.CheckSignature(); err != nil {
		return errors.New("the request is not signed with its key")
	}
	if key, ok := c.key.(*rsa.PublicKey); ok && weakModulus(key.N) {
		return errors.New("the key is weak: its modulus can be factored")
	}
	return nil
}

func checkKeyKind(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("an ECDSA key is of P-256 or P-384, not of %s", key.Curve.Params().Name)
	case *rsa.PublicKey:
		if key.E == 65537 && key.N.BitLen() >= 2048 && key.N.BitLen() <= 4096 {
			return nil
		}
		return fmt.Errorf("an RSA key has 2048 to 4096 bits and the exponent 65537, not %d bits and %d", key.N.BitLen(), key.E)
	}
	return errors.New("the key is neither ECDSA nor RSA")
}

// weakModulus finds the moduli that broken generators make: with a small factor, or with two primes that are close
// to each other, which Fermat's method finds.
func weakModulus(n *big.Int) bool {
	rest := new(big.Int)
	for p := int64(2); p < 1<<10; p++ {
		if rest.Mod(n, big.NewInt(p)).Sign() == 0 {
			return true
		}
	}
	a := new(big.Int).Sqrt(n)
	for range 100 {
		if b2 := rest.Sub(rest.Mul(a, a), n); b2.Sign() >= 0 {
			if b := new(big.Int).Sqrt(b2); new(big.Int).Mul(b, b).Cmp(b2) == 0 {
				return true
			}
		}
		a.Add(a, big.NewInt(1))
	}
	return false
}

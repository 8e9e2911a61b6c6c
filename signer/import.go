package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrImport: a CA that was made elsewhere cannot be this cluster's.
var ErrImport = errors.New("cannot use this CA")

// Imported is a CA that was made elsewhere, checked.
type Imported struct{ *authority }

// Import reads a CA: a root, or an intermediate with those above it behind it, up to the root, PEM; and its private
// key, PEM, as PKCS#8, PKCS#1 or SEC 1. passphrase decrypts it, where it is encrypted (PKCS#8). Errors: ErrImport,
// ErrNoPassphrase, ErrPassphrase.
func Import(certs, key []byte, passphrase Passphrase, now time.Time) (*Imported, error) {
	chain, err := readChain(certs)
	if err != nil {
		return nil, err
	}
	a := &authority{cert: chain[0], chain: chain[1:], role: roleActive, since: now.UTC(), crl: &published{}}
	if a.key, err = readForeignKey(key, passphrase); err != nil {
		return nil, err
	}
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrImport, err)
	}
	return &Imported{a}, a.usable(now)
}

// readChain finds the way from the first certificate up to a root, among what may come in any order behind it.
func readChain(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate: %v", ErrImport, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 || len(all) > maxChain {
		return nil, fmt.Errorf("%w: %d certificates (PEM) are in the file, not 1 to %d", ErrImport, len(all), maxChain)
	}
	chain := wayUp(all[:1], all[1:])
	if chain == nil {
		return nil, fmt.Errorf("%w: the issuer of %q is missing: nodes pin the root, so that the file must lead up to it", ErrImport, all[0].Subject)
	}
	return chain, nil
}

const maxChain = 8 // certificates; each goes along in every handshake

// wayUp is chain with what leads from its last to a root; nil where nothing does.
func wayUp(chain, others []*x509.Certificate) []*x509.Certificate {
	last := chain[len(chain)-1]
	if isRoot(last) {
		return chain
	}
	for i, above := range others {
		if !bytes.Equal(above.RawSubject, last.RawIssuer) || last.CheckSignatureFrom(above) != nil {
			continue
		}
		rest := slices.Concat(others[:i], others[i+1:])
		if found := wayUp(slices.Concat(chain, []*x509.Certificate{above}), rest); found != nil {
			return found
		}
	}
	return nil
}

func isRoot(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// readForeignKey reads what OpenSSL, or xCAT with it, wrote.
func readForeignKey(text []byte, passphrase Passphrase) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam puts the curve before the key
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("%w: the key is not PEM", ErrImport)
	}
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return parseKey(text, passphrase)
	}
	if err != nil || block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: the key cannot be read; 'openssl pkcs8 -topk8' makes a form of it that can", ErrImport)
	}
	return key.(crypto.Signer), nil
}

// usable says whether a may sign certificates and CRLs that all judges take.
func (a *authority) usable(now time.Time) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrImport, fmt.Sprintf(format, args...))
	}
	for _, c := range append([]*x509.Certificate{a.cert}, a.chain...) {
		switch {
		case !c.IsCA || !c.BasicConstraintsValid:
			return refuse("%q is no CA certificate", c.Subject)
		case now.After(c.NotAfter) || now.Before(c.NotBefore):
			return refuse("%q is valid from %s to %s", c.Subject, day(c.NotBefore), day(c.NotAfter))
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return refuse("%q may not sign certificates (its key usage)", c.Subject)
		}
	}
	if a.cert.KeyUsage != 0 && a.cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return refuse("%q may not sign CRLs (its key usage)", a.cert.Subject)
	}
	switch pub := a.cert.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < 2048 || n > 8192 {
			return refuse("its RSA key has %d bits, not 2048 to 8192", n)
		}
	case *ecdsa.PublicKey:
		if pub.Curve == elliptic.P224() {
			return refuse("its key is on the curve P-224")
		}
	default:
		return refuse("its key is neither RSA nor ECDSA")
	}
	if err := a.sample(a.root(), append(a.chain[:len(a.chain):len(a.chain)], a.cert), now); err != nil {
		return refuse("what it signs for nodes and heads would not verify: %v", err)
	}
	return nil
}

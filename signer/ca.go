package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"
)

// Lives of what the authority signs. Everything is backdated, because nodes boot with bad clocks.
const (
	caLife   = 20 * 365 * 24 * time.Hour
	nodeLife = 90 * 24 * time.Hour
	headLife = 7 * 24 * time.Hour // short: a stolen head key works against a node with a dead clock
	crlLife  = 7 * 24 * time.Hour
	backdate = time.Hour
)

// authority is a CA certificate with its key.
type authority struct {
	cert        *x509.Certificate
	chain       []*x509.Certificate // of an intermediate: those above it, the root last
	key         crypto.Signer       // nil: it signs nothing any more
	keyFile     string              // below ca/
	gone        bool                // with its key
	role        role
	since       time.Time // of the role
	cross, back []byte    // see caMember
	crl         *published
	responder   *atomic.Pointer[responder] // of OCSP, through all roles; holds nil: none yet
}

// published is the newest CRL of a CA, which it keeps through all its roles.
type published struct {
	list   atomic.Pointer[x509.RevocationList] // nil: none yet
	number int64                               // if this process made it; under Head.publishing
}

// as is the same CA in another role.
func (a *authority) as(to role, now time.Time) *authority {
	other := *a
	other.role, other.since = to, now.UTC()
	return &other
}

// newAuthority makes a root CA: ECDSA P-256, 20 years. Its subject carries part of its key's
// identifier, since OpenSSL and GnuTLS mistake one for the other when two CAs of a bundle have the
// same subject.
func newAuthority(cluster string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ski, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	tmpl := caTemplate(pkix.Name{
		Organization: []string{cluster},
		CommonName:   fmt.Sprintf("%.52s CA %x", cluster, ski[:4]), // ub-common-name is 64
	}, ski, now.Add(-backdate), now.Add(caLife))
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, role: roleActive, since: now.UTC(), crl: &published{}, responder: new(atomic.Pointer[responder])}, nil
}

func caTemplate(subject pkix.Name, ski []byte, from, to time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerial(), Subject: subject, SubjectKeyId: ski,
		NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// certifyNext makes a cross-certificate: the name and key of a's successor under a's name. Who trusts a so trusts
// the successor, as long as both would be trusted anyway.
func (a *authority) certifyNext(next *authority) ([]byte, error) {
	tmpl := caTemplate(pkix.Name{}, next.cert.SubjectKeyId, later(a.cert.NotBefore, next.cert.NotBefore), earlier(a.cert.NotAfter, next.cert.NotAfter))
	tmpl.RawSubject = next.cert.RawSubject
	return x509.CreateCertificate(rand.Reader, tmpl, a.cert, next.cert.PublicKey, a.key)
}

// certifyBefore makes the other cross-certificate, for who trusts a alone: it is good until all that the CA before a
// signed is over, and for no other CA below that one. Whoever gets hold of the old key gains as little as can be.
func (a *authority) certifyBefore(old *authority, until time.Time) ([]byte, error) {
	tmpl := caTemplate(pkix.Name{}, old.cert.SubjectKeyId, later(a.cert.NotBefore, old.cert.NotBefore), earlier(until, earlier(a.cert.NotAfter, old.cert.NotAfter)))
	tmpl.RawSubject = old.cert.RawSubject
	tmpl.MaxPathLenZero = true
	return x509.CreateCertificate(rand.Reader, tmpl, a.cert, old.cert.PublicKey, a.key)
}

// complete gives a certificate that was made elsewhere what it may lack: a key identifier, as it would have had it
// from us, which what it signs then names; and a key usage, which without one is any.
func (a *authority) complete() (err error) {
	if a.cert.KeyUsage == 0 {
		a.cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if len(a.cert.SubjectKeyId) == 0 {
		a.cert.SubjectKeyId, err = keyID(a.cert.PublicKey)
	}
	if err == nil && len(a.cert.SubjectKeyId) < 8 {
		err = errors.New("CA certificate: its subject key identifier has fewer than 8 bytes")
	}
	return err
}

// root is what nodes trust: the CA itself, or the one at the end of its chain.
func (a *authority) root() *x509.Certificate {
	if n := len(a.chain); n > 0 {
		return a.chain[n-1]
	}
	return a.cert
}

// check says whether key and certificate belong together.
func (a *authority) check() error {
	if err := a.complete(); err != nil {
		return err
	}
	pub, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(a.cert.PublicKey) {
		return errors.New("CA key: not the key of the CA certificate")
	}
	return nil
}

// id names the authority in the path of its CRL: the first 16 hex digits of its SKI.
func (a *authority) id() string { return hex.EncodeToString(a.cert.SubjectKeyId)[:16] }

// pin is what nodes trust: the SHA-256 of the root's SPKI.
func (a *authority) pin() string {
	sum := sha256.Sum256(a.root().RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// sign completes tmpl with what every certificate has and signs it. crypto/x509 verifies the
// signature again before it returns: a faulty ECDSA signature could betray the CA's key.
func (a *authority) sign(tmpl *x509.Certificate, pub crypto.PublicKey, life time.Duration, now time.Time) ([]byte, error) {
	if now.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the CA expired on %s", a.cert.NotAfter.Format(time.DateOnly))
	}
	ski, err := keyID(pub)
	if err != nil {
		return nil, err
	}
	tmpl.SubjectKeyId = ski
	tmpl.SerialNumber = newSerial()
	tmpl.BasicConstraintsValid = true
	tmpl.NotBefore = later(now.Add(-backdate), a.cert.NotBefore)
	tmpl.NotAfter = now.Add(life)
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
}

// aged says that two thirds of the life of a head's own certificate, by a, are over. So they are of one that is not
// good yet, which a clock that was ahead has made, unless the next one would not be either.
func (a *authority) aged(cert *x509.Certificate, now time.Time) bool {
	early := now.Before(cert.NotBefore) && a.cert.NotBefore.Before(cert.NotBefore)
	return early || now.After(cert.NotBefore.Add(headLife*2/3))
}

// keyID is a subject key identifier by RFC 7093, method 1: the first 160 bits of the SHA-256 of the
// subjectPublicKey.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	bits, err := keyBits(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

// keyBits are the content of the BIT STRING subjectPublicKey.
func keyBits(pub crypto.PublicKey) ([]byte, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return pub.Bytes()
	case *rsa.PublicKey:
		return x509.MarshalPKCS1PublicKey(pub), nil
	}
	return nil, fmt.Errorf("a key of type %T is neither ECDSA nor RSA", pub)
}

// newSerial draws 128 random bits (RFC 5280, 4.1.2.2 asks for a positive number of at most 20 octets).
func newSerial() *big.Int {
	b := make([]byte, 16)
	for {
		rand.Read(b) // never fails (Go 1.24)
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n
		}
	}
}

func serialHex(n *big.Int) string { return fmt.Sprintf("%032x", n) }

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

package testtpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// Cert is a certificate as a maker of TPMs may write it, byte for byte: crypto/x509 writes none of the quirks that
// chips carry. The zero value of a field is what is usual.
type Cert struct {
	Serial              []byte    // content of the INTEGER
	Issuer, Subject     string    // common names; an empty subject has none
	NameType            tag.Tag   // of the subject's
	NotBefore, NotAfter time.Time // 2020 to 9999-12-31T23:59:59Z
	Key                 crypto.PublicKey
	SPKI                []byte // DER, in place of Key's
	Extensions          []Extension
	Algorithm           asn1.ObjectIdentifier // of the signature; it is ECDSA with SHA-256 whatever this says
}

// Extension is one of a Cert.
type Extension struct {
	OID      asn1.ObjectIdentifier
	Critical byte   // the content of the BOOLEAN; 0: it is left out
	Value    []byte // DER
}

// Object identifiers of extensions and key usages.
var (
	OIDSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	OIDBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	OIDKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	OIDExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	OIDEKCertificate    = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidECDSA            = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// EKExtensions are those of an EK's certificate: a critical alternative name that is a directoryName alone (TCG EK
// Credential Profile, 3.2.9), and its purpose.
func EKExtensions() []Extension {
	return []Extension{
		{OIDSubjectAltName, 0xFF, directoryName("id:4D555354")},
		{OIDBasicConstraints, 0xFF, BasicConstraints(false, -1)},
		{OIDKeyUsage, 0xFF, []byte{3, 2, 3, 8}}, // keyAgreement
		{OIDExtKeyUsage, 0, ExtKeyUsage(OIDEKCertificate)},
	}
}

// CAExtensions are those of a certificate authority; a pathLen below 0 is left out.
func CAExtensions(pathLen int) []Extension {
	return []Extension{
		{OIDBasicConstraints, 0xFF, BasicConstraints(true, pathLen)},
		{OIDKeyUsage, 0xFF, []byte{3, 2, 2, 4}}, // keyCertSign
	}
}

// BasicConstraints is the value of that extension.
func BasicConstraints(ca bool, pathLen int) []byte {
	return built(func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			if ca {
				b.AddASN1Boolean(true)
			}
			if pathLen >= 0 {
				b.AddASN1Int64(int64(pathLen))
			}
		})
	})
}

// ExtKeyUsage is the value of that extension.
func ExtKeyUsage(usages ...asn1.ObjectIdentifier) []byte {
	return built(func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, usage := range usages {
				b.AddASN1ObjectIdentifier(usage)
			}
		})
	})
}

func directoryName(cn string) []byte {
	return built(func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tag.Tag(4).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { addName(b, cn, tag.UTF8String) })
		})
	})
}

// Sign makes the certificate, DER.
func (c Cert) Sign(by *ecdsa.PrivateKey) []byte {
	if c.Algorithm == nil {
		c.Algorithm = oidECDSA
	}
	tbs := built(c.addSigned)
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, by, digest[:])
	if err != nil {
		panic(err)
	}
	return built(func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			addAlgorithm(b, c.Algorithm)
			b.AddASN1BitString(signature)
		})
	})
}

func (c Cert) addSigned(b *cryptobyte.Builder) {
	if c.Serial == nil {
		c.Serial = []byte{1}
	}
	if c.NameType == 0 {
		c.NameType = tag.UTF8String
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	if c.SPKI == nil {
		spki, err := x509.MarshalPKIXPublicKey(c.Key)
		if err != nil {
			panic(err)
		}
		c.SPKI = spki
	}
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
		b.AddASN1(tag.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(c.Serial) })
		addAlgorithm(b, c.Algorithm)
		addName(b, c.Issuer, tag.UTF8String)
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1UTCTime(c.NotBefore)
			b.AddASN1GeneralizedTime(c.NotAfter)
		})
		addName(b, c.Subject, c.NameType)
		b.AddBytes(c.SPKI)
		b.AddASN1(tag.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, e := range c.Extensions {
					e.add(b)
				}
			})
		})
	})
}

func (e Extension) add(b *cryptobyte.Builder) {
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(e.OID)
		if e.Critical != 0 {
			b.AddASN1(tag.BOOLEAN, func(b *cryptobyte.Builder) { b.AddUint8(e.Critical) })
		}
		b.AddASN1OctetString(e.Value)
	})
}

func addName(b *cryptobyte.Builder, cn string, kind tag.Tag) {
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		if cn == "" {
			return
		}
		b.AddASN1(tag.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidCommonName)
				b.AddASN1(kind, func(b *cryptobyte.Builder) { b.AddBytes([]byte(cn)) })
			})
		})
	})
}

func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
}

func built(add func(*cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	add(&b)
	return b.BytesOrPanic()
}

// Maker is a maker of TPMs: a root, and a CA below it that certifies EKs.
type Maker struct {
	Root, Issuer []byte // DER

	name         string
	root, issuer *ecdsa.PrivateKey
}

// NewMaker makes one under names of its own.
func NewMaker(name string) *Maker {
	m := &Maker{name: name, root: newKey(), issuer: newKey()}
	m.Root = Cert{Issuer: name + " Root", Subject: name + " Root", Key: m.root.Public(), Extensions: CAExtensions(-1)}.Sign(m.root)
	m.Issuer = m.SignCA(Cert{Subject: name + " CA", Key: m.issuer.Public(), Extensions: CAExtensions(0)})
	return m
}

// SignCA signs with the root's key.
func (m *Maker) SignCA(c Cert) []byte {
	c.Issuer = m.name + " Root"
	return c.Sign(m.root)
}

// SignEK signs with the key of the CA below the root.
func (m *Maker) SignEK(c Cert) []byte {
	c.Issuer = m.name + " CA"
	return c.Sign(m.issuer)
}

// Certify makes an EK's certificate.
func (m *Maker) Certify(key crypto.PublicKey) []byte {
	return m.SignEK(Cert{Key: key, Extensions: EKExtensions()})
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// Package ekcert reads X.509 certificates as the makers of TPMs write them.
//
// It holds one invariant: a [Certificate] says what the signed bytes say, and nothing of them that bears on trust is
// skipped. It reads what chips have been seen to carry and crypto/x509 refuses: serial numbers that are negative, too
// long or not of the shortest form, an RSA key that is declared for OAEP (id-RSAES-OAEP) or without parameters, a
// modulus without its leading zero, names with characters that their string type forbids, a TRUE that is not 0xFF. It
// trusts nobody: package ekroots decides what a certificate proves.
//
// Sources: RFC 5280, 4.1 and 4.2; TCG EK Credential Profile for TPM Family 2.0, 3.2.
package ekcert

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// Certificate is what bears on trust.
type Certificate struct {
	Raw                 []byte // DER, as it came
	Subject, Issuer     []byte // DER of the names
	NotBefore, NotAfter time.Time
	Key                 crypto.PublicKey  // *ecdsa.PublicKey or *rsa.PublicKey
	Fingerprint         [sha256.Size]byte // SHA-256 of Key's SPKI, as crypto/x509 writes that
	IsCA                bool
	PathLen             int // CAs that may stand between this one and the end of a chain; -1: any number
	MaySign             bool
	ExtKeyUsage         []asn1.ObjectIdentifier // nil: without the extension
	Unknown             []asn1.ObjectIdentifier // critical extensions that are none of those above

	tbs       []byte // what is signed
	algorithm asn1.ObjectIdentifier
	signature []byte
}

var (
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidPolicies         = asn1.ObjectIdentifier{2, 5, 29, 32}
)

var errForm = errors.New("not of the form of a certificate")

// Trim finds the certificate in what a maker wrote into NV: possibly behind the TCG's header for stored certificates
// (TCG PC Client Specific Implementation 1.21, 7.4.3), possibly followed by padding.
func Trim(b []byte) ([]byte, error) {
	// Tag 0x1001, type full (0), length, tag 0x1002: Intel and Infineon have been seen to keep it.
	if len(b) > 7 && bytes.HasPrefix(b, []byte{0x10, 0x01, 0x00}) && bytes.Equal(b[5:7], []byte{0x10, 0x02}) {
		b = b[7:]
	}
	size, err := sequenceSize(b)
	if err != nil {
		return nil, err
	}
	return b[:size:size], nil
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
		return 0, errors.New("not a DER sequence")
	}
	if size > len(b) {
		return 0, errors.New("cut short")
	}
	return size, nil
}

// Parse reads the certificate that b begins with, as Trim finds it. On error the certificate is nil.
func Parse(b []byte) (*Certificate, error) {
	der, err := Trim(b)
	if err != nil {
		return nil, err
	}
	c := &Certificate{Raw: bytes.Clone(der), PathLen: -1, MaySign: true}
	outer := cryptobyte.String(c.Raw)
	var all, tbs, inside cryptobyte.String
	var signature asn1.BitString
	if !outer.ReadASN1(&all, tag.SEQUENCE) || !outer.Empty() || !all.ReadASN1Element(&tbs, tag.SEQUENCE) {
		return nil, errForm
	}
	c.tbs = tbs
	if !readAlgorithm(&all, &c.algorithm) || !all.ReadASN1BitString(&signature) || !all.Empty() || !tbs.ReadASN1(&inside, tag.SEQUENCE) {
		return nil, errForm
	}
	c.signature = signature.RightAlign()
	if err := c.readSigned(inside); err != nil {
		return nil, err
	}
	return c, nil
}

// readSigned reads a TBSCertificate (RFC 5280, 4.1.2).
func (c *Certificate) readSigned(s cryptobyte.String) error {
	var serial, issuer, validity, subject, spki cryptobyte.String
	var algorithm asn1.ObjectIdentifier
	version := tag.Tag(0).Constructed().ContextSpecific()
	if !s.SkipOptionalASN1(version) || !s.ReadASN1(&serial, tag.INTEGER) || len(serial) == 0 ||
		!readAlgorithm(&s, &algorithm) || !algorithm.Equal(c.algorithm) ||
		!s.ReadASN1Element(&issuer, tag.SEQUENCE) || !s.ReadASN1(&validity, tag.SEQUENCE) ||
		!s.ReadASN1Element(&subject, tag.SEQUENCE) || !s.ReadASN1(&spki, tag.SEQUENCE) {
		return errForm
	}
	c.Issuer, c.Subject = issuer, subject
	if !readTime(&validity, &c.NotBefore) || !readTime(&validity, &c.NotAfter) || !validity.Empty() {
		return errForm
	}
	if err := c.readKey(spki); err != nil {
		return err
	}
	for _, unique := range []uint8{1, 2} { // of issuer and subject, which nobody uses
		if !s.SkipOptionalASN1(tag.Tag(unique).ContextSpecific()) {
			return errForm
		}
	}
	var extensions, list cryptobyte.String
	var has bool
	if !s.ReadOptionalASN1(&extensions, &has, tag.Tag(3).Constructed().ContextSpecific()) || !s.Empty() {
		return errForm
	}
	if !has {
		return nil
	}
	if !extensions.ReadASN1(&list, tag.SEQUENCE) || !extensions.Empty() {
		return errForm
	}
	return c.readExtensions(list)
}

func readAlgorithm(s *cryptobyte.String, oid *asn1.ObjectIdentifier) bool {
	var algorithm cryptobyte.String
	return s.ReadASN1(&algorithm, tag.SEQUENCE) && readOID(&algorithm, oid)
}

// maxArcs bounds an object identifier. Those in use have a dozen; one is printed where it is not understood.
const maxArcs = 32

func readOID(s *cryptobyte.String, oid *asn1.ObjectIdentifier) bool {
	return s.ReadASN1ObjectIdentifier(oid) && len(*oid) <= maxArcs
}

func readTime(s *cryptobyte.String, t *time.Time) bool {
	if s.PeekASN1Tag(tag.UTCTime) {
		return s.ReadASN1UTCTime(t)
	}
	return s.ReadASN1GeneralizedTime(t)
}

// readExtensions refuses one that comes twice: readers would differ on which of the two counts.
func (c *Certificate) readExtensions(list cryptobyte.String) error {
	seen := map[string]bool{}
	for !list.Empty() {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if !list.ReadASN1(&extension, tag.SEQUENCE) || !readOID(&extension, &oid) ||
			!readBool(&extension, &critical) || !extension.ReadASN1(&value, tag.OCTET_STRING) || !extension.Empty() {
			return errForm
		}
		if seen[oid.String()] {
			return fmt.Errorf("extension %v twice", oid)
		}
		seen[oid.String()] = true
		if !c.readExtension(oid, value, critical) {
			return fmt.Errorf("extension %v cannot be read", oid)
		}
	}
	return nil
}

func (c *Certificate) readExtension(oid asn1.ObjectIdentifier, value cryptobyte.String, critical bool) bool {
	var content cryptobyte.String
	switch {
	case oid.Equal(oidBasicConstraints):
		if !value.ReadASN1(&content, tag.SEQUENCE) || !value.Empty() || !readBool(&content, &c.IsCA) {
			return false
		}
		if !content.Empty() && (!content.ReadASN1Integer(&c.PathLen) || c.PathLen < 0) {
			return false
		}
		return content.Empty()
	case oid.Equal(oidKeyUsage):
		var bits asn1.BitString
		ok := value.ReadASN1BitString(&bits) && value.Empty()
		c.MaySign = bits.At(5) == 1 // keyCertSign
		return ok
	case oid.Equal(oidExtKeyUsage):
		if !value.ReadASN1(&content, tag.SEQUENCE) || !value.Empty() {
			return false
		}
		c.ExtKeyUsage = []asn1.ObjectIdentifier{}
		for !content.Empty() {
			var usage asn1.ObjectIdentifier
			if !readOID(&content, &usage) {
				return false
			}
			c.ExtKeyUsage = append(c.ExtKeyUsage, usage)
		}
	case critical && !oid.Equal(oidSubjectAltName) && !oid.Equal(oidPolicies):
		// The alternative name tells maker and model (TCG EK Credential Profile, 3.2.9), and no policy is asked for.
		c.Unknown = append(c.Unknown, oid)
	}
	return true
}

// readBool reads a BOOLEAN DEFAULT FALSE.
func readBool(s *cryptobyte.String, v *bool) bool {
	*v = false
	if !s.PeekASN1Tag(tag.BOOLEAN) {
		return true
	}
	var content cryptobyte.String
	if !s.ReadASN1(&content, tag.BOOLEAN) || len(content) != 1 {
		return false
	}
	*v = content[0] != 0
	return true
}

func (c *Certificate) fingerprint() error {
	spki, err := x509.MarshalPKIXPublicKey(c.Key)
	if err == nil {
		c.Fingerprint = sha256.Sum256(spki)
	}
	return err
}

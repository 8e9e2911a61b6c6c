package ekcert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"testing"

	tag "golang.org/x/crypto/cryptobyte/asn1"

	"muster/internal/testtpm"
)

var update = flag.Bool("update", false, "make the certificates in testdata/tpm anew")

const fixtures = "../../testdata/tpm"

// fixture is a certificate with one quirk.
type fixture struct {
	name string
	rsa  bool // the EK is RSA-2048; else ECC P-256
	// std says that crypto/x509 reads it. Where that changes, this package may have one tolerance less.
	std  bool
	make func(c *testtpm.Cert, key crypto.PublicKey)
	wrap func([]byte) []byte // what NV holds around it
}

// good are what chips carry.
var good = []fixture{
	{name: "plain", std: true},
	{name: "critical-san", std: true}, // that x509.Verify refuses
	{name: "padding-ff", std: true, wrap: func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xFF}, 512)...) }},
	{name: "padding-00", std: true, wrap: func(b []byte) []byte { return append(b, make([]byte, 512)...) }},
	{name: "tcg-header", std: true, wrap: func(b []byte) []byte {
		header := binary.BigEndian.AppendUint16([]byte{0x10, 0x01, 0x00}, uint16(len(b)+2))
		return append(append(header, 0x10, 0x02), b...)
	}},
	{name: "rsa", rsa: true, std: true},
	{name: "rsa-oaep", rsa: true, std: true, make: func(c *testtpm.Cert, key crypto.PublicKey) {
		c.SPKI = spki(oidRSAESOAEP, []byte{0x30, 0x00}, x509.MarshalPKCS1PublicKey(key.(*rsa.PublicKey)))
	}},
	{name: "rsa-without-parameters", rsa: true, make: func(c *testtpm.Cert, key crypto.PublicKey) {
		c.SPKI = spki(oidRSA, nil, x509.MarshalPKCS1PublicKey(key.(*rsa.PublicKey)))
	}},
	{name: "rsa-modulus-without-zero", rsa: true, make: func(c *testtpm.Cert, key crypto.PublicKey) {
		k := key.(*rsa.PublicKey)
		n := append([]byte{0x02, 0x82, 0x01, 0x00}, k.N.Bytes()...)
		inside := append(n, 0x02, 0x03, 0x01, 0x00, 0x01)
		c.SPKI = spki(oidRSA, asn1.NullBytes, append([]byte{0x30, 0x82, byte(len(inside) >> 8), byte(len(inside))}, inside...))
	}},
	{name: "serial-negative", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Serial = []byte{0x9C, 0x01, 0x02} }},
	{name: "serial-with-zeros", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Serial = append(make([]byte, 4), 0x11, 0x22) }},
	{name: "serial-long", std: true, make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Serial = bytes.Repeat([]byte{0x5A}, 32) }},
	{name: "name-of-wrong-characters", make: func(c *testtpm.Cert, _ crypto.PublicKey) {
		c.Subject, c.NameType = "id:4D555354_@v1", tag.PrintableString
	}},
	{name: "true-is-1", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Extensions[0].Critical = 1 }},
}

// bad are what only a forger, or somebody else's CA, would send.
var bad = []fixture{
	{name: "wrong-usage", make: func(c *testtpm.Cert, _ crypto.PublicKey) {
		c.Extensions[3].Value = testtpm.ExtKeyUsage(asn1.ObjectIdentifier{2, 23, 133, 8, 3}) // tcg-kp-AIKCertificate
	}},
	{name: "no-usage", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Extensions = c.Extensions[:3] }},
	{name: "is-a-ca", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Extensions[1].Value = testtpm.BasicConstraints(true, -1) }},
	{name: "unknown-critical", make: func(c *testtpm.Cert, _ crypto.PublicKey) {
		c.Extensions = append(c.Extensions, testtpm.Extension{OID: asn1.ObjectIdentifier{2, 5, 29, 30}, Critical: 0xFF, Value: []byte{0x30, 0}})
	}},
	{name: "usage-twice", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Extensions = append(c.Extensions, c.Extensions[3]) }},
	{name: "curve-spelt-out", make: func(c *testtpm.Cert, key crypto.PublicKey) {
		point, err := key.(*ecdsa.PublicKey).Bytes()
		if err != nil {
			panic(err)
		}
		c.SPKI = spki(oidEC, []byte{0x30, 0x03, 0x02, 0x01, 0x01}, point)
	}},
	{name: "sha1", make: func(c *testtpm.Cert, _ crypto.PublicKey) { c.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1} }},
}

// spki is a SubjectPublicKeyInfo with whatever parameters.
func spki(oid asn1.ObjectIdentifier, parameters, key []byte) []byte {
	der, err := asn1.Marshal(struct {
		Algorithm struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Key asn1.BitString
	}{
		struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}{oid, asn1.RawValue{FullBytes: parameters}},
		asn1.BitString{Bytes: key, BitLength: 8 * len(key)},
	})
	if err != nil {
		panic(err)
	}
	return der
}

func fixturePath(name string) string { return filepath.Join(fixtures, name) }

// TestMakeFixtures writes them with -update: a maker's root and CA, two EKs, and for each quirk a certificate. All
// private keys are thrown away.
func TestMakeFixtures(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	maker := testtpm.NewMaker("Fixture")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := &private.PublicKey
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(fixturePath(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	writePEM := func(name, kind string, der []byte) {
		write(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	writePEM("root.pem", "CERTIFICATE", maker.Root)
	write("issuer.der", maker.Issuer)
	for name, key := range map[string]crypto.PublicKey{"ek-p256.pem": ec.Public(), "ek-rsa.pem": rsaKey} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(name, "PUBLIC KEY", der)
	}
	for kind, list := range map[string][]fixture{"good-": good, "bad-": bad} {
		for _, f := range list {
			var key crypto.PublicKey = ec.Public()
			if f.rsa {
				key = rsaKey
			}
			c := testtpm.Cert{Key: key, Extensions: testtpm.EKExtensions()}
			if f.name == "plain" {
				c.Extensions = c.Extensions[1:]
			}
			if f.make != nil {
				f.make(&c, key)
			}
			der := maker.SignEK(c)
			if f.wrap != nil {
				der = f.wrap(der)
			}
			write(kind+f.name+".bin", der)
		}
	}
}

func fixtureKey(t *testing.T, name string) crypto.PublicKey {
	t.Helper()
	b, err := os.ReadFile(fixturePath(name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

package ekcert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"os"
	"slices"
	"testing"

	"muster/internal/testtpm"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fixturePath(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func same(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// TestFixtures reads what chips carry, and what crypto/x509 makes of the same bytes.
func TestFixtures(t *testing.T) {
	issuer, err := Parse(read(t, "issuer.der"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range good {
		t.Run(f.name, func(t *testing.T) {
			want := fixtureKey(t, "ek-p256.pem")
			if f.rsa {
				want = fixtureKey(t, "ek-rsa.pem")
			}
			c, err := Parse(read(t, "good-"+f.name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			if !same(want, c.Key) || c.IsCA || c.NotAfter.Year() != 9999 {
				t.Errorf("%+v", c)
			}
			if err := c.SignedBy(issuer); err != nil {
				t.Error(err)
			}
			_, err = x509.ParseCertificate(c.Raw)
			if (err == nil) != f.std {
				t.Errorf("crypto/x509 says %v", err)
			}
		})
	}
}

// TestRefused: bytes that no reader should take for a certificate.
func TestRefused(t *testing.T) {
	plain := read(t, "good-plain.bin")
	for name, b := range map[string][]byte{
		"nothing": nil, "one byte": {0x30}, "cut short": plain[:len(plain)-1], "erased NV": bytes.Repeat([]byte{0xFF}, 900),
		"an extension twice": read(t, "bad-usage-twice.bin"), "a curve of one's own": read(t, "bad-curve-spelt-out.bin"),
	} {
		if c, err := Parse(b); err == nil || c != nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestLongOID: an object identifier is short, wherever it stands, since it may be printed.
func TestLongOID(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with := func(oid asn1.ObjectIdentifier) []byte {
		unknown := testtpm.Extension{OID: oid, Critical: 0xFF, Value: []byte{5, 0}}
		return testtpm.Cert{Issuer: "x", Key: key.Public(), Extensions: append(testtpm.EKExtensions(), unknown)}.Sign(key)
	}
	oid := append(asn1.ObjectIdentifier{1, 3}, slices.Repeat([]int{127}, maxArcs-2)...)
	if c, err := Parse(with(oid)); err != nil || !slices.ContainsFunc(c.Unknown, oid.Equal) {
		t.Errorf("%d arcs: %v", len(oid), err)
	}
	if c, err := Parse(with(append(oid, 127))); err == nil || c != nil || len(err.Error()) > 100 {
		t.Errorf("%d arcs: %v", len(oid)+1, err)
	}
}

// TestSignatureOfAnother: a signature is good for one issuer, and for these bytes.
func TestSignatureOfAnother(t *testing.T) {
	parsed := func(name string) *Certificate {
		c, err := Parse(read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	leaf, issuer := parsed("good-plain.bin"), parsed("issuer.der")
	if leaf.SignedBy(leaf) == nil || issuer.SignedBy(leaf) == nil {
		t.Error("signed by who did not sign it")
	}
	if parsed("bad-sha1.bin").SignedBy(issuer) == nil {
		t.Error("SHA-1 counts")
	}
	for i := range leaf.tbs {
		forged := bytes.Clone(leaf.Raw)
		at := bytes.Index(forged, leaf.tbs) + i
		forged[at] ^= 1
		if c, err := Parse(forged); err == nil && c.SignedBy(issuer) == nil {
			t.Fatalf("byte %d may be another", i)
		}
	}
}

// FuzzParse: what is read is of the input, reads the same again, and is what crypto/x509 says where that reads it too.
func FuzzParse(f *testing.F) {
	for _, list := range []struct {
		kind string
		of   []fixture
	}{{"good-", good}, {"bad-", bad}} {
		for _, one := range list.of {
			f.Add(read(f, list.kind+one.name+".bin"))
		}
	}
	f.Add(read(f, "issuer.der"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			if c != nil {
				t.Fatal("an error with a result")
			}
			return
		}
		if !bytes.Contains(b, c.Raw) || !bytes.Contains(c.Raw, c.tbs) || c.Key == nil {
			t.Fatal("not of the input")
		}
		again, err := Parse(c.Raw)
		if err != nil || !bytes.Equal(again.Raw, c.Raw) || !same(c.Key, again.Key) || again.Fingerprint != c.Fingerprint {
			t.Fatalf("not stable: %v", err)
		}
		std, err := x509.ParseCertificate(c.Raw)
		if err != nil {
			return
		}
		if std.PublicKey != nil && !same(std.PublicKey.(crypto.PublicKey), c.Key) {
			t.Errorf("key %v, and not %v", c.Key, std.PublicKey)
		}
		if !bytes.Equal(std.RawTBSCertificate, c.tbs) || !bytes.Equal(std.RawIssuer, c.Issuer) || !bytes.Equal(std.RawSubject, c.Subject) ||
			!std.NotAfter.Equal(c.NotAfter) || !std.NotBefore.Equal(c.NotBefore) || std.IsCA != c.IsCA {
			t.Errorf("%+v", c)
		}
		if std.KeyUsage != 0 && (std.KeyUsage&x509.KeyUsageCertSign != 0) != c.MaySign {
			t.Errorf("may sign: %v", c.MaySign)
		}
		for _, usage := range std.UnknownExtKeyUsage {
			if !slices.ContainsFunc(c.ExtKeyUsage, func(o asn1.ObjectIdentifier) bool { return o.Equal(usage) }) {
				t.Errorf("usage %v is lost", usage)
			}
		}
	})
}

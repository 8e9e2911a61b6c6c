package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"muster/signer/store/bolt"
)

// foreign is a CA that somebody else made.
type foreign struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newForeign(t *testing.T, parent *foreign, curve elliptic.Curve, change func(*x509.Certificate)) *foreign {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, NotBefore: noon.Add(-time.Hour), NotAfter: noon.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(tmpl)
	}
	above, by := tmpl, crypto.Signer(key)
	if parent != nil {
		above, by = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, above, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return &foreign{certificate(t, der), key}
}

// importCA reads the first of a chain with its key.
func importCA(t *testing.T, chain ...*foreign) (*Imported, error) {
	t.Helper()
	var certs []byte
	for _, c := range chain {
		certs = append(certs, certificatePEM(c.cert.Raw)...)
	}
	der, err := x509.MarshalECPrivateKey(chain[0].key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	// As openssl ecparam -genkey writes it.
	text := "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	return Import(certs, []byte(text), nil, noon)
}

// TestImportRefuses: a CA with which no node could work is told at once.
func TestImportRefuses(t *testing.T) {
	root := newForeign(t, nil, elliptic.P256(), nil)
	strict := newForeign(t, nil, elliptic.P256(), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	for what, c := range map[string]struct {
		chain []*foreign
		want  string
	}{
		"a root":                              {[]*foreign{root}, ""},
		"an intermediate":                     {[]*foreign{newForeign(t, root, elliptic.P384(), nil), root}, ""},
		"a cross-certificate before the root": {[]*foreign{newForeign(t, root, elliptic.P256(), nil), {newCross(t, strict, root), nil}, root}, ""},
		"name constraints": {[]*foreign{newForeign(t, nil, elliptic.P256(), func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"hpc.example.com"}, true
		})}, "would not verify"},
		"servers only": {[]*foreign{newForeign(t, root, elliptic.P256(), func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), root}, "would not verify"},
		"below a path length of 0": {[]*foreign{newForeign(t, strict, elliptic.P256(), nil), strict}, "would not verify"},
		"P-224":                    {[]*foreign{newForeign(t, nil, elliptic.P224(), nil)}, "P-224"},
		"a short key identifier":   {[]*foreign{newForeign(t, nil, elliptic.P256(), func(c *x509.Certificate) { c.SubjectKeyId = []byte{1, 2} })}, "fewer than 8 bytes"},
		"no CRLs":                  {[]*foreign{newForeign(t, nil, elliptic.P256(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })}, "may not sign CRLs"},
		"too many":                 {[]*foreign{root, root, root, root, root, root, root, root, root}, "9 certificates"},
	} {
		_, err := importCA(t, c.chain...)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrImport) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func newCross(t *testing.T, by, over *foreign) *x509.Certificate {
	t.Helper()
	tmpl := *over.cert
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, by.cert, over.cert.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate(t, der)
}

// TestRotateImported: a rotation whose next CA would not verify for who pins the old root is refused.
func TestRotateImported(t *testing.T) {
	for length, want := range map[int]bool{1: false, 2: true} {
		root := newForeign(t, nil, elliptic.P256(), func(c *x509.Certificate) { c.MaxPathLen = length })
		ca, err := importCA(t, newForeign(t, root, elliptic.P256(), nil), root)
		if err != nil {
			t.Fatal(err)
		}
		s := &site{t: t, dir: t.TempDir(), clock: &clock{at: noon}, log: &lockedBuffer{}}
		s.must(bolt.Create(s.dbPath(), "head1"))
		s.openStore()
		t.Cleanup(func() { s.store.Close() })
		plan := testPlan()
		plan.CA = ca
		_, err = Init(context.Background(), s.dir, s.store, plan, noon)
		s.must(err)
		s.open()
		before := s.trusting(s.bundle())
		_, err = s.tryRotate(RotateRequest{})
		if (err == nil) != want {
			t.Errorf("below a root of path length %d: %v", length, err)
		}
		if err == nil {
			s.rotate(RotateRequest{Finish: true})
			s.must(s.takes(before, s.server.Load().Leaf))
		}
		s.rotate(RotateRequest{Compromised: true})
	}
}

package ekroots

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/ekcert"
	"muster/internal/testtpm"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func quiet(error) {}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func aKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// dirOf is a directory with files: PEM where the name ends so, else DER.
func dirOf(t testing.TB, files map[string][]byte) *Dir {
	t.Helper()
	d := In(t.TempDir(), quiet)
	for name, der := range files {
		put(t, d, name, der)
	}
	return d
}

func put(t testing.TB, d *Dir, name string, der []byte) {
	t.Helper()
	if strings.HasSuffix(name, ".pem") {
		der = append([]byte("some text\n"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.WriteFile(filepath.Join(d.Path(), name), der, 0o644); err != nil {
		t.Fatal(err)
	}
}

// refused fails the test unless err says the word.
func refused(t *testing.T, err error, word string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		t.Errorf("got %v, want %q", err, word)
	}
}

const fixtures = "../../testdata/tpm"

// fixtureKeys are the EKs that the fixtures are for, RSA or not.
func fixtureKeys(t testing.TB) map[bool]crypto.PublicKey {
	t.Helper()
	keys := map[bool]crypto.PublicKey{}
	for isRSA, name := range map[bool]string{false: "ek-p256.pem", true: "ek-rsa.pem"} {
		block, _ := pem.Decode(read(t, filepath.Join(fixtures, name)))
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		keys[isRSA] = key
	}
	return keys
}

// TestFixtures: the quirks of chips lead to the root, and what a forger would send does not.
func TestFixtures(t *testing.T) {
	d := In(t.TempDir(), quiet)
	for _, name := range []string{"root.pem", "issuer.der"} {
		if err := os.WriteFile(filepath.Join(d.Path(), name), read(t, filepath.Join(fixtures, name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	keys := fixtureKeys(t)
	paths, err := filepath.Glob(filepath.Join(fixtures, "*.bin"))
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d fixtures, %v", len(paths), err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		isRSA := strings.HasPrefix(name, "good-rsa")
		err := d.Look(now).Check([][]byte{read(t, path)}, keys[isRSA])
		if good := strings.HasPrefix(name, "good-"); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		if d.Look(now).Check([][]byte{read(t, path)}, keys[!isRSA]) == nil {
			t.Errorf("%s is good for another EK", name)
		}
	}
}

// TestChains: each rule of the chain, by a chain that breaks it alone.
func TestChains(t *testing.T) {
	maker, other := testtpm.NewMaker("Chip"), testtpm.NewMaker("Chip") // the same names, other keys
	ek, ca := aKey(t), aKey(t)
	leaf := maker.Certify(ek.Public())
	below := func(change func(*testtpm.Cert)) (issuer, leaf []byte) {
		c := testtpm.Cert{Subject: "Below", Key: ca.Public(), Extensions: testtpm.CAExtensions(-1)}
		change(&c)
		return maker.SignCA(c), testtpm.Cert{Issuer: "Below", Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(ca)
	}
	deep := aKey(t)
	deepIssuer := testtpm.Cert{Issuer: "Below", Subject: "Deep", Key: deep.Public(), Extensions: testtpm.CAExtensions(-1)}.Sign(ca)
	deepLeaf := testtpm.Cert{Issuer: "Deep", Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(deep)
	selfMade := testtpm.Cert{Issuer: "Chip CA", Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(ek)

	for _, c := range []struct {
		name   string
		change func(*testtpm.Cert) // of the CA between root and EK; nil: the maker's own
		dir    map[string][]byte
		sent   [][]byte
		want   string // in the refusal; empty: it is good
	}{
		{name: "whole", dir: map[string][]byte{"root.pem": maker.Root, "ca.der": maker.Issuer}, sent: [][]byte{leaf}},
		{name: "the node brings the CA", dir: map[string][]byte{"root.der": maker.Root}, sent: [][]byte{maker.Issuer, leaf}},
		{name: "both makers of that name", dir: map[string][]byte{"a": other.Root, "b": other.Issuer, "c": maker.Root, "d": maker.Issuer}, sent: [][]byte{leaf}},
		{name: "beside one that cannot be read", dir: map[string][]byte{"root.der": maker.Root, "ca.pem": maker.Issuer, "README": []byte("no certificate")}, sent: [][]byte{[]byte("x"), leaf}},
		{name: "no directory", sent: [][]byte{leaf}, want: "no root is in"},
		{name: "the CA alone is no root", dir: map[string][]byte{"ca.pem": maker.Issuer}, sent: [][]byte{leaf}, want: "no root is in"},
		{name: "the node brings the root too", dir: map[string][]byte{"other.pem": other.Root}, sent: [][]byte{leaf, maker.Issuer, maker.Root}, want: "its signature is wrong"},
		{name: "no certificate", dir: map[string][]byte{"root.pem": maker.Root}, want: "sent no certificate"},
		{name: "another root", dir: map[string][]byte{"root.pem": other.Root, "ca.pem": other.Issuer}, sent: [][]byte{leaf}, want: "its signature is wrong"},
		{name: "the CA is missing", dir: map[string][]byte{"root.pem": maker.Root}, sent: [][]byte{leaf}, want: `its issuer "Chip CA" is not known`},
		{name: "another EK's", dir: map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer}, sent: [][]byte{maker.Certify(aKey(t).Public())}, want: "no certificate that it sent is of its EK"},
		{name: "signed by itself", dir: map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer}, sent: [][]byte{selfMade}, want: "its signature is wrong"},
		{name: "an EK plays the CA", dir: map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer},
			sent: [][]byte{testtpm.Cert{Issuer: "id:EK", Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(ca),
				maker.SignEK(testtpm.Cert{Subject: "id:EK", Key: ca.Public(), Extensions: testtpm.EKExtensions()})}, want: "may not sign others"},
		{name: "over", dir: map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer},
			sent: [][]byte{maker.SignEK(testtpm.Cert{Key: ek.Public(), Extensions: testtpm.EKExtensions(), NotAfter: now.Add(-time.Second)})}, want: "the certificate of its EK was over on 2026-06-01"},
		{name: "not yet", dir: map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer},
			sent: [][]byte{maker.SignEK(testtpm.Cert{Key: ek.Public(), Extensions: testtpm.EKExtensions(), NotBefore: now.Add(time.Hour)})}, want: "begins on"},
		{name: "one more CA", change: func(*testtpm.Cert) {}},
		{name: "its time is over", change: func(c *testtpm.Cert) { c.NotAfter = now.Add(-time.Hour) }, want: `issuer "Below" was over`},
		{name: "it is no CA", change: func(c *testtpm.Cert) { c.Extensions = testtpm.EKExtensions() }, want: "may not sign others"},
		{name: "it says nothing of a CA", change: func(c *testtpm.Cert) { c.Extensions = nil }, want: "may not sign others"},
		{name: "it may not sign certificates", change: func(c *testtpm.Cert) { c.Extensions[1].Value = []byte{3, 2, 1, 2} }, want: "may not sign others"},
		{name: "it is for something else", change: func(c *testtpm.Cert) {
			c.Extensions = append(c.Extensions, testtpm.Extension{OID: testtpm.OIDExtKeyUsage, Value: testtpm.ExtKeyUsage(testtpm.OIDSubjectAltName)})
		}, want: "something else than EKs"},
		{name: "it limits names, critically", change: func(c *testtpm.Cert) {
			c.Extensions = append(c.Extensions, testtpm.Extension{OID: []int{2, 5, 29, 30}, Critical: 0xFF, Value: []byte{0x30, 0}})
		}, want: "critical extension 2.5.29.30"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				issuer, leaf := below(c.change)
				c.dir, c.sent = map[string][]byte{"root.pem": maker.Root, "below.der": issuer}, [][]byte{leaf}
			}
			err := dirOf(t, c.dir).Look(now).Check(c.sent, ek.Public())
			if c.want != "" {
				refused(t, err, c.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}

	for pathLen, want := range map[int]string{1: "", 0: "allows 0 CAs below it, and there are 1"} {
		issuer, _ := below(func(c *testtpm.Cert) { c.Extensions = testtpm.CAExtensions(pathLen) })
		err := dirOf(t, map[string][]byte{"root.pem": maker.Root, "below.der": issuer, "deep.der": deepIssuer}).Look(now).Check([][]byte{deepLeaf}, ek.Public())
		if want != "" {
			refused(t, err, want)
		} else if err != nil {
			t.Error(err)
		}
	}
}

// TestReadAgain: a file that comes, changes or goes counts from the next look on, but for one that is written over, within
// a second.
func TestReadAgain(t *testing.T) {
	maker, other := testtpm.NewMaker("One"), testtpm.NewMaker("Two")
	ek := aKey(t)
	leaf := [][]byte{maker.Certify(ek.Public()), maker.Issuer}
	var told []string
	d := In(filepath.Join(t.TempDir(), "ek-roots"), func(err error) { told = append(told, err.Error()) })
	if err := os.Mkdir(d.Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	at := now
	check := func() error {
		at = at.Add(lookEvery)
		return d.Look(at).Check(leaf, ek.Public())
	}
	refused(t, check(), "no root is in")
	put(t, d, "a.pem", maker.Root)
	if err := check(); err != nil {
		t.Error(err)
	}
	put(t, d, "b.pem", other.Root)
	put(t, d, "c.pem", []byte("nonsense"))
	for range 3 {
		if d.Roots() != 2 || check() != nil {
			t.Error("a file that cannot be read keeps others from counting")
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "c.pem") {
		t.Errorf("told %q", told)
	}
	if err := os.Remove(filepath.Join(d.Path(), "a.pem")); err != nil {
		t.Fatal(err)
	}
	refused(t, check(), "is not known")
	// Written over: the directory does not change by that.
	put(t, d, "b.pem", maker.Root)
	refused(t, d.Look(at.Add(lookEvery-1)).Check(leaf, ek.Public()), "is not known")
	if err := check(); err != nil {
		t.Error(err)
	}
	// A clock that steps back stops no look.
	put(t, d, "b.pem", other.Root)
	refused(t, d.Look(at.Add(-time.Hour)).Check(leaf, ek.Public()), "is not known")
}

// TestStrangersKeysAreNotUsed: of issuers that a stranger made, all with one name and one slow key so that any may have
// signed any, none costs a signature of that key; a good one of the site's is tried, once for each that claims it.
func TestStrangersKeysAreNotUsed(t *testing.T) {
	maker := testtpm.NewMaker("Chip")
	d := dirOf(t, map[string][]byte{"root.pem": maker.Root, "ca.pem": maker.Issuer})
	slow, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"x": 0, "Chip Root": 4, "Chip CA": 5} {
		l, ek := d.Look(now), aKey(t)
		sent := [][]byte{testtpm.Cert{Issuer: name, Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(slow)}
		for i := range 3 {
			sent = append(sent, testtpm.Cert{Issuer: name, Subject: name, Key: slow.Public(), NotAfter: now.AddDate(1+i, 0, 0), Extensions: testtpm.CAExtensions(-1)}.Sign(slow))
		}
		if l.Check(sent, ek.Public()) == nil {
			t.Errorf("%s: it is good", name)
		}
		if got := maxChecks - l.checks; got != want {
			t.Errorf("%s: %d signatures, not %d", name, got, want)
		}
	}
}

// TestWorkIsBounded: a crowd of CAs of a root's name costs a bounded number of signatures, for all EKs of a claim together.
func TestWorkIsBounded(t *testing.T) {
	maker := testtpm.NewMaker("Chip")
	l := dirOf(t, map[string][]byte{"root.pem": maker.Root}).Look(now)
	for range 3 {
		ek := aKey(t)
		sent := [][]byte{testtpm.Cert{Issuer: "Chip Root", Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(aKey(t))}
		for range maxChecks / 2 {
			sent = append(sent, testtpm.Cert{Issuer: "Chip Root", Subject: "Chip Root", Key: aKey(t).Public(), Extensions: testtpm.CAExtensions(-1)}.Sign(ek))
		}
		if l.Check(sent, ek.Public()) == nil {
			t.Fatal("it is good")
		}
	}
	ek := aKey(t)
	refused(t, l.Check([][]byte{maker.Certify(ek.Public()), maker.Issuer}, ek.Public()), "too many certificates")
	if l.checks != 0 {
		t.Errorf("%d signatures are left", l.checks)
	}
}

// TestWhatIsQuoted of a stranger's certificate is short, and harmless on a terminal.
func TestWhatIsQuoted(t *testing.T) {
	maker := testtpm.NewMaker("Chip")
	ek := aKey(t)
	d := dirOf(t, map[string][]byte{"root.pem": maker.Root})
	evil := testtpm.Cert{Issuer: "\x1b[2J" + strings.Repeat("é", 200), Key: ek.Public(), Extensions: testtpm.EKExtensions()}.Sign(ek)
	err := d.Look(now).Check([][]byte{evil}, ek.Public())
	if err == nil || len(err.Error()) > 500 || slices.ContainsFunc([]byte(err.Error()), func(b byte) bool { return b < ' ' || b > '~' }) {
		t.Errorf("%q", err)
	}
}

// FuzzCheck: what is good for an EK carries what its maker signed for that EK, to the byte; for an EK that the maker does
// not know, nothing is.
func FuzzCheck(f *testing.F) {
	d := In(f.TempDir(), quiet)
	for _, name := range []string{"root.pem", "issuer.der"} {
		if err := os.WriteFile(filepath.Join(d.Path(), name), read(f, filepath.Join(fixtures, name)), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	ek, stranger := fixtureKeys(f)[false], aKey(f).Public()
	issuer := read(f, filepath.Join(fixtures, "issuer.der"))
	paths, err := filepath.Glob(filepath.Join(fixtures, "*.bin"))
	if err != nil {
		f.Fatal(err)
	}
	var signed [][]byte
	for _, path := range paths {
		b := read(f, path)
		f.Add(b, issuer)
		if d.Look(now).Check([][]byte{b}, ek) == nil {
			signed = append(signed, toBeSigned(f, b))
		}
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		sent := [][]byte{one, two}
		if d.Look(now).Check(sent, stranger) == nil {
			t.Error("it is good for any EK")
		}
		if d.Look(now).Check(sent, ek) == nil && !slices.ContainsFunc(signed, func(tbs []byte) bool {
			return bytes.Contains(one, tbs) || bytes.Contains(two, tbs)
		}) {
			t.Error("it is good, and its maker never signed it")
		}
	})
}

// toBeSigned is the part of a certificate that its signature is for.
func toBeSigned(t testing.TB, b []byte) []byte {
	t.Helper()
	der, err := ekcert.Trim(b)
	if err != nil {
		t.Fatal(err)
	}
	var outer, inner asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(outer.Bytes, &inner); err != nil {
		t.Fatal(err)
	}
	return inner.FullBytes
}

package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/testtpm"
)

func TestManufacturedEKs(t *testing.T) {
	testtpm.Need(t, "swtpm_setup")
	m := testtpm.Start(t, testtpm.Manufactured())
	d := New(dial(t, m))
	key := nodeKey(t, d, template.P256)
	err := d.WithEKs(true, func(eks []EK) error {
		if len(eks) != 2 || eks[0].Template != "H-3" || eks[1].Template != "L-1" {
			t.Fatalf("EKs: %+v", eks)
		}
		for i := range eks {
			if eks[i].Handle == 0 || len(eks[i].Certs) != 1 {
				t.Errorf("%s: handle %#x, %d certificates", eks[i].Kind, eks[i].Handle, len(eks[i].Certs))
			}
			if _, err := x509.ParseCertificate(eks[i].Certs[0]); err != nil {
				t.Errorf("%s: %v", eks[i].Kind, err)
			}
			if err := activate(d, &eks[i], key); err != nil {
				t.Errorf("%s: %v", eks[i].Kind, err)
			}
			idle(t, d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDerivedEKs has the TPM know ever fewer templates.
func TestDerivedEKs(t *testing.T) {
	m := testtpm.Start(t)
	key := nodeKey(t, New(dial(t, m)), template.P256)
	for i, tmpl := range template.EKs() {
		d := New(testtpm.Inject(dial(t, m), testtpm.Fault{
			At: 1, Times: i, Code: tpm2.TPMCCCreatePrimary, Answer: testtpm.RC(tpm2.TPMRCCurve | 0x2C0),
		}))
		if i == 0 {
			d = New(dial(t, m))
		}
		key.dev = d
		err := d.WithEKs(false, func(eks []EK) error {
			if len(eks) != 1 || eks[0].Template != tmpl.Name || eks[0].Handle != 0 {
				t.Errorf("EKs: %+v, %s expected", eks, tmpl.Name)
			}
			if err := activate(d, &eks[0], key); err != nil {
				return err
			}
			idle(t, d)
			return activate(d, &eks[0], key) // derives it again
		})
		if err != nil {
			t.Errorf("%s: %v", tmpl.Name, err)
		}
		idle(t, d)
	}
	d := New(testtpm.Inject(dial(t, m), testtpm.Fault{
		At: 1, Times: 9, Code: tpm2.TPMCCCreatePrimary, Answer: testtpm.RC(tpm2.TPMRCCurve | 0x2C0),
	}))
	if _, err := d.EKs(false); !isErr(err, ErrNoEK) {
		t.Errorf("no template at all: %v, ErrNoEK expected", err)
	}
}

func TestActivateRefusesAnother(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	key := nodeKey(t, d, template.P256)
	other, _, err := d.OtherKey(DefaultSlots, template.P256, key)
	if err != nil {
		t.Fatal(err)
	}
	err = d.WithEKs(false, func(eks []EK) error {
		id, enc, err := challenge(eks[0].Area, key.Name(), make([]byte, 32))
		if err != nil {
			return err
		}
		if _, err := d.Activate(&eks[0], other, id, enc); !isErr(err, tpm2.TPMRCIntegrity) {
			t.Errorf("a challenge for another key: %v", err)
		}
		idle(t, d)
		for n := range 5 { // sessions would run out
			if _, err := d.Activate(&eks[0], key, id[:4+n], enc); err == nil {
				t.Error("a damaged challenge is activated")
			}
		}
		idle(t, d)
		_, err = d.Activate(&eks[0], key, id, enc)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEKWithNonce(t *testing.T) {
	tmpl := template.EKs()[0]
	for _, index := range []tpm2.TPMHandle{tmpl.Nonce, tmpl.Template} {
		m := testtpm.Start(t)
		raw := dial(t, m)
		d := New(raw)
		nonce := bytes.Repeat([]byte{9}, 20)
		public, value := withNonce(tmpl.Public, nonce), nonce
		if index == tmpl.Template {
			value = tpm2.Marshal(public)
		}
		real, err := d.loadEK(tmpl, public)
		if err != nil {
			t.Fatal(err)
		}
		d.unloadEK(&real)
		pub, err := template.Parse(real.Area)
		if err != nil {
			t.Fatal(err)
		}
		ekKey, err := template.Key(pub)
		if err != nil {
			t.Fatal(err)
		}
		cert, _, err := testtpm.EKCertificate(ekKey)
		if err != nil {
			t.Fatal(err)
		}
		define(t, raw, uint32(tmpl.Cert), cert, len(cert)+300)
		define(t, raw, uint32(index), value, len(value))
		key := nodeKey(t, d, template.P256)
		err = d.WithEKs(true, func(eks []EK) error {
			if eks[0].Fingerprint != real.Fingerprint || len(eks[0].Certs) != 1 || !bytes.Equal(eks[0].Certs[0], cert) {
				t.Errorf("index %#x: not the EK of the certificate", uint32(index))
			}
			if err := activate(d, &eks[0], key); err != nil {
				return err
			}
			return activate(d, &eks[0], key) // derives it again, the same way
		})
		if err != nil {
			t.Error(err)
		}
		idle(t, d)
	}
}

func define(t *testing.T, raw *redial, index uint32, data []byte, size int) {
	t.Helper()
	if err := testtpm.DefineNV(raw, index, data, size); err != nil {
		t.Fatal(err)
	}
}

// TestCertificateOfAnotherTemplate is a TPM whose only certificate is for its RSA key.
func TestCertificateOfAnotherTemplate(t *testing.T) {
	m := testtpm.Start(t)
	raw := dial(t, m)
	d := New(raw)
	l1 := template.EKs()[3]
	rsaEK, err := d.loadEK(l1, l1.Public)
	if err != nil {
		t.Fatal(err)
	}
	d.unloadEK(&rsaEK)
	pub, _ := template.Parse(rsaEK.Area)
	rsaKey, _ := template.Key(pub)
	cert, _, err := testtpm.EKCertificate(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	define(t, raw, uint32(l1.Cert), cert, 1536)
	key := nodeKey(t, d, template.P256)
	err = d.WithEKs(true, func(eks []EK) error {
		if len(eks) != 2 || eks[0].Template != "L-2" || len(eks[0].Certs) != 0 {
			t.Fatalf("EKs: %+v", eks)
		}
		if eks[1].Template != "L-1" || eks[1].Fingerprint != rsaEK.Fingerprint || !bytes.Equal(eks[1].Area, rsaEK.Area) || len(eks[1].Certs) != 1 {
			t.Errorf("the EK of the certificate: %+v", eks[1])
		}
		return activate(d, &eks[1], key)
	})
	if err != nil {
		t.Error(err)
	}
	idle(t, d)
}

// TestCertificateOfNoKey is one that is not for this TPM: it is left out.
func TestCertificateOfNoKey(t *testing.T) {
	for _, junk := range [][]byte{nil, []byte("not a certificate"), bytes.Repeat([]byte{0xFF}, 800)} {
		m := testtpm.Start(t)
		raw := dial(t, m)
		if junk == nil {
			stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if junk, _, err = testtpm.EKCertificate(stranger.Public()); err != nil {
				t.Fatal(err)
			}
		}
		define(t, raw, 0x01C0000A, junk, len(junk))
		eks, err := New(raw).EKs(true)
		if err != nil || len(eks) != 1 || len(eks[0].Certs) != 0 || eks[0].Template != "L-2" {
			t.Errorf("EKs: %+v, %v", eks, err)
		}
		idle(t, New(raw))
	}
}

// TestMakeCredentialOfTPM2Tools activates what another program sealed.
func TestMakeCredentialOfTPM2Tools(t *testing.T) {
	testtpm.Need(t, "tpm2_makecredential")
	m := testtpm.Start(t, testtpm.TCP())
	d := open(t, m)
	key := nodeKey(t, d, template.P256)
	err := d.WithEKs(false, func(eks []EK) error {
		pub, err := template.Parse(eks[0].Area)
		if err != nil {
			return err
		}
		put(t, m, "ek.pub", tpm2.Marshal(tpm2.New2B(*pub)))
		put(t, m, "secret", []byte("0123456789abcdef"))
		run(t, m, "tpm2_makecredential", "-T", "none", "-u", "ek.pub", "-s", "secret",
			"-n", hexOf(key.Name()), "-o", "blob")
		id, enc := parseBlob(t, get(t, m, "blob"))
		secret, err := d.Activate(&eks[0], key, id, enc)
		if err == nil && string(secret) != "0123456789abcdef" {
			t.Errorf("the secret is %q", secret)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestActivateCredentialOfTPM2Tools has another program activate what go-tpm sealed.
func TestActivateCredentialOfTPM2Tools(t *testing.T) {
	testtpm.Need(t, "tpm2_activatecredential")
	m := testtpm.Start(t, testtpm.TCP())
	d := open(t, m)
	key := nodeKey(t, d, template.P256)
	eks, err := d.EKs(false)
	if err != nil {
		t.Fatal(err)
	}
	id, enc, err := challenge(eks[0].Area, key.Name(), []byte("fedcba9876543210"))
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	blob := append([]byte{0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1}, sized(id)...)
	put(t, m, "blob", append(blob, sized(enc)...))
	run(t, m, "tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
	run(t, m, "tpm2_startauthsession", "--policy-session", "-S", "session")
	run(t, m, "tpm2_policysecret", "-S", "session", "-c", "e")
	run(t, m, "tpm2_activatecredential", "-c", "0x81004E00", "-C", "ek.ctx", "-i", "blob", "-o", "out", "-P", "session:session")
	if out := get(t, m, "out"); string(out) != "fedcba9876543210" {
		t.Errorf("the secret is %q", out)
	}
}

func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// parseBlob reads tpm2-tools' file of a credential: magic, version, TPM2B_ID_OBJECT,
// TPM2B_ENCRYPTED_SECRET.
func parseBlob(t *testing.T, b []byte) (id, enc []byte) {
	t.Helper()
	if len(b) < 10 || binary.BigEndian.Uint32(b) != 0xBADCC0DE {
		t.Fatalf("not a credential: %x", b)
	}
	b = b[8:]
	n := int(binary.BigEndian.Uint16(b))
	id, b = b[2:2+n], b[2+n:]
	return id, b[2 : 2+int(binary.BigEndian.Uint16(b))]
}

func put(t *testing.T, m *testtpm.TPM, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.Dir(), name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, m *testtpm.TPM, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.Dir(), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPEMStructure reads the file with nothing but its ASN.1.
func TestPEMStructure(t *testing.T) {
	var v struct {
		Type   asn1.ObjectIdentifier
		Empty  bool `asn1:"explicit,tag:0"`
		Parent *big.Int
		Public []byte
		Priv   []byte
	}
	for _, persistent := range []bool{false, true} {
		m := testtpm.Start(t)
		d := New(dial(t, m))
		if persistent {
			persistSRK(t, d, template.SRK().Unique)
		}
		key := nodeKey(t, d, template.P256)
		want := int64(tpm2.TPMRHOwner)
		if persistent {
			want = srkHandle
		}
		if rest, err := asn1.Unmarshal(pemBytes(t, d, key), &v); err != nil || len(rest) != 0 {
			t.Fatal(err)
		}
		if !v.Type.Equal(oidLoadableKey) || !v.Empty || v.Parent.Int64() != want || !bytes.Equal(v.Public[2:], key.Area()) {
			t.Errorf("%+v", v)
		}
		idle(t, d)
	}
}

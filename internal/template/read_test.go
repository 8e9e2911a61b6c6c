package template

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// filled returns a template with a fresh key in its unique field.
func filled(t testing.TB, pub tpm2.TPMTPublic) tpm2.TPMTPublic {
	t.Helper()
	if pub.Type == tpm2.TPMAlgRSA {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
		return pub
	}
	parms, err := pub.Parameters.ECCDetail()
	if err != nil {
		t.Fatal(err)
	}
	curve := elliptic.P256()
	if parms.CurveID == tpm2.TPMECCNistP384 {
		curve = elliptic.P384()
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	half := (len(b) - 1) / 2
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: b[1 : 1+half]}, Y: tpm2.TPM2BECCParameter{Buffer: b[1+half:]},
	})
	return pub
}

func every(t testing.TB) (nodeKeys, eks [][]byte) {
	for _, a := range []Algorithm{P256, P384, RSA2048} {
		nodeKeys = append(nodeKeys, tpm2.Marshal(filled(t, NodeKey(a))))
	}
	for _, ek := range EKs() {
		eks = append(eks, tpm2.Marshal(filled(t, ek.Public)))
	}
	return nodeKeys, eks
}

// same compares reading by form with reading by go-tpm and comparing the templates: whatever the one
// accepts, the other does, with the same results.
func same(t *testing.T, area []byte) {
	t.Helper()
	slow, slowErr := Parse(area)
	for what, reader := range map[string]struct {
		read  func([]byte) (*Public, error)
		check func(*tpm2.TPMTPublic) error
	}{
		"node key": {ReadNodeKey, func(pub *tpm2.TPMTPublic) error { _, err := CheckNodeKey(pub); return err }},
		"EK":       {ReadEK, func(pub *tpm2.TPMTPublic) error { _, err := CheckEK(pub); return err }},
	} {
		want := slowErr == nil && reader.check(slow) == nil
		p, err := reader.read(area)
		if (err == nil) != want {
			t.Fatalf("%s %x: accepted %v, should be %v (%v)", what, area, err == nil, want, err)
		}
		if err != nil {
			if p != nil {
				t.Fatalf("%s: an error, and a result", what)
			}
			continue
		}
		name, nameErr := tpm2.ObjectName(slow)
		sum, sumErr := Fingerprint(slow)
		if nameErr != nil || sumErr != nil || !bytes.Equal(p.Name, name.Buffer) || p.Fingerprint != sum {
			t.Fatalf("%s: name %x, fingerprint %x; should be %x, %x", what, p.Name, p.Fingerprint, name.Buffer, sum)
		}
		if pub := p.TPMT(); !bytes.Equal(tpm2.Marshal(pub), area) {
			t.Fatalf("%s: TPMT does not marshal to the area", what)
		}
	}
}

func TestReadAgreesWithGoTPM(t *testing.T) {
	nodeKeys, eks := every(t)
	for i, area := range append(nodeKeys, eks...) {
		if _, err := ReadNodeKey(area); (err == nil) != (i < len(nodeKeys)) {
			t.Errorf("area %d as a node key: %v", i, err)
		}
		if _, err := ReadEK(area); (err == nil) != (i >= len(nodeKeys)) {
			t.Errorf("area %d as an EK: %v", i, err)
		}
		same(t, area)
		for at := range area {
			changed := bytes.Clone(area)
			changed[at] ^= 1
			same(t, changed)
		}
		for n := range area {
			same(t, area[:n])
		}
		same(t, append(bytes.Clone(area), 0))
	}
}

func FuzzRead(f *testing.F) {
	nodeKeys, eks := every(f)
	for _, area := range append(nodeKeys, eks...) {
		f.Add(area)
	}
	f.Fuzz(func(t *testing.T, area []byte) { same(t, area) })
}

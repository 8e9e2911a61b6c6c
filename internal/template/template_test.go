package template

import (
	"bytes"
	"crypto"
	_ "crypto/sha512"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TestPolicies recomputes the EK profile's policy constants from the commands they stand for.
func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		hash    crypto.Hash
		a, b, c []byte
	}{
		{crypto.SHA256, policyA256, policyB256, policyC256},
		{crypto.SHA384, policyA384, policyB384, policyC384},
	} {
		zero := make([]byte, c.hash.Size())
		extend := func(parts ...[]byte) []byte {
			h := c.hash.New()
			for _, p := range parts {
				h.Write(p)
			}
			return h.Sum(nil)
		}
		// TPM 2.0 part 3, 23.4: PolicySecret extends with the entity's name, then with policyRef.
		const ccPolicySecret, ccPolicyOR = 0x151, 0x171
		cc := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
		a := extend(extend(zero, cc(ccPolicySecret), cc(uint32(tpm2.TPMRHEndorsement))))
		if !bytes.Equal(a, c.a) {
			t.Errorf("%v: policy A is %x", c.hash, a)
		}
		if b := extend(zero, cc(ccPolicyOR), c.a, c.c); !bytes.Equal(b, c.b) {
			t.Errorf("%v: policy B is %x", c.hash, b)
		}
	}
}

func TestCheckNodeKeyRefusesEveryOtherAttribute(t *testing.T) {
	for _, alg := range []Algorithm{P256, P384, RSA2048} {
		good := NodeKey(alg)
		if got, err := CheckNodeKey(&good); err != nil || got != alg {
			t.Fatalf("own template %v: %v, %v", alg, got, err)
		}
		for name, flip := range map[string]func(a *tpm2.TPMAObject){
			"fixedTPM":            func(a *tpm2.TPMAObject) { a.FixedTPM = !a.FixedTPM },
			"stClear":             func(a *tpm2.TPMAObject) { a.STClear = !a.STClear },
			"fixedParent":         func(a *tpm2.TPMAObject) { a.FixedParent = !a.FixedParent },
			"sensitiveDataOrigin": func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = !a.SensitiveDataOrigin },
			"userWithAuth":        func(a *tpm2.TPMAObject) { a.UserWithAuth = !a.UserWithAuth },
			"adminWithPolicy":     func(a *tpm2.TPMAObject) { a.AdminWithPolicy = !a.AdminWithPolicy },
			"noDA":                func(a *tpm2.TPMAObject) { a.NoDA = !a.NoDA },
			"encryptedDup":        func(a *tpm2.TPMAObject) { a.EncryptedDuplication = !a.EncryptedDuplication },
			"restricted":          func(a *tpm2.TPMAObject) { a.Restricted = !a.Restricted },
			"decrypt":             func(a *tpm2.TPMAObject) { a.Decrypt = !a.Decrypt },
			"sign":                func(a *tpm2.TPMAObject) { a.SignEncrypt = !a.SignEncrypt },
		} {
			bad := NodeKey(alg)
			flip(&bad.ObjectAttributes)
			if _, err := CheckNodeKey(&bad); err == nil {
				t.Errorf("%v: %s flipped and still accepted", alg, name)
			}
		}
		bad := NodeKey(alg)
		bad.AuthPolicy.Buffer = make([]byte, 32)
		if _, err := CheckNodeKey(&bad); err == nil {
			t.Errorf("%v: a policy and still accepted", alg)
		}
		bad = NodeKey(alg)
		bad.NameAlg = tpm2.TPMAlgSHA384
		if _, err := CheckNodeKey(&bad); err == nil {
			t.Errorf("%v: nameAlg SHA-384 and still accepted", alg)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	point := NodeKey(P256) // unique is empty: not a point
	if _, err := Parse(tpm2.Marshal(point)); err == nil {
		t.Error("an empty point was accepted")
	}
	point.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)},
		Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{2}, 32)},
	})
	if _, err := Parse(tpm2.Marshal(point)); err == nil {
		t.Error("a point that is not on the curve was accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, ek := range EKs() {
		f.Add(tpm2.Marshal(ek.Public))
	}
	f.Add(tpm2.Marshal(NodeKey(P256)))
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, err := Parse(b)
		if err != nil {
			if pub != nil {
				t.Fatal("an error, and a result")
			}
			return
		}
		if !bytes.Equal(tpm2.Marshal(*pub), b) {
			t.Fatal("does not marshal to its input")
		}
		if _, err := Fingerprint(pub); err != nil {
			t.Fatalf("parsed, but no fingerprint: %v", err)
		}
	})
}

package standin

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
	"muster/internal/testtpm"
	"muster/internal/wire"
	"muster/signer/attest"
)

func made(t *testing.T) *TPM {
	t.Helper()
	s, err := New(template.EKs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nodeName(t *testing.T, s *TPM) []byte {
	t.Helper()
	name, err := tpm2.ObjectName(&s.area)
	if err != nil {
		t.Fatal(err)
	}
	return name.Buffer
}

// TestActivate: what go-tpm wraps, in the place of a head, is opened here.
func TestActivate(t *testing.T) {
	for _, ek := range template.EKs()[:2] {
		s, err := New(ek)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := tpm2.ImportEncapsulationKey(&s.ekArea)
		if err != nil {
			t.Fatal(err)
		}
		secret := []byte("0123456789abcdef0123456789abcdef")
		id, enc, err := tpm2.CreateCredential(rand.Reader, pub, nodeName(t, s), secret)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Activate(id, enc); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: got %x, %v", ek.Name, got, err)
		}
		for i := range id {
			bad := bytes.Clone(id)
			bad[i] ^= 1
			if got, err := s.Activate(bad, enc); err == nil {
				t.Errorf("%s: byte %d of the id object changed: got %x", ek.Name, i, got)
			}
		}
	}
}

func TestActivateForAnotherKey(t *testing.T) {
	s := made(t)
	pub, err := tpm2.ImportEncapsulationKey(&s.ekArea)
	if err != nil {
		t.Fatal(err)
	}
	id, enc, err := tpm2.CreateCredential(rand.Reader, pub, nodeName(t, made(t)), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Activate(id, enc); !errors.Is(err, ErrIntegrity) {
		t.Errorf("got %v, want ErrIntegrity", err)
	}
}

func TestNewRefusesOtherTemplates(t *testing.T) {
	for _, ek := range template.EKs()[2:] {
		if s, err := New(ek); err == nil || s != nil {
			t.Errorf("%s: accepted", ek.Name)
		}
	}
}

// TestActivateAgainstTPM: swtpm's TPM2_MakeCredential is opened here, so that not only go-tpm's reading
// of the specification agrees with ours.
func TestActivateAgainstTPM(t *testing.T) {
	dev, err := testtpm.Start(t).Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	s := made(t)
	secret := []byte("0123456789abcdef0123456789abcdef")
	id, enc := makeCredential(t, dev, s, secret)
	if got, err := s.Activate(id, enc); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("got %x, %v", got, err)
	}
}

func makeCredential(t *testing.T, dev transport.TPM, s *TPM, secret []byte) (id, enc []byte) {
	t.Helper()
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(s.ekArea), Hierarchy: tpm2.TPMRHNull}.Execute(dev)
	if err != nil {
		t.Fatalf("tpm2.LoadExternal: %v", err)
	}
	defer tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(dev)
	rsp, err := tpm2.MakeCredential{
		Handle:     loaded.ObjectHandle,
		Credential: tpm2.TPM2BDigest{Buffer: secret},
		ObjectName: tpm2.TPM2BName{Buffer: nodeName(t, s)},
	}.Execute(dev)
	if err != nil {
		t.Fatalf("tpm2.MakeCredential: %v", err)
	}
	return rsp.CredentialBlob.Buffer, rsp.Secret.Buffer
}

// TestTOFUProvesNoTPM: the head's own check takes a stand-in for a TPM. What refuses it is a pinned EK
// or a vendor's certificate, which no software has; hence a certificate of level tofu does
// not say that its key is in a TPM.
func TestTOFUProvesNoTPM(t *testing.T) {
	s, now := made(t), time.Now()
	claim, err := attest.ParseClaim(wire.Encode(s.ChallengeRequest("n0")))
	if err != nil {
		t.Fatal(err)
	}
	if err := claim.CheckCSR(); err != nil {
		t.Fatal(err)
	}
	head := attest.Verifier{Epochs: attest.NewEpochs(now)}
	terms := attest.Terms{Purpose: wire.PurposeEnroll, Cluster: "c", Grant: "g", Slot: "n0", Level: wire.TOFU}
	challenge, err := head.Challenge(claim, claim.EKs[0], terms, now)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Answer("n0", challenge)
	if err != nil {
		t.Fatal(err)
	}
	form, err := attest.ParseAnswer(wire.Encode(answer))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := head.Verify(form, terms, now); err != nil {
		t.Error(err)
	}
	for _, policy := range wire.TOFU.Policies() {
		if policy.Equal(wire.PolicyTPMResidency) || policy.Equal(wire.PolicyTPMFixed) {
			t.Errorf("a certificate of level tofu says %s", policy)
		}
	}
	if _, err := made(t).Answer("n0", challenge); err == nil {
		t.Error("another stand-in answered")
	}
}

package attest

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/standin"
	"muster/internal/template"
	"muster/internal/wire"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

var terms = Terms{Cluster: "c", Purpose: wire.PurposeEnroll, Grant: "g", Slot: "n0", Level: wire.TOFU}

// node is a stand-in: this package looks at messages, and package signer's tests have real TPMs.
func node(t testing.TB) *standin.TPM {
	t.Helper()
	n, err := standin.New(template.EKs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func claimed(t testing.TB, n *standin.TPM) *Claim {
	t.Helper()
	c, err := ParseClaim(wire.Encode(n.ChallengeRequest("n0")))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func challenged(t testing.TB, v Verifier, n *standin.TPM, at time.Time) wire.Challenge {
	t.Helper()
	c := claimed(t, n)
	ch, err := v.Challenge(c, c.EKs[0], terms, at)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func answered(t testing.TB, v Verifier, n *standin.TPM, at time.Time) wire.EnrollRequest {
	t.Helper()
	a, err := n.Answer("n0", challenged(t, v, n, at))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parsed(t testing.TB, a wire.EnrollRequest) *Answer {
	t.Helper()
	p, err := ParseAnswer(wire.Encode(a))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestClaim(t *testing.T) {
	n := node(t)
	c := claimed(t, n)
	if err := c.CheckCSR(); err != nil {
		t.Error(err)
	}
	if c.Node != "n0" || len(c.EKs) != 1 || !bytes.Equal(c.Key.Area, n.Key()) || !bytes.Equal(c.EKs[0].Area, n.EK()) {
		t.Errorf("got %+v", c)
	}
	if len(c.Key.Name) != 34 || len(c.Key.Fingerprint) != 64 || c.Key.Fingerprint == c.EKs[0].Fingerprint {
		t.Errorf("got name %x, fingerprint %s", c.Key.Name, c.Key.Fingerprint)
	}
}

func TestClaimForms(t *testing.T) {
	n, other := node(t), node(t)
	for name, change := range map[string]func(*wire.ChallengeRequest){
		"version":           func(r *wire.ChallengeRequest) { r.V = 0 },
		"no EK":             func(r *wire.ChallengeRequest) { r.EKs = nil },
		"nine EKs":          func(r *wire.ChallengeRequest) { r.EKs = manyEKs(t, 9) },
		"five certificates": func(r *wire.ChallengeRequest) { r.EKs[0].Certs = make([][]byte, 5) },
		"EK twice":          func(r *wire.ChallengeRequest) { r.EKs = append(r.EKs, r.EKs[0]) },
		"EK is the key":     func(r *wire.ChallengeRequest) { r.EKs[0].Pub = r.Key },
		"key is the EK":     func(r *wire.ChallengeRequest) { r.Key = r.EKs[0].Pub },
		"node too long":     func(r *wire.ChallengeRequest) { r.Node = strings.Repeat("n", 254) },
		"33 MACs":           func(r *wire.ChallengeRequest) { r.Hints.MACs = make([]string, 33) },
		"a long MAC":        func(r *wire.ChallengeRequest) { r.Hints.MACs = []string{strings.Repeat("0", 254)} },
	} {
		r := n.ChallengeRequest("n0")
		change(&r)
		if c, err := ParseClaim(wire.Encode(r)); err == nil || c != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	r := n.ChallengeRequest("n0")
	r.EKs, r.Node = manyEKs(t, 8), strings.Repeat("n", 253)
	r.EKs[0].Certs, r.Hints.MACs = make([][]byte, 4), make([]string, 32)
	if _, err := ParseClaim(wire.Encode(r)); err != nil {
		t.Errorf("the largest: %v", err)
	}
	r = n.ChallengeRequest("n0")
	r.CSR = other.CSR()
	c, err := ParseClaim(wire.Encode(r))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckCSR(); err == nil {
		t.Error("a CSR for another key is accepted")
	}
}

func manyEKs(t testing.TB, n int) (eks []wire.EK) {
	t.Helper()
	for range n {
		eks = append(eks, wire.EK{Pub: node(t).EK()})
	}
	return eks
}

// TestAttributes: of a node key's and an EK's attributes each bit is as the template has it, or it is
// refused; and nothing else of the public area may differ either.
func TestAttributes(t *testing.T) {
	n := node(t)
	for bit := range 32 {
		for what, area := range map[string][]byte{"key": n.Key(), "EK": n.EK()} {
			flipped := slices.Clone(area)
			flipped[4+3-bit/8] ^= 1 << (bit % 8) // type, nameAlg, then TPMA_OBJECT
			r := n.ChallengeRequest("n0")
			if what == "key" {
				r.Key = flipped
			} else {
				r.EKs[0].Pub = flipped
			}
			if _, err := ParseClaim(wire.Encode(r)); err == nil {
				t.Errorf("%s: bit %d of the attributes may be anything", what, bit)
			}
		}
	}
	for i := range len(n.Key()) - 2 - 32 - 2 - 32 {
		r := n.ChallengeRequest("n0")
		r.Key = slices.Clone(r.Key)
		r.Key[i] ^= 1
		if _, err := ParseClaim(wire.Encode(r)); err == nil {
			t.Errorf("byte %d of the key's area may be anything", i)
		}
	}
}

func TestVerify(t *testing.T) {
	v, n := Verifier{NewEpochs(noon)}, node(t)
	a := answered(t, v, n, noon)
	at, err := v.Verify(parsed(t, a), terms, noon)
	if err != nil {
		t.Fatal(err)
	}
	c := claimed(t, n)
	if at.Slot() != "n0" || at.Grant() != "g" || at.Level() != wire.TOFU || at.EK() != c.EKs[0].Fingerprint || at.Key() != c.Key.Fingerprint {
		t.Errorf("got %+v", at)
	}
	if !n.Signer().Public().(*ecdsa.PublicKey).Equal(at.PublicKey()) {
		t.Error("another public key")
	}
	if _, err := v.Verify(parsed(t, a), terms, noon.Add(Life)); err != nil {
		t.Errorf("at its last second: %v", err)
	}
}

// TestVerifyBindsTheTerms: each field of the terms, as the record has them when the answer comes.
func TestVerifyBindsTheTerms(t *testing.T) {
	v, n := Verifier{NewEpochs(noon)}, node(t)
	a := parsed(t, answered(t, v, n, noon))
	for i := range reflect.TypeFor[Terms]().NumField() {
		changed := terms
		reflect.ValueOf(&changed).Elem().Field(i).SetString("pinned")
		if at, err := v.Verify(a, changed, noon); err != ErrStale || at != nil {
			t.Errorf("%s is not bound", reflect.TypeFor[Terms]().Field(i).Name)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	v, n := Verifier{NewEpochs(noon)}, node(t)
	for name, change := range map[string]func(*wire.EnrollRequest){
		"exp":          func(a *wire.EnrollRequest) { a.Exp++ },
		"epoch":        func(a *wire.EnrollRequest) { a.Epoch += "0" },
		"slot":         func(a *wire.EnrollRequest) { a.Slot = "n1" },
		"level":        func(a *wire.EnrollRequest) { a.Level = wire.Pinned },
		"CSR":          func(a *wire.EnrollRequest) { a.CSR = append(a.CSR, 0) },
		"key":          func(a *wire.EnrollRequest) { a.Key = node(t).Key() },
		"proof":        func(a *wire.EnrollRequest) { a.Proof[31] ^= 1 },
		"proof's end":  func(a *wire.EnrollRequest) { a.Proof = a.Proof[:31] },
		"proof longer": func(a *wire.EnrollRequest) { a.Proof = append(a.Proof, 0) },
		"no proof":     func(a *wire.EnrollRequest) { a.Proof = nil },
		"EK": func(a *wire.EnrollRequest) {
			o := node(t)
			a.EKs[0].Pub, a.EK = o.EK(), claimed(t, o).EKs[0].Fingerprint
		},
	} {
		a := answered(t, v, n, noon)
		change(&a)
		if at, err := v.Verify(parsed(t, a), terms, noon); err != ErrStale || at != nil {
			t.Errorf("%s: got %v, %v", name, at, err)
		}
	}
	a := parsed(t, answered(t, v, n, noon))
	for name, at := range map[string]time.Time{"a second too late": noon.Add(Life + time.Second), "before it was made": noon.Add(-time.Second)} {
		if _, err := v.Verify(a, terms, at); err != ErrStale {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := (Verifier{NewEpochs(noon)}).Verify(a, terms, noon); err != ErrStale {
		t.Error("another head's epoch keys accept it")
	}
}

func TestAnswerForms(t *testing.T) {
	v, n := Verifier{NewEpochs(noon)}, node(t)
	for name, change := range map[string]func(*wire.EnrollRequest){
		"version":        func(a *wire.EnrollRequest) { a.V = 2 },
		"two EKs":        func(a *wire.EnrollRequest) { a.EKs = append(a.EKs, a.EKs[0]) },
		"no EK":          func(a *wire.EnrollRequest) { a.EKs = nil },
		"a certificate":  func(a *wire.EnrollRequest) { a.EKs[0].Certs = [][]byte{{1}} },
		"another hash":   func(a *wire.EnrollRequest) { a.EK = strings.Repeat("0", 64) },
		"hash in HEX":    func(a *wire.EnrollRequest) { a.EK = strings.ToUpper(a.EK) },
		"EK is the key":  func(a *wire.EnrollRequest) { a.EKs[0].Pub = a.Key },
		"key is an EK":   func(a *wire.EnrollRequest) { a.Key = a.EKs[0].Pub },
		"no level":       func(a *wire.EnrollRequest) { a.Level = "" },
		"slot too long":  func(a *wire.EnrollRequest) { a.Slot = strings.Repeat("n", 254) },
		"epoch too long": func(a *wire.EnrollRequest) { a.Epoch = strings.Repeat("e", 254) },
		"node too long":  func(a *wire.EnrollRequest) { a.Node = strings.Repeat("n", 254) },
	} {
		a := answered(t, v, n, noon)
		change(&a)
		if p, err := ParseAnswer(wire.Encode(a)); err == nil || p != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestChallengesDiffer: 1,000 challenges to the very same claim, across a restart and a rotation, share
// nothing that hides the secret (Keylime CVE-2026-6420: a nonce that was a constant).
func TestChallengesDiffer(t *testing.T) {
	v, n := Verifier{NewEpochs(noon)}, node(t)
	seen := map[string]bool{}
	proofs := map[string]bool{}
	for i := range 1000 {
		switch i {
		case 300:
			again, err := ParseEpochs(v.Epochs.Marshal())
			if err != nil {
				t.Fatal(err)
			}
			v.Epochs = again
		case 600:
			v.Epochs.Replace(v.Epochs.Rotated(noon))
		}
		ch := challenged(t, v, n, noon)
		id, enc := hex.EncodeToString(ch.IDObject), hex.EncodeToString(ch.EncSecret)
		if seen[id] || seen[enc] {
			t.Fatalf("challenge %d was given before", i)
		}
		seen[id], seen[enc] = true, true
		a, err := n.Answer("n0", ch)
		if err != nil {
			t.Fatal(err)
		}
		proofs[hex.EncodeToString(a.Proof)] = true
	}
	if len(proofs) != 2 { // the secret itself is the transcript's: one for each epoch
		t.Errorf("%d different secrets, want one for each epoch", len(proofs))
	}
	at := noon
	for range 1000 {
		at = at.Add(time.Second)
		a := answered(t, v, n, at)
		if p := hex.EncodeToString(a.Proof); proofs[p] {
			t.Fatalf("the secret of %v was used before", at)
		} else {
			proofs[p] = true
		}
	}
}

func TestEpochs(t *testing.T) {
	e := NewEpochs(noon)
	v, n := Verifier{e}, node(t)
	first := parsed(t, answered(t, v, n, noon))
	next := e.Rotated(noon.Add(EpochLife))
	if len(e.ring) != 1 {
		t.Error("Rotated has changed the ring in use")
	}
	e.Replace(next)
	if _, err := v.Verify(first, terms, noon); err != nil {
		t.Errorf("of the previous epoch: %v", err)
	}
	e.Replace(e.Rotated(noon.Add(2 * EpochLife)))
	if _, err := v.Verify(first, terms, noon); err != ErrStale {
		t.Errorf("of the one before: %v", err)
	}
	if len(e.ring) != 2 || bytes.Equal(e.ring[0].key, e.ring[1].key) || e.ring[0].id == e.ring[1].id {
		t.Errorf("%d epochs, or one twice", len(e.ring))
	}
	for after, want := range map[time.Duration]bool{0: false, EpochLife - 1: false, EpochLife: true, -EpochLife: false, -EpochLife - 1: true} {
		if got := NewEpochs(noon).Due(noon.Add(after)); got != want {
			t.Errorf("due %v after: %v", after, got)
		}
	}
}

func TestEpochFile(t *testing.T) {
	e := NewEpochs(noon).Rotated(noon.Add(time.Hour))
	file := e.Marshal()
	again, err := ParseEpochs(file)
	if err != nil || !bytes.Equal(again.Marshal(), file) {
		t.Fatalf("read back: %v", err)
	}
	v, n := Verifier{e}, node(t)
	a := parsed(t, answered(t, v, n, noon))
	if _, err := (Verifier{again}).Verify(a, terms, noon); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	key := hex.EncodeToString(e.ring[0].key)
	for name, bad := range map[string]string{
		"nothing":        "",
		"not JSON":       "x",
		"another schema": strings.Replace(string(file), "/v1", "/v2", 1),
		"no epoch":       `{"schema":"muster.epochs/v1","epochs":[]}`,
		"three epochs":   `{"schema":"muster.epochs/v1","epochs":[{},{},{}]}`,
		"a short key":    strings.Replace(string(file), key, key[:62], 1),
		"no key":         strings.Replace(string(file), key, "", 1),
		"not hex":        strings.Replace(string(file), key, "zz"+key[2:], 1),
		"no id":          strings.Replace(string(file), e.ring[0].id, "", 1),
		"cut short":      string(file[:len(file)-5]),
	} {
		got, err := ParseEpochs([]byte(bad))
		if err == nil || got != nil {
			t.Errorf("%s: accepted", name)
		}
		if err != nil && strings.Contains(err.Error(), key[:16]) {
			t.Errorf("%s: the error quotes the key: %v", name, err)
		}
	}
}

// TestSecretsAreNotPrinted: whatever the verb, and whatever struct holds them.
func TestSecretsAreNotPrinted(t *testing.T) {
	e := NewEpochs(noon)
	key := []byte(e.ring[0].key)
	for _, v := range []any{e.ring[0].key, e.ring[0], e.ring, e, Verifier{e}, &Verifier{e}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U"} {
			got := fmt.Sprintf(verb, v)
			for _, form := range []string{"%s", "%x", "%X", "%d", "%v", "%#v", "%q", "%o", "%b"} {
				if secret := fmt.Sprintf(form, key); strings.Contains(got, strings.Trim(secret, "[]\"")) {
					t.Errorf("%T as %s: holds the key as %s", v, verb, form)
				}
			}
		}
	}
	if b, err := e.ring[0].key.MarshalJSON(); err == nil || b != nil {
		t.Errorf("as JSON: %s", b)
	}
	if got := e.ring[0].key.LogValue().String(); got != "(secret)" {
		t.Errorf("in a log: %s", got)
	}
}

func FuzzParseClaim(f *testing.F) {
	f.Add(wire.Encode(node(f).ChallengeRequest("n0")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseClaim(b)
		if err != nil {
			if c != nil {
				t.Fatal("an error, and a claim")
			}
			return
		}
		c.CheckCSR()
		if got := encodeClaim(c, b); !bytes.Equal(got, b) {
			t.Fatalf("got\n%s\nof\n%s", got, b)
		}
		for _, k := range append(c.EKs, c.Key) {
			pub := k.TPMT()
			name, err := tpm2.ObjectName(&pub)
			if err != nil || !bytes.Equal(tpm2.Marshal(pub), k.Area) || !bytes.Equal(name.Buffer, k.Name) {
				t.Fatalf("go-tpm reads %x as %+v, %v", k.Area, pub, err)
			}
		}
	})
}

// encodeClaim is the request that c was read from; only the certificates, which a claim does not keep,
// are taken from the body itself.
func encodeClaim(c *Claim, body []byte) []byte {
	var sent wire.ChallengeRequest
	if err := wire.Decode(body, &sent); err != nil {
		return nil
	}
	r := wire.ChallengeRequest{V: wire.Version, Node: c.Node, Hints: c.Hints, Key: c.Key.Area, CSR: c.csr}
	for i, ek := range c.EKs {
		r.EKs = append(r.EKs, wire.EK{Pub: ek.Area, Certs: sent.EKs[i].Certs})
	}
	return wire.Encode(r)
}

func FuzzParseAnswer(f *testing.F) {
	v := Verifier{NewEpochs(noon)}
	f.Add(wire.Encode(answered(f, v, node(f), noon)))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnswer(b)
		if err != nil {
			if a != nil {
				t.Fatal("an error, and an answer")
			}
			return
		}
		if a.EK.Fingerprint == a.Key.Fingerprint || a.Level.Rank() == 0 || len(a.EK.Name) == 0 {
			t.Fatalf("accepted %+v", a)
		}
		// Nothing that is made up proves anything.
		fresh := Verifier{NewEpochs(noon)}
		if at, err := fresh.Verify(a, Terms{Slot: a.Slot, Level: a.Level}, time.Unix(a.exp, 0)); err != ErrStale || at != nil {
			t.Fatalf("verified: %+v", at)
		}
	})
}

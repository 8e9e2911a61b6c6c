package signer

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/wire"
)

// untouched enrols the true node with the grant that was open before a hostile request.
func untouched(t *testing.T, s *site, grant string, node enroller, name string) {
	t.Helper()
	if rec := s.record(name); rec.grantID() != grant || rec.Grant.Used || rec.Cert != nil {
		t.Errorf("the grant was touched: %+v", rec)
	}
	s.enrol(node, name)
	if rec := s.record(name); rec.grantID() != grant || !rec.Grant.Used {
		t.Errorf("the node enrolled with another grant: %+v", rec.Grant)
	}
}

func nodeKeyBut(change func(*tpm2.TPMTPublic)) tpm2.TPMTPublic {
	pub := template.NodeKey(template.P256)
	change(&pub)
	return pub
}

// TestWrongKeys: keys that a TPM does hold, but that are no node keys.
func TestWrongKeys(t *testing.T) {
	c := aChip(t)
	node := c.nodeKey()
	made := func(change func(*tpm2.TPMTPublic)) *key { return c.key(nodeKeyBut(change)) }
	for name, k := range map[string]*key{
		"imported software key":       c.softKey(),
		"not fixedTPM nor -Parent":    made(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false }),
		"without noDA":                made(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false }),
		"without userWithAuth":        made(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = false }),
		"decrypt too":                 made(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true }),
		"decrypt only":                made(decryptOnly),
		"restricted":                  made(restricted),
		"a scheme of its own":         made(func(p *tpm2.TPMTPublic) { setScheme(p) }),
		"a policy":                    made(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) }),
		"a name of another algorithm": made(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 }),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.enable("n0")
			grant := s.record("n0").grantID()
			if k.csr == nil {
				k.csr = node.csr
			}
			refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.BadRequest)
			answer := s.answered(node, "n0")
			answer.Key, answer.CSR = tpm2.Marshal(k.area), k.csr
			refusedWith(t, s.post(wire.PathEnroll, answer), wire.BadRequest)
			untouched(t, s, grant, node, "n0")
		})
	}
}

func decryptOnly(p *tpm2.TPMTPublic) {
	p.ObjectAttributes.SignEncrypt, p.ObjectAttributes.Decrypt = false, true
}

func restricted(p *tpm2.TPMTPublic) {
	p.ObjectAttributes.Restricted = true
	setScheme(p)
}

func setScheme(p *tpm2.TPMTPublic) {
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
		Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		CurveID: tpm2.TPMECCNistP256,
		KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
	})
}

// TestActivationAloneProvesNothing: an imported software key activates, in a real TPM, with the Name
// that it honestly has. So only the exact public area keeps it out; and with a public area that
// lies, the Name is another, and it does not activate.
func TestActivationAloneProvesNothing(t *testing.T) {
	s, c := newSite(t), aChip(t)
	soft, node := c.softKey(), c.nodeKey()
	ek, err := tpm2.ImportEncapsulationKey(&soft.ek.area)
	s.must(err)
	secret := bytes.Repeat([]byte{7}, 32)
	id, enc, err := tpm2.CreateCredential(rand.Reader, ek, nameOf(&soft.area).Buffer, secret)
	s.must(err)
	if got, err := soft.activate(id, enc); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("an imported key no longer activates: %x, %v", got, err)
	}

	s.enable("n0")
	grant := s.record("n0").grantID()
	liar := *soft
	liar.area.ObjectAttributes = template.NodeKey(template.P256).ObjectAttributes
	challenge := s.challenged(&liar, "n0")
	if got, err := soft.activate(challenge.IDObject, challenge.EncSecret); err == nil {
		t.Errorf("activated with a Name that is not its own: %x", got)
	}
	for _, guess := range [][]byte{nil, make([]byte, 32), challenge.IDObject} {
		answer, err := liar.answerWith("n0", challenge, guess)
		s.must(err)
		refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	}
	untouched(t, s, grant, node, "n0")
}

// TestWrongClaims: requests that a hostile root on the true node makes of the true one.
func TestWrongClaims(t *testing.T) {
	c := aChip(t)
	node, other := c.nodeKey(), c.nodeKey()
	for name, change := range wrongClaims(t, node, other) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.enable("n0")
			grant := s.record("n0").grantID()
			req := node.ChallengeRequest("n0")
			change(&req)
			refusedWith(t, s.post(wire.PathChallenge, req), wire.BadRequest)
			untouched(t, s, grant, node, "n0")
		})
	}
}

func wrongClaims(t *testing.T, node, other *key) map[string]func(*wire.ChallengeRequest) {
	keyBut := func(change func(*tpm2.TPMTPublic)) func(*wire.ChallengeRequest) {
		area := node.area
		change(&area)
		return func(r *wire.ChallengeRequest) { r.Key = tpm2.Marshal(area) }
	}
	ekBut := func(change func(*tpm2.TPMTPublic)) func(*wire.ChallengeRequest) {
		area := node.ek.area
		change(&area)
		return func(r *wire.ChallengeRequest) { r.EKs[0].Pub = tpm2.Marshal(area) }
	}
	csr := func(b []byte) func(*wire.ChallengeRequest) { return func(r *wire.ChallengeRequest) { r.CSR = b } }
	// The signature's last byte, but not its length, is another.
	forged := slices.Clone(node.csr)
	forged[len(forged)-1] ^= 1
	return map[string]func(*wire.ChallengeRequest){
		"lies of no fixedTPM":              keyBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }),
		"lies of no fixedParent":           keyBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false }),
		"lies of no sensitiveDataOrigin":   keyBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }),
		"key of P-521":                     keyBut(func(p *tpm2.TPMTPublic) { *p = eccArea(*p, tpm2.TPMECCNistP521, 66) }),
		"key off its curve":                keyBut(offCurve),
		"key at infinity":                  keyBut(func(p *tpm2.TPMTPublic) { *p = eccArea(*p, tpm2.TPMECCNistP256, 32) }),
		"key of RSA with exponent 3":       keyBut(func(p *tpm2.TPMTPublic) { *p = rsaArea(t, template.NodeKey(template.RSA2048), 2048, 3) }),
		"key of RSA 1024":                  keyBut(func(p *tpm2.TPMTPublic) { *p = rsaArea(t, template.NodeKey(template.RSA2048), 1024, 0) }),
		"key with bytes behind it":         func(r *wire.ChallengeRequest) { r.Key = append(r.Key, 0) },
		"key cut short":                    func(r *wire.ChallengeRequest) { r.Key = r.Key[:len(r.Key)-1] },
		"key whose Y is said longer":       func(r *wire.ChallengeRequest) { r.Key = lieOfY(r.Key, +1) },
		"key whose Y is said shorter":      func(r *wire.ChallengeRequest) { r.Key = lieOfY(r.Key, -1) },
		"key with a zero before X":         keyBut(padX),
		"no key":                           func(r *wire.ChallengeRequest) { r.Key = nil },
		"key in a TPM2B":                   func(r *wire.ChallengeRequest) { r.Key = tpm2.Marshal(tpm2.New2B(node.area)) },
		"no EK":                            func(r *wire.ChallengeRequest) { r.EKs = nil },
		"EK of no template":                ekBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = true }),
		"EK with another policy":           ekBut(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) }),
		"EK that may sign":                 ekBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true }),
		"EK that is not restricted":        ekBut(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }),
		"EK off its curve":                 ekBut(offCurve),
		"EK of RSA with exponent 3":        ekBut(func(p *tpm2.TPMTPublic) { *p = rsaArea(t, template.EKs()[3].Public, 2048, 3) }),
		"EK of RSA 1024":                   ekBut(func(p *tpm2.TPMTPublic) { *p = rsaArea(t, template.EKs()[3].Public, 1024, 0) }),
		"EK with bytes behind it":          func(r *wire.ChallengeRequest) { r.EKs[0].Pub = append(r.EKs[0].Pub, 0) },
		"EK is the node key":               func(r *wire.ChallengeRequest) { r.EKs[0].Pub = r.Key },
		"EK has the node key's point":      ekBut(func(p *tpm2.TPMTPublic) { p.Unique = node.area.Unique }),
		"EK twice":                         func(r *wire.ChallengeRequest) { r.EKs = append(r.EKs, r.EKs[0]) },
		"more EKs than any TPM has":        func(r *wire.ChallengeRequest) { r.EKs = slices.Repeat(r.EKs, 9) },
		"more certificates than there are": func(r *wire.ChallengeRequest) { r.EKs[0].Certs = make([][]byte, 5) },
		"CSR for another key":              csr(other.csr),
		"CSR forged":                       csr(forged),
		"CSR with bytes behind it":         csr(append(slices.Clone(node.csr), 0)),
		"CSR missing":                      csr(nil),
		"CSR garbage":                      csr([]byte("-----BEGIN CERTIFICATE REQUEST-----")),
		"key of another":                   func(r *wire.ChallengeRequest) { r.Key = tpm2.Marshal(other.area) },
		"another version":                  func(r *wire.ChallengeRequest) { r.V = 2 },
		"no version":                       func(r *wire.ChallengeRequest) { r.V = 0 },
		"an endless name":                  func(r *wire.ChallengeRequest) { r.Node = strings.Repeat("n", 254) },
		"an endless UUID":                  func(r *wire.ChallengeRequest) { r.Hints.UUID = strings.Repeat("0", 254) },
		"an endless serial number":         func(r *wire.ChallengeRequest) { r.Hints.Serial = strings.Repeat("0", 254) },
		"an endless MAC":                   func(r *wire.ChallengeRequest) { r.Hints.MACs = []string{strings.Repeat("0", 254)} },
		"MACs without end":                 func(r *wire.ChallengeRequest) { r.Hints.MACs = make([]string, 33) },
	}
}

// offCurve flips a bit of Y.
func offCurve(p *tpm2.TPMTPublic) {
	point, _ := p.Unique.ECC()
	y := slices.Clone(point.Y.Buffer)
	y[31] ^= 1
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: point.X, Y: tpm2.TPM2BECCParameter{Buffer: y}})
}

func padX(p *tpm2.TPMTPublic) {
	point, _ := p.Unique.ECC()
	x := append([]byte{0}, point.X.Buffer...)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: point.Y})
}

// lieOfY changes the size field of Y, the last field of an ECC area, but not Y.
func lieOfY(area []byte, by int) []byte {
	b := slices.Clone(area)
	b[len(b)-33] = byte(32 + by)
	return b
}

// eccArea is an area on another curve, with a point of zeros.
func eccArea(p tpm2.TPMTPublic, curve tpm2.TPMECCCurve, size int) tpm2.TPMTPublic {
	parms, _ := p.Parameters.ECCDetail()
	changed := *parms
	changed.CurveID = curve
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &changed)
	zero := tpm2.TPM2BECCParameter{Buffer: make([]byte, size)}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: zero, Y: zero})
	return p
}

// rsaArea is p with a modulus of its own.
func rsaArea(t *testing.T, p tpm2.TPMTPublic, bits int, exponent uint32) tpm2.TPMTPublic {
	t.Helper()
	parms, err := p.Parameters.RSADetail()
	if err != nil {
		t.Fatal(err)
	}
	changed := *parms
	changed.KeyBits, changed.Exponent = tpm2.TPMKeyBits(bits), exponent
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &changed)
	modulus := bytes.Repeat([]byte{0xA5}, bits/8) // odd and of full length; it need not be a product
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: modulus})
	return p
}

// TestWrongAnswers: answers that do not fit the challenge, each made of one that does.
func TestWrongAnswers(t *testing.T) {
	c := aChip(t)
	node, other := c.nodeKey(), c.nodeKey()
	stranger := aChip(t).nodeKey()
	type answer = wire.EnrollRequest
	for name, test := range map[string]struct {
		spoil func(*site, *answer)
		want  wire.Code
	}{
		"too late":          {func(s *site, a *answer) { s.clock.move(5*time.Minute + time.Second) }, wire.StaleChallenge},
		"for another slot":  {func(s *site, a *answer) { a.Slot = "n1" }, wire.StaleChallenge},
		"for no slot":       {func(s *site, a *answer) { a.Slot = "n9" }, wire.StaleChallenge},
		"for another CSR":   {func(s *site, a *answer) { a.CSR = csrBy(t, node) }, wire.StaleChallenge},
		"at another level":  {func(s *site, a *answer) { a.Level = wire.Pinned }, wire.StaleChallenge},
		"at no level":       {func(s *site, a *answer) { a.Level = "high" }, wire.BadRequest},
		"later expiry":      {func(s *site, a *answer) { a.Exp++ }, wire.StaleChallenge},
		"earlier expiry":    {func(s *site, a *answer) { a.Exp-- }, wire.StaleChallenge},
		"no expiry":         {func(s *site, a *answer) { a.Exp = 1 << 62 }, wire.StaleChallenge},
		"revived":           {func(s *site, a *answer) { s.clock.move(6 * time.Minute); a.Exp += 360 }, wire.StaleChallenge},
		"unknown epoch":     {func(s *site, a *answer) { a.Epoch = "0123456789abcdef" }, wire.StaleChallenge},
		"no epoch":          {func(s *site, a *answer) { a.Epoch = "" }, wire.StaleChallenge},
		"an endless epoch":  {func(s *site, a *answer) { a.Epoch = strings.Repeat("e", 254) }, wire.BadRequest},
		"no proof":          {func(s *site, a *answer) { a.Proof = nil }, wire.StaleChallenge},
		"half a proof":      {func(s *site, a *answer) { a.Proof = a.Proof[:16] }, wire.StaleChallenge},
		"another TPM's":     {func(s *site, a *answer) { a.Proof = s.answered(stranger, "n0").Proof }, wire.StaleChallenge},
		"another challenge": {func(s *site, a *answer) { s.clock.move(time.Second); a.Proof = s.answered(node, "n0").Proof }, wire.StaleChallenge},
		"another key":       {func(s *site, a *answer) { a.Key, a.CSR = tpm2.Marshal(other.area), other.csr }, wire.StaleChallenge},
		"another EK": {func(s *site, a *answer) {
			a.EK, a.EKs[0].Pub = stranger.ekHash(), tpm2.Marshal(stranger.ek.area)
		}, wire.StaleChallenge},
		"another EK's hash": {func(s *site, a *answer) { a.EK = stranger.ekHash() }, wire.BadRequest},
		"EK is the key": {func(s *site, a *answer) {
			area := node.ek.area
			area.Unique = node.area.Unique
			a.EK, a.EKs[0].Pub = node.hash(), tpm2.Marshal(area)
		}, wire.BadRequest},
		"two EKs":           {func(s *site, a *answer) { a.EKs = append(a.EKs, wire.EK{Pub: tpm2.Marshal(stranger.ek.area)}) }, wire.BadRequest},
		"no EK":             {func(s *site, a *answer) { a.EKs = nil }, wire.BadRequest},
		"an EK certificate": {func(s *site, a *answer) { a.EKs[0].Certs = [][]byte{{1}} }, wire.BadRequest},
		"another version":   {func(s *site, a *answer) { a.V = 2 }, wire.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.enable("n[0-1]")
			grant := s.record("n0").grantID()
			answer := s.answered(node, "n0")
			test.spoil(s, &answer)
			refusedWith(t, s.post(wire.PathEnroll, answer), test.want)
			untouched(t, s, grant, node, "n0")
		})
	}
}

// TestAnswerToAnotherGrant: a proof stands for the grant that the challenge was made under.
func TestAnswerToAnotherGrant(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	old := s.answered(k, "n0")
	s.clock.move(time.Minute)
	s.disable("n0")
	refusedWith(t, s.post(wire.PathEnroll, old), wire.NotEnabled)
	rec := s.record("n0")
	rec.Grant.Until = s.clock.now() // over, so that enable opens another one
	s.putRecord(rec)
	s.enable("n0")
	refusedWith(t, s.post(wire.PathEnroll, old), wire.StaleChallenge)
	untouched(t, s, s.record("n0").grantID(), k, "n0")
}

// TestBindings: one EK a name, one name an EK, one name a key.
func TestBindings(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	s.enable("n[0-2]")
	other := s.answered(c.nodeKey(), "n1") // of the same EK, before it is bound
	s.enrol(k, "n0")

	t.Run("the EK is bound meanwhile", func(t *testing.T) {
		refusedWith(t, s.post(wire.PathEnroll, other), wire.Refused)
		equal(t, "reason", s.reason("n1"), whyEKTaken)
	})
	t.Run("the name is bound to another EK", func(t *testing.T) {
		stranger := aChip(t).nodeKey()
		refusedWith(t, s.post(wire.PathChallenge, stranger.ChallengeRequest("n0")), wire.NotEnabled)
		equal(t, "reason", s.reason("n0"), whyOtherTPM)
	})
	t.Run("the name is bound meanwhile", func(t *testing.T) {
		stranger, node := aChip(t).nodeKey(), aChip(t).nodeKey()
		late := s.answered(stranger, "n2")
		s.enrol(node, "n2")
		refusedWith(t, s.post(wire.PathEnroll, late), wire.NotEnabled)
		equal(t, "reason", s.reason("n2"), whyOtherTPM)
		s.enrol(node, "n2")
	})
	t.Run("the key has a name already", func(t *testing.T) {
		c.addEK(template.EKs()[1]) // to the head, another TPM
		again := *k
		again.ek = *c.ek()
		refusedWith(t, s.post(wire.PathEnroll, s.answered(&again, "n1")), wire.Refused)
		equal(t, "reason", s.reason("n1"), whyKeyTaken)
	})
	t.Run("the administrator would bind it twice", func(t *testing.T) {
		if err := s.tryEnable("n1", pinned(k.ekHash())); err == nil {
			t.Error("n0's EK was recorded for n1")
		}
		if err := s.tryEnable("n0", pinned(aChip(t).nodeKey().ekHash())); err == nil {
			t.Error("another EK was recorded for n0")
		}
	})
	untouched(t, s, s.record("n1").grantID(), aChip(t).nodeKey(), "n1")
}

// TestOneGrantOneKey: the grant leads to the first key that proves itself, and after that to no other.
func TestOneGrantOneKey(t *testing.T) {
	s, c := newSite(t), aChip(t)
	first, second := c.nodeKey(), c.nodeKey()
	s.enable("n0")
	late := s.answered(second, "n0")
	cert := s.enrol(first, "n0").Cert
	refusedWith(t, s.post(wire.PathEnroll, late), wire.Refused)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(second, "n0")), wire.Refused)
	equal(t, "reason", s.reason("n0"), whyOtherKey)
	if !bytes.Equal(s.enrol(first, "n0").Cert, cert) {
		t.Error("the first key's certificate is another now")
	}
	s.enable("n0")
	if bytes.Equal(s.enrol(second, "n0").Cert, cert) {
		t.Error("a new grant does not take a new key")
	}
}

// unproven are nodes that the head refuses for reasons that a stranger must not be able to tell apart.
func unproven(t *testing.T) (s *site, names []string, stranger *key) {
	s, stranger = newSite(t), aChip(t).nodeKey()
	owner := aChip(t).nodeKey()
	s.enable("disabled")
	s.disable("disabled")
	s.enable("over", func(r *EnableRequest) { r.For = time.Second })
	s.clock.move(time.Minute)
	s.enable("bound", pinned(owner.ekHash()))
	s.enable("level")
	rec := s.record("level")
	rec.Grant.Level = wire.Pinned
	s.putRecord(rec)
	s.putRecord(&slot{Node: "never"})
	s.putRecord(&slot{Node: "revoked", Revoked: true, Grant: &grant{ID: "g", Until: noon.Add(time.Hour), Level: wire.TOFU}})
	s.putRecord(&slot{Node: "used", Grant: &grant{ID: "g", Until: noon.Add(time.Hour), Level: wire.TOFU, Used: true}})
	return s, []string{"unknown", "", "localhost", "slot.bound", "disabled", "over", "bound", "level", "never", "revoked", "used"}, stranger
}

// TestStrangersLearnNothing: every refusal before proof has the same status, headers and bytes.
func TestStrangersLearnNothing(t *testing.T) {
	s, names, k := unproven(t)
	want := s.post(wire.PathChallenge, k.ChallengeRequest("unknown"))
	refusedWith(t, want, wire.NotEnabled)
	reasons := map[reason]bool{}
	for _, name := range names {
		got := s.post(wire.PathChallenge, k.ChallengeRequest(name))
		if got.status != want.status || !bytes.Equal(got.body, want.body) || !sameHeader(got.header, want.header) {
			t.Errorf("%q: got %d %v %s", name, got.status, got.header, got.body)
		}
		reasons[s.reason(name)] = true
	}
	// `muster why` does know them apart.
	for _, r := range []reason{whyUnknown, whyDisabled, whyWindowOver, whyOtherTPM, whyLevel, whyNotEnabled, whyRevoked} {
		if !reasons[r] {
			t.Errorf("nobody was refused for %q", r)
		}
	}
}

// TestStrangersLearnNothingByLeg2: the same for made-up answers.
func TestStrangersLearnNothingByLeg2(t *testing.T) {
	s, names, k := unproven(t)
	s.enable("open")
	made := s.answered(k, "open")
	made.Slot = "unknown"
	want := s.post(wire.PathEnroll, made)
	refusedWith(t, want, wire.StaleChallenge)
	made.Proof[0] ^= 1
	for _, name := range append(names, "open") {
		made.Slot = name
		got := s.post(wire.PathEnroll, made)
		if got.status != want.status || !bytes.Equal(got.body, want.body) || !sameHeader(got.header, want.header) {
			t.Errorf("%q: got %d %s", name, got.status, got.body)
		}
	}
}

func sameHeader(a, b http.Header) bool {
	var x, y bytes.Buffer
	a.Write(&x)
	b.Write(&y)
	return x.String() == y.String()
}

// TestUnprovenCodes: what only a proven peer may hear.
func TestUnprovenCodes(t *testing.T) {
	for _, code := range []wire.Code{wire.Refused, wire.Revoked, wire.Pending, wire.KeyBarred, wire.NotEnabled} {
		if got := refuse(code, whyForm, "x").unproven(); got != wire.NotEnabled {
			t.Errorf("%s is told as %s before proof", code, got)
		}
	}
}

// TestAfterProof: who has proved itself is told the truth, and it is in the journal, once a minute.
func TestAfterProof(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	s.enrol(c.nodeKey(), "n0")
	second := c.nodeKey()
	refusals := func() (n int) {
		for _, e := range s.journal() {
			if e.Kind == "refuse" && e.Node == "n0" && e.Fields["reason"] == string(whyOtherKey) {
				n++
			}
		}
		return n
	}
	for range 5 {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(second, "n0")), wire.Refused)
	}
	equal(t, "journal entries", refusals(), 1)
	s.clock.move(time.Minute)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(second, "n0")), wire.Refused)
	equal(t, "journal entries a minute later", refusals(), 2)
}

// TestOtherKeyIsRefused: a node that has its certificate for another key of its TPM is told so, and not to wait, whatever
// became of the grant since.
func TestOtherKeyIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		then func(*site)
		why  reason
	}{
		"grant used":  {func(*site) {}, whyOtherKey},
		"window over": {func(s *site) { s.enable("n0"); s.clock.move(2 * time.Hour) }, whyOtherKey},
		"disabled":    {func(s *site) { s.disable("n0") }, whyOtherKey},
		"level": {func(s *site) {
			s.enable("n0")
			rec := s.record("n0")
			rec.Grant.Level = wire.Pinned
			s.putRecord(rec)
		}, whyLevel},
	} {
		t.Run(name, func(t *testing.T) {
			s, chip := newSite(t), aChip(t)
			first, second := chip.nodeKey(), chip.nodeKey()
			next := certificate(t, decoded[wire.Enrolled](t, s.rekeyed(s.active(first, "n0"), second)).Cert)
			equal(t, "first use", use(s.Head, next), "")
			c.then(s)
			refusedWith(t, s.post(wire.PathEnroll, s.answered(first, "n0")), wire.Refused)
			equal(t, "reason", s.reason("n0"), c.why)
			if again := s.enrol(second, "n0").Cert; !bytes.Equal(again, next.Raw) {
				t.Error("the right key gets another certificate")
			}
		})
	}
	// Nobody is to try another key where the one on record is refused as well.
	s, c := newSite(t), aChip(t)
	s.active(c.nodeKey(), "n0")
	s.disable("n0")
	s.clock.move(2 * nodeLife)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(c.nodeKey(), "n0")), wire.NotEnabled)
}

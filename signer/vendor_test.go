package signer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"muster/internal/template"
	"muster/internal/testtpm"
	"muster/internal/wire"
)

// makerOf puts a maker's certificates into ek-roots.
func (s *site) makerOf(name string) *testtpm.Maker {
	s.t.Helper()
	m := testtpm.NewMaker(name)
	dir := filepath.Join(s.dir, "ek-roots")
	s.must(os.MkdirAll(dir, 0o755))
	s.must(os.WriteFile(filepath.Join(dir, name+"-root.pem"), certificatePEM(m.Root), 0o644))
	s.must(os.WriteFile(filepath.Join(dir, name+"-ca.der"), m.Issuer, 0o644))
	return m
}

// vouched is a node whose EK has certificates.
type vouched struct {
	*key
	certs [][]byte
}

func (v vouched) ChallengeRequest(node string) wire.ChallengeRequest {
	req := v.key.ChallengeRequest(node)
	req.EKs[0].Certs = v.certs
	return req
}

func (k *key) ekPublic() any {
	k.chip.t.Helper()
	pub, err := template.Key(&k.ek.area)
	k.chip.must("EK", err)
	return pub
}

func vouchedBy(m *testtpm.Maker, k *key) vouched {
	return vouched{k, [][]byte{m.Certify(k.ekPublic())}}
}

// TestVendor: the maker's certificate raises the level, which then stands in record and certificate, in each of the
// EK's kinds; without it the grant stays shut.
func TestVendor(t *testing.T) {
	for _, ek := range template.EKs() {
		t.Run(ek.Name, func(t *testing.T) {
			s := newSite(t)
			m := s.makerOf("Chip")
			s.enable("n0", atLevel(wire.Vendor))
			k := newChip(t, ek).nodeKey()
			refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.NotEnabled)
			equal(t, "reason", s.reason("n0"), whyVendor)
			cert := certificate(t, s.enrol(vouchedBy(m, k), "n0").Cert)
			level, tcg := policies(cert)
			if len(level) != 1 || level[0] != wire.Vendor || tcg != 2 {
				t.Errorf("level %v, %d policies of the TCG", level, tcg)
			}
			equal(t, "level on record", s.record("n0").Cert.Level, wire.Vendor)
		})
	}
}

// TestVendorIsNotNeeded: whatever is wrong with a certificate, it keeps nobody from a lower level, nor from a
// pinned one; and one that is right raises a level that was not asked for.
func TestVendorIsNotNeeded(t *testing.T) {
	s := newSite(t)
	m, other := s.makerOf("Chip"), testtpm.NewMaker("Chip")
	for i, certs := range [][][]byte{nil, {[]byte("x")}, {other.Root}, {{0x30, 0x82, 0xFF, 0xFF}}} {
		k := aChip(t).nodeKey()
		name := "n" + string(rune('0'+i))
		s.enable(name)
		s.enrol(vouched{k, certs}, name)
		equal(t, "level", s.record(name).Cert.Level, wire.TOFU)
	}
	k := aChip(t).nodeKey()
	s.enable("n8", pinned(k.ekHash()))
	s.enrol(vouched{k, [][]byte{other.Root, []byte("x")}}, "n8")
	equal(t, "level", s.record("n8").Cert.Level, wire.Pinned)
	k = aChip(t).nodeKey()
	s.enable("n9")
	s.enrol(vouchedBy(m, k), "n9")
	equal(t, "level", s.record("n9").Cert.Level, wire.Vendor)
}

// TestRiseToVendor: with a new grant the same key gets a certificate that says more.
func TestRiseToVendor(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	s.enrol(k, "n0")
	m := s.makerOf("Chip")
	s.enrol(vouchedBy(m, k), "n0")
	equal(t, "level without a grant", s.record("n0").Cert.Level, wire.TOFU)
	s.enable("n0", atLevel(wire.Vendor))
	s.enrol(vouchedBy(m, k), "n0")
	equal(t, "level", s.record("n0").Cert.Level, wire.Vendor)
	// A certificate that was not read this time takes nothing away; another key would need it.
	s.enable("n0", atLevel(wire.Vendor))
	s.enrol(k, "n0")
	refusedWith(t, s.post(wire.PathChallenge, k.chip.nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	equal(t, "reason", s.reason("n0"), whyVendor)
}

// TestVendorReplayed: a genuine chip's certificate lends nothing to another EK, nor to software.
func TestVendorReplayed(t *testing.T) {
	s := newSite(t)
	m := s.makerOf("Chip")
	genuine, k, soft := aChip(t).nodeKey(), aChip(t).nodeKey(), aStandin(t)
	stolen := m.Certify(genuine.ekPublic())
	s.enable("n0", atLevel(wire.Vendor))
	refusedWith(t, s.post(wire.PathChallenge, vouched{k, [][]byte{stolen}}.ChallengeRequest("n0")), wire.NotEnabled)
	req := soft.ChallengeRequest("n0")
	req.EKs[0].Certs = [][]byte{stolen, m.Issuer}
	refusedWith(t, s.post(wire.PathChallenge, req), wire.NotEnabled)
	// With the genuine EK beside its own, the challenge is for that, and cannot be opened.
	req.EKs = append(req.EKs, wire.EK{Pub: genuine.ChallengeRequest("").EKs[0].Pub, Certs: [][]byte{stolen}})
	ch := decoded[wire.Challenge](t, s.post(wire.PathChallenge, req))
	equal(t, "EK", ch.EK, genuine.ekHash())
	if _, err := soft.Activate(ch.IDObject, ch.EncSecret); err == nil {
		t.Error("software opened a chip's challenge")
	}
	s.enrol(vouched{genuine, [][]byte{stolen}}, "n0")
}

// TestLevelOfTheAnswer: leg 2 knows no certificates. It takes no level that leg 1 did not bind.
func TestLevelOfTheAnswer(t *testing.T) {
	s := newSite(t)
	m := s.makerOf("Chip")
	k := aChip(t).nodeKey()
	s.enable("n0")
	ch := s.challenged(k, "n0")
	equal(t, "level", ch.Level, wire.TOFU)
	for _, lie := range []wire.Level{wire.Vendor, wire.Pinned} {
		raised := ch
		raised.Level = lie
		a, err := k.Answer("n0", raised)
		s.must(err)
		refusedWith(t, s.post(wire.PathEnroll, a), wire.StaleChallenge)
	}
	// Nor is what leg 1 found at vendor worth less or more.
	ch = s.challenged(vouchedBy(m, k), "n0")
	equal(t, "level", ch.Level, wire.Vendor)
	for _, lie := range []wire.Level{wire.TOFU, wire.Pinned} {
		other := ch
		other.Level = lie
		a, err := k.Answer("n0", other)
		s.must(err)
		refusedWith(t, s.post(wire.PathEnroll, a), wire.StaleChallenge)
	}
	a, err := k.Answer("n0", ch)
	s.must(err)
	// Another head finishes what this one began.
	h, err := s.another()
	s.must(err)
	if r := post(h, wire.PathEnroll, wire.Encode(a)); r.status != 200 {
		t.Fatalf("%s", r.body)
	}
	equal(t, "level", s.record("n0").Cert.Level, wire.Vendor)
}

// TestVendorWaits: the level that was proven stands beside who waits.
func TestVendorWaits(t *testing.T) {
	s := newSite(t)
	m := s.makerOf("Chip")
	k := aChip(t).nodeKey()
	s.enable("n0", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
	equal(t, "level", s.record("n0").Pending.Level, wire.TOFU)
	since := s.record("n0").Pending.Since
	s.clock.move(time.Minute)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(vouchedBy(m, k), "n0")), wire.Pending)
	if p := s.record("n0").Pending; p.Level != wire.Vendor || p.Since != since {
		t.Errorf("%+v", p)
	}
	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}}))
	s.enrol(vouchedBy(m, k), "n0")
	equal(t, "level", s.record("n0").Cert.Level, wire.Vendor)
}

// TestVendorWithoutRoots: what could never be proven is not asked for.
func TestVendorWithoutRoots(t *testing.T) {
	s := newSite(t)
	refusedByPolicy(t, s.tryEnable("n0", atLevel(wire.Vendor)), "root certificates")
	m := s.makerOf("Chip")
	s.enable("n0", atLevel(wire.Vendor))
	s.must(os.RemoveAll(filepath.Join(s.dir, "ek-roots")))
	k := aChip(t).nodeKey()
	refusedWith(t, s.post(wire.PathChallenge, vouchedBy(m, k).ChallengeRequest("n0")), wire.NotEnabled)
	if why := s.why("n0"); !strings.Contains(why.Sentence, "no root is in "+filepath.Join(s.dir, "ek-roots")) {
		t.Error(why.Sentence)
	}
}

// TestRenewVendor: a renewal keeps what the maker vouched for, with another key and after the end, with no certificate in
// sight; the EK is the same.
func TestRenewVendor(t *testing.T) {
	s := newSite(t)
	m := s.makerOf("Chip")
	k := aChip(t).nodeKey()
	s.enable("n0")
	shown := certificate(t, s.enrol(vouchedBy(m, k), "n0").Cert)
	s.must(os.RemoveAll(filepath.Join(s.dir, "ek-roots")))
	other := k.chip.nodeKey()
	decoded[wire.Enrolled](t, s.rekeyed(shown, other))
	equal(t, "level with another key", s.record("n0").Cert.Level, wire.Vendor)
	s.clock.move(2 * nodeLife)
	s.enrol(other, "n0")
	equal(t, "level after the end", s.record("n0").Cert.Level, wire.Vendor)
	if rec := s.record("n0"); !rec.Cert.NotAfter.After(s.clock.now()) {
		t.Errorf("%+v", rec.Cert)
	}
}

// TestDetailIsBounded: a stranger's certificates leave little in memory for each name, whatever they say.
func TestDetailIsBounded(t *testing.T) {
	s := newSite(t)
	s.makerOf("Chip")
	s.enable("n0", atLevel(wire.Vendor))
	soft := aStandin(t)
	req := soft.ChallengeRequest("n0")
	ek, err := template.ReadEK(req.EKs[0].Pub)
	s.must(err)
	for i := range 4 { // each with a complaint of its own
		oid := append([]int{1, 3}, slices.Repeat([]int{127 - i}, 28)...)
		unknown := testtpm.Extension{OID: oid, Critical: 0xFF, Value: []byte{5, 0}}
		req.EKs[0].Certs = append(req.EKs[0].Certs, testtpm.Cert{Issuer: "x", Key: ek.Key, Extensions: append(testtpm.EKExtensions(), unknown)}.Sign(softKey(t)))
	}
	refusedWith(t, s.post(wire.PathChallenge, req), wire.NotEnabled)
	equal(t, "reason", s.reason("n0"), whyVendor)
	if detail := s.seen.of("n0").last.Detail; len(detail) > maxDetail+len("…") || !strings.HasSuffix(detail, "…") || !utf8.ValidString(detail) {
		t.Errorf("%d bytes: %q", len(detail), detail)
	}
	s.seen.note("n1", false, sighting{Detail: strings.Repeat("é", maxDetail)})
	if detail := s.seen.of("n1").last.Detail; len(detail) > maxDetail+len("…") || !utf8.ValidString(detail) {
		t.Errorf("%d bytes: %q", len(detail), detail)
	}
}

// TestOneBudgetForAClaim: what the EKs of a claim cost is bounded together, so that the last finds nothing left where those
// before it used it up.
func TestOneBudgetForAClaim(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	m := s.makerOf("Chip")
	s.enable("n0", atLevel(wire.Vendor))
	req := vouchedBy(m, k).ChallengeRequest("n0")
	last := req.EKs[0]
	req.EKs = nil
	for range 4 {
		one := aStandin(t).ChallengeRequest("n0").EKs[0]
		ek, err := template.ReadEK(one.Pub)
		s.must(err)
		one.Certs = [][]byte{testtpm.Cert{Issuer: "Chip Root", Key: ek.Key, Extensions: testtpm.EKExtensions()}.Sign(softKey(t))}
		for i := range 3 {
			crowd := testtpm.Cert{Issuer: "Chip Root", Subject: "Chip Root", Key: softKey(t).Public(), NotAfter: s.clock.now().AddDate(1+i, 0, 0), Extensions: testtpm.CAExtensions(-1)}
			one.Certs = append(one.Certs, crowd.Sign(softKey(t)))
		}
		req.EKs = append(req.EKs, one)
	}
	req.EKs = append(req.EKs, last)
	refusedWith(t, s.post(wire.PathChallenge, req), wire.NotEnabled)
	if detail := s.seen.of("n0").last.Detail; !strings.Contains(detail, "too many certificates") {
		t.Errorf("%q", detail)
	}
	req.EKs = req.EKs[1:]
	decoded[wire.Challenge](t, s.post(wire.PathChallenge, req))
}

package signer

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
)

func (s *site) replaceBoard(name string, options ...func(*ReplaceRequest)) error {
	req := ReplaceRequest{ID: name, For: time.Hour}
	for _, option := range options {
		option(&req)
	}
	_, err := s.adminReplace(context.Background(), req, noStream())
	return err
}

// TestReplace: the old TPM's certificates end and its keys stay barred, wherever it goes; this name is another's, once.
func TestReplace(t *testing.T) {
	s, old, board := newSite(t), aChip(t), aChip(t)
	first, second := old.nodeKey(), old.nodeKey()
	s.enable("n0")
	unused := certificate(t, s.enrol(first, "n0").Cert)
	s.enable("n0")
	cert := certificate(t, s.enrol(second, "n0").Cert)
	equal(t, "first use", use(s.Head, cert), "")
	early := s.answered(second, "n0")
	k := board.nodeKey()
	refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.NotEnabled)
	if why := s.why("n0"); !strings.Contains(why.Hint, "muster certs replace -i n0") || !strings.Contains(why.Sentence, k.ekHash()) {
		t.Errorf("%+v", why)
	}

	s.must(s.replaceBoard("n0"))
	equal(t, "use of the old certificate", use(s.Head, cert), wire.NotEnabled)
	for _, e := range s.crlServed().RevokedCertificateEntries {
		equal(t, "reason", e.ReasonCode, int(superseded))
	}
	wantListed(t, s.crlServed(), cert, unused)
	refusedWith(t, s.post(wire.PathEnroll, early), wire.StaleChallenge)
	// The old board, back under its old name.
	refusedWith(t, s.post(wire.PathChallenge, old.nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	if why := s.why("n0"); !strings.Contains(why.Sentence, "taken out of n0") {
		t.Errorf("%+v", why)
	}
	// And elsewhere: its keys are barred, another one is good.
	s.enable("n1")
	for _, k := range []*key{first, second} {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n1")), wire.KeyBarred)
	}
	s.enrol(old.nodeKey(), "n1")
	// The new board, and nobody after it.
	s.enrol(k, "n0")
	refusedWith(t, s.post(wire.PathChallenge, aChip(t).nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	equal(t, "EK", s.record("n0").EK, k.ekHash())
}

// TestReplaceOptions: the new board may be named, or wait for approval; a revoked node may be replaced too.
func TestReplaceOptions(t *testing.T) {
	s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()))
	s.enrol(k, "n0")
	s.revoke(RevokeRequest{IDs: []string{"n0"}, Reason: "keyCompromise"})
	refusedByPolicy(t, s.replaceBoard("n0", func(r *ReplaceRequest) { r.EK = k.ekHash() }), "enable --again")
	s.must(s.replaceBoard("n0", func(r *ReplaceRequest) { r.EK, r.Level = other.ekHash(), wire.Pinned }))
	refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.NotEnabled)
	s.enrol(other, "n0")
	equal(t, "level", s.record("n0").Cert.Level, wire.Pinned)

	s.must(s.replaceBoard("n0", func(r *ReplaceRequest) { r.Approve = true }))
	third := aChip(t).nodeKey()
	refusedWith(t, s.post(wire.PathEnroll, s.answered(third, "n0")), wire.Pending)
	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}}))
	s.enrol(third, "n0")
	// The wrong board was pulled: the administrator's word takes it back, with another key.
	s.must(s.replaceBoard("n0"))
	refusedByPolicy(t, s.tryEnable("n0", pinned(third.ekHash())), "muster certs enable -i n0 --take-back --ek "+third.ekHash())
	s.enable("n0", pinned(third.ekHash()), func(r *EnableRequest) { r.TakeBack = true })
	refusedWith(t, s.post(wire.PathEnroll, s.answered(third, "n0")), wire.KeyBarred)
	s.enrol(third.chip.nodeKey(), "n0")
}

// TestReplaceRefusals: nothing changes.
func TestReplaceRefusals(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	before := len(s.journal())
	refusedByPolicy(t, s.replaceBoard("n0"), "muster certs enable -i n0")
	for what, err := range map[string]error{
		"unknown":  s.replaceBoard("n9"),
		"two":      s.replaceBoard("n[0-1]"),
		"a whim":   s.replaceBoard("n0", func(r *ReplaceRequest) { r.Reason = "whim" }),
		"no level": s.replaceBoard("n0", func(r *ReplaceRequest) { r.Level = "high" }),
		"window":   s.replaceBoard("n0", func(r *ReplaceRequest) { r.For = 0 }),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	equal(t, "journal", len(s.journal()), before)
	s.enrol(k, "n0")
	s.enable("n1", pinned(aChip(t).nodeKey().ekHash()))
	refusedByPolicy(t, s.replaceBoard("n0", func(r *ReplaceRequest) { r.EK, r.Level = s.record("n1").EK, wire.Pinned }), "show -i n1")
	equal(t, "EK", s.record("n0").EK, k.ekHash())
}

// TestReplaceTakesTheBoardsAddresses: MACs and UUID were the old board's, and may be another node's.
func TestReplaceTakesTheBoardsAddresses(t *testing.T) {
	s, k, next := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.imports("name,mac\nn0," + mac1 + "\n")
	s.enable("n0")
	s.enrol(hinted{k, wire.Hints{MACs: []string{mac1}}}, "n0")
	s.must(s.replaceBoard("n0"))
	s.enrol(hinted{next, wire.Hints{MACs: []string{mac2}}}, "n0")
	s.imports("name,mac\nn0," + mac2 + "\nn1," + mac1 + "\n")
	s.enable("n1")
	s.enrol(hinted{k.chip.nodeKey(), wire.Hints{MACs: []string{mac1}}}, "")
	equal(t, "EK", s.record("n1").EK, k.ekHash())
}

// TestReplacedStaysOut: a board that was taken out comes back by no table, habit or second replacement, but by the
// administrator's word alone.
func TestReplacedStaysOut(t *testing.T) {
	s := newSite(t)
	a, b, c := aChip(t).nodeKey(), aChip(t).nodeKey(), aChip(t).nodeKey()
	table := "name,ek\nn0," + a.ekHash() + "\n"
	s.imports(table)
	s.active(a, "n0")
	s.must(s.replaceBoard("n0", func(r *ReplaceRequest) { r.Approve = true }))
	refused := func() {
		t.Helper()
		was := s.state()
		_, err := s.tryImport(table)
		refusedByPolicy(t, err, "--take-back --ek "+a.ekHash())
		refusedByPolicy(t, s.tryEnable("n0", pinned(a.ekHash())), "--take-back --ek "+a.ekHash())
		refusedWith(t, s.post(wire.PathChallenge, a.chip.nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
		equal(t, "reason", s.reason("n0"), whyReplaced)
		if why := s.why("n0"); !strings.Contains(why.Hint, "--take-back --ek "+a.ekHash()) {
			t.Errorf("%+v", why)
		}
		if !reflect.DeepEqual(s.state(), was) {
			t.Error("a refusal changed the record")
		}
	}
	refused()
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}, EK: a.ekHash()}), "muster certs approve -i n0 --take-back --ek "+a.ekHash())
	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}, EK: b.ekHash()}))
	refused() // while the new one is on record, too
	equal(t, "first use", use(s.Head, certificate(t, s.enrol(b, "n0").Cert)), "")
	refused()
	again := func(r *ReplaceRequest) { r.EK, r.Level = a.ekHash(), wire.Pinned }
	refusedByPolicy(t, s.replaceBoard("n0", again), "muster certs replace -i n0 --take-back --ek "+a.ekHash())
	s.must(s.replaceBoard("n0", func(r *ReplaceRequest) { r.Level = wire.TOFU }))
	refused()
	s.enrol(c, "n0")
	refusedWith(t, s.post(wire.PathChallenge, b.chip.nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	equal(t, "reason", s.reason("n0"), whyReplaced)

	s.must(s.replaceBoard("n0", again, func(r *ReplaceRequest) { r.TakeBack = true }))
	s.enrol(a.chip.nodeKey(), "n0")
	if got, want := s.record("n0").Replaced, []string{b.ekHash(), c.ekHash()}; !slices.Equal(got, want) {
		t.Errorf("taken out: %q, want %q", got, want)
	}
}

// TestReplacedAreBounded: beyond a number the oldest is forgotten, which the journal tells.
func TestReplacedAreBounded(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	s.enrol(k, "n0")
	rec := s.record("n0")
	for i := range maxReplaced {
		rec.Replaced = append(rec.Replaced, strings.Repeat("0", 62)+fmt.Sprintf("%02x", i))
	}
	s.putRecord(rec)
	s.must(s.replaceBoard("n0"))
	got := s.record("n0").Replaced
	equal(t, "how many", len(got), maxReplaced)
	equal(t, "newest", got[maxReplaced-1], k.ekHash())
	equal(t, "oldest", got[0], rec.Replaced[1])
	told := ""
	for _, e := range s.journal() {
		if e.Kind == "replace" {
			told = e.Fields["forgotten"]
		}
	}
	equal(t, "forgotten", told, rec.Replaced[0])
}

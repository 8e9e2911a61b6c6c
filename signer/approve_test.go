package signer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/internal/standin"
	"muster/internal/wire"
)

func withApproval(r *EnableRequest) { r.Approve = true }
func learning(r *EnableRequest)     { r.Learn = true }

// approve approves who waits now, unless req says who was seen.
func (s *site) approve(req ApproveRequest) error {
	req.For = time.Hour
	if req.Expect == nil && req.EK == "" {
		req.Expect = s.candidates(func(s *slot) *Candidate { return s.Pending })
	}
	_, err := s.adminApprove(context.Background(), req, noStream())
	return err
}

// candidates are the EKs, by name, that a table for the administrator shows.
func (s *site) candidates(of func(*slot) *Candidate) map[string]string {
	seen := map[string]string{}
	for item, err := range s.store.List(context.Background(), prefixSlot) {
		s.must(err)
		rec, err := parse[slot](item)
		s.must(err)
		if c := of(rec); c != nil {
			seen[rec.Node] = c.EK
		}
	}
	return seen
}

// learned pins what is learned by now.
func (s *site) learned(r *EnableRequest) {
	r.Learned, r.Level, r.Expect = true, wire.Pinned, s.candidates(func(s *slot) *Candidate { return s.Learned })
}

// refusedByPolicy fails the test unless err says how to go on.
func refusedByPolicy(t *testing.T, err error, hint string) {
	t.Helper()
	var e *AdminError
	if !errors.As(err, &e) || e.Kind != KindPolicy || !strings.Contains(e.Hint, hint) {
		t.Errorf("got %v (%+v), want a hint with %q", err, e, hint)
	}
}

// TestApprove: the first TPM waits, on record, through a restart; when approved it gets its certificate by the very
// answer that it sent before, and another TPM gets none.
func TestApprove(t *testing.T) {
	s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", withApproval)
	equal(t, "state", s.record("n0").state(s.clock.now()), StateOpen)
	answer := s.answered(k, "n0")
	equal(t, "state after leg 1", s.record("n0").state(s.clock.now()), StateOpen)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.Pending)
	before := len(s.journal())
	for range 3 {
		refusedWith(t, s.post(wire.PathEnroll, answer), wire.Pending)
	}
	equal(t, "journal of a wait", len(s.journal()), before)

	// Another TPM changes nothing about who waits.
	refusedWith(t, s.post(wire.PathEnroll, s.answered(other, "n0")), wire.Pending)
	if why := s.why("n0").Sentence; !strings.Contains(why, "two TPMs") || !strings.Contains(why, other.ekHash()) || !strings.Contains(why, k.ekHash()) {
		t.Error(why)
	}
	s.restart()
	rec := s.record("n0")
	equal(t, "state", rec.state(s.clock.now()), StatePending)
	equal(t, "who waits", rec.Pending.EK, k.ekHash())
	if why := s.why("n0"); !strings.Contains(why.Sentence, k.ekHash()) || !strings.Contains(why.Hint, "muster certs approve -i n0") {
		t.Errorf("%+v", why)
	}

	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}}))
	refusedWith(t, s.post(wire.PathChallenge, other.ChallengeRequest("n0")), wire.NotEnabled)
	cert := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer)).Cert
	equal(t, "first use", use(s.Head, certificate(t, cert)), "")
	equal(t, "level", s.record("n0").Cert.Level, wire.TOFU)
	if s.record("n0").Pending != nil {
		t.Error("it still waits")
	}
}

// TestApproveAnother: a stranger that was first does not keep the right TPM out, and gets nothing.
func TestApproveAnother(t *testing.T) {
	s, k, stranger := newSite(t), aChip(t).nodeKey(), aStandin(t)
	s.enable("n0", withApproval)
	early := s.answered(stranger, "n0")
	refusedWith(t, s.post(wire.PathEnroll, early), wire.Pending)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}, EK: k.ekHash()}))
	refusedWith(t, s.post(wire.PathEnroll, early), wire.NotEnabled)
	s.enrol(k, "n0")
	equal(t, "level", s.record("n0").Cert.Level, wire.Pinned)
}

// TestPendingIsNotAnyStrangers: what is not proven leaves no record, under however many names.
func TestPendingIsNotAnyStrangers(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("n%d", i))
		s.enable(names[i], withApproval)
	}
	before, stranger := len(s.journal()), aStandin(t)
	for _, name := range names {
		ch := s.challenged(k, name)
		bad, err := k.answerWith(name, ch, make([]byte, 32))
		s.must(err)
		refusedWith(t, s.post(wire.PathEnroll, bad), wire.StaleChallenge)
	}
	equal(t, "journal", len(s.journal()), before)
	// One software TPM proves itself under all names, and each slot holds it once.
	for range 3 {
		for _, name := range names {
			refusedWith(t, s.post(wire.PathEnroll, s.answered(stranger, name)), wire.Pending)
		}
	}
	equal(t, "journal", len(s.journal()), before+len(names))
	// To approve it for two is refused, and changes nothing.
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n[0-1]"}}), "muster certs approve -i n1")
	equal(t, "n0", s.record("n0").state(s.clock.now()), StatePending)
	// The right one still gets any of them.
	s.must(s.approve(ApproveRequest{IDs: []string{"n7"}, EK: k.ekHash()}))
	s.enrol(k, "n7")
	// And once it is one's, it is nobody else's.
	s.must(s.approve(ApproveRequest{IDs: []string{"n0"}}))
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n1"}}), "muster certs show -i n0")
}

// TestApproveWhatWasSeen: what the table showed is approved, and not who came since, nor what was never shown.
func TestApproveWhatWasSeen(t *testing.T) {
	s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
	s.disable("n0")
	if s.record("n0").Pending != nil {
		t.Error("disable does not drop it")
	}
	s.enable("n0", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(other, "n0")), wire.Pending)
	for _, seen := range []map[string]string{{"n0": k.ekHash()}, {"n1": other.ekHash()}, {}} {
		refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}, Expect: seen}), "--state pending")
	}
	equal(t, "state", s.record("n0").state(s.clock.now()), StatePending)
	s.must(s.approve(ApproveRequest{Expect: map[string]string{"n0": other.ekHash()}}))
	s.enrol(other, "n0")
}

// TestApproveRefusals: nothing changes, and the way out is named.
func TestApproveRefusals(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}}), "--state pending")
	s.enable("n1", withApproval)
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n1"}}), "approve -i n1 --ek SHA256")
	s.enable("n2", withApproval)
	s.enable("n3", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n3")), wire.Pending)
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n[2-3]"}}), "")
	equal(t, "n3", s.record("n3").state(s.clock.now()), StatePending)
	// Enabling again without a word about it keeps the wait; a window that is over does too, and approval opens it.
	s.enable("n3")
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n3")), wire.Pending)
	s.clock.move(2 * time.Hour)
	refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n3")), wire.NotEnabled)
	s.must(s.approve(ApproveRequest{IDs: []string{"n3"}}))
	s.enrol(k, "n3")
}

// TestApproveRace: approval of one TPM while others ask: at most the approved one gets in.
func TestApproveRace(t *testing.T) {
	for range 10 {
		s := newSite(t)
		nodes := []*standin.TPM{aStandin(t), aStandin(t), aStandin(t)}
		s.enable("n0", withApproval)
		var answers []wire.EnrollRequest
		for _, n := range nodes {
			answers = append(answers, s.answered(n, "n0"))
		}
		refusedWith(t, s.post(wire.PathEnroll, answers[0]), wire.Pending)
		want := answers[0].EK
		var wait sync.WaitGroup
		for _, a := range answers {
			wait.Go(func() { s.post(wire.PathEnroll, a) })
		}
		wait.Go(func() { s.must(s.approve(ApproveRequest{IDs: []string{"n0"}})) })
		wait.Wait()
		if rec := s.record("n0"); rec.EK != want || rec.Pending != nil {
			t.Fatalf("%+v", rec)
		}
		for i, a := range answers {
			if got := s.post(wire.PathEnroll, a); (got.code() == "") != (i == 0) {
				t.Errorf("TPM %d: %s", i, got.body)
			}
		}
	}
}

// TestLearn: what proved itself is noted, once, and gets nothing until the administrator takes it over.
func TestLearn(t *testing.T) {
	s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", learning)
	s.enable("n[5-6]")
	refusedByPolicy(t, s.tryEnable("n[0,5-6]", s.learned), "--learn -i 'n[0,5-6]',")
	answer := s.answered(k, "n0")
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.Pending)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(other, "n0")), wire.Pending)
	s.restart()
	rec := s.record("n0")
	if rec.Cert != nil || rec.EK != "" || rec.Learned.EK != k.ekHash() || rec.Grant.Used {
		t.Fatalf("%+v", rec)
	}
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}}), "--learned")
	if why := s.why("n0"); !strings.Contains(why.Sentence, k.ekHash()) || why.Hint != "if it is the right one: muster certs enable --learned -i n0" {
		t.Errorf("%+v", why)
	}
	s.clock.move(2 * time.Hour)
	equal(t, "state", s.record("n0").state(s.clock.now()), StateDisabled)
	s.enable("n0", s.learned)
	refusedWith(t, s.post(wire.PathChallenge, other.ChallengeRequest("n0")), wire.NotEnabled)
	s.enrol(k, "n0")
	equal(t, "level", s.record("n0").Cert.Level, wire.Pinned)

	// A node that has a TPM has nothing to learn, and keeps what it has.
	was := s.record("n0")
	s.enable("n0", learning)
	if now := s.record("n0"); now.Grant.ID != was.Grant.ID || now.Grant.Learn {
		t.Errorf("%+v", now)
	}
	// One TPM that was learned under two names is nobody's yet.
	s.enable("n1", learning)
	s.enable("n2", learning)
	for _, name := range []string{"n1", "n2"} {
		refusedWith(t, s.post(wire.PathEnroll, s.answered(other, name)), wire.Pending)
	}
	refusedByPolicy(t, s.tryEnable("n[1-2]", s.learned), "muster certs show")
	// Plain enabling is no learning.
	s.enable("n1")
	s.enrol(other, "n1")
}

// TestNobodyWaitsWithoutAGrant: a restore closes grants, and with them the wait; approval opens none of them again.
func TestNobodyWaitsWithoutAGrant(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
	rec := s.record("n0")
	rec.Grant = nil
	s.putRecord(rec)
	equal(t, "state", s.record("n0").state(s.clock.now()), StateDisabled)
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}}), "--state pending")
	s.enable("n0", withApproval)
	equal(t, "state", s.record("n0").state(s.clock.now()), StateOpen)
}

// TestApprovalStays: once asked for, it holds for the grants that follow, whatever becomes of the first one's window.
func TestApprovalStays(t *testing.T) {
	for _, c := range []struct {
		name    string
		between func(*site)
		holds   bool
	}{
		{"a window that is over", func(s *site) { s.clock.move(2 * time.Hour) }, true},
		{"learning", func(s *site) { s.enable("n0", learning) }, true},
		{"learning, and that is over", func(s *site) { s.enable("n0", learning); s.clock.move(2 * time.Hour) }, true},
		{"another level", func(s *site) { s.clock.move(2 * time.Hour); s.makerOf("Chip"); s.enable("n0", atLevel(wire.Vendor)) }, true},
		{"disable", func(s *site) { s.disable("n0") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, k, other := newSite(t), aChip(t).nodeKey(), aStandin(t)
			s.enable("n0", withApproval)
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
			c.between(s)
			done, err := s.adminEnable(context.Background(), EnableRequest{IDs: []string{"n[0-1]"}, For: time.Hour, Level: wire.TOFU}, noStream())
			s.must(err)
			if !c.holds {
				equal(t, "held", done.(*Changed).Held, "")
				s.enrol(other, "n0")
				return
			}
			equal(t, "held", done.(*Changed).Held, "n0")
			refusedWith(t, s.post(wire.PathEnroll, s.answered(other, "n0")), wire.Pending)
			equal(t, "who waits", s.record("n0").Pending.EK, k.ekHash())
			s.must(s.approve(ApproveRequest{IDs: []string{"n0"}}))
			s.enrol(k, "n0")
		})
	}
}

// TestLearningHoldsOff: while a grant only learns, nobody is let in by it, who waits or who is known by an import.
func TestLearningHoldsOff(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", withApproval)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Pending)
	s.enable("n0", learning)
	refusedByPolicy(t, s.approve(ApproveRequest{IDs: []string{"n0"}}), "")

	s.enable("n1", learning)
	early := s.answered(k, "n1")
	s.imports("name,ek\nn1," + k.ekHash() + "\n")
	refusedWith(t, s.post(wire.PathEnroll, early), wire.StaleChallenge)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n1")), wire.NotEnabled)
	if why := s.why("n1"); !strings.Contains(why.Sentence, "to learn its TPM, which is on record") || why.Hint != "muster certs enable -i n1" {
		t.Errorf("%+v", why)
	}
	if s.record("n1").Cert != nil {
		t.Error("a grant that learns led to a certificate")
	}
	s.enable("n1")
	s.enrol(k, "n1")
	equal(t, "level", s.record("n1").Cert.Level, wire.Pinned)
}

// TestLearnedGoes: what was learned is dropped by disable and by learning anew, and only what was shown is pinned.
func TestLearnedGoes(t *testing.T) {
	s, bad, good := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", learning)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(bad, "n0")), wire.Pending)
	s.disable("n0")
	if s.record("n0").Learned != nil {
		t.Error("disable does not drop it")
	}
	refusedByPolicy(t, s.tryEnable("n0", s.learned), "--learn -i 'n0'")
	s.enable("n0", learning)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(bad, "n0")), wire.Pending)
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	refusedByPolicy(t, s.tryEnable("n0", s.learned, func(r *EnableRequest) { r.Again = true }), "--learn -i 'n0'")
	s.enable("n0", learning, func(r *EnableRequest) { r.Again = true })
	refusedWith(t, s.post(wire.PathEnroll, s.answered(bad, "n0")), wire.Pending)
	seen := s.candidates(func(s *slot) *Candidate { return s.Learned })
	s.clock.move(2 * time.Hour)
	s.enable("n0", learning)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(good, "n0")), wire.Pending)
	equal(t, "learned", s.record("n0").Learned.EK, good.ekHash())
	for _, shown := range []map[string]string{seen, nil} {
		refusedByPolicy(t, s.tryEnable("n0", func(r *EnableRequest) { r.Learned, r.Level, r.Expect = true, wire.Pinned, shown }), "muster certs show -i n0")
	}
	s.enable("n0", s.learned)
	s.enrol(good, "n0")
}

// TestOthersAreJournalledOnce: a TPM made in software costs nothing, so that those who ask beside the one that waits leave
// one line, however many they are and however long they go on.
func TestOthersAreJournalledOnce(t *testing.T) {
	s := newSite(t)
	one, others := aStandin(t), []*standin.TPM{aStandin(t), aStandin(t)}
	s.enable("n0", withApproval, func(r *EnableRequest) { r.For = 24 * time.Hour })
	refusedWith(t, s.post(wire.PathEnroll, s.answered(one, "n0")), wire.Pending)
	before := len(s.journal())
	for range 5 {
		for _, other := range others {
			refusedWith(t, s.post(wire.PathEnroll, s.answered(other, "n0")), wire.Pending)
		}
		s.clock.move(2 * time.Minute)
	}
	all := s.journal()
	equal(t, "journal", len(all), before+1)
	equal(t, "reason", all[len(all)-1].Fields["reason"], string(whyAnother))
}

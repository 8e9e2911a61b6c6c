package signer

import (
	"context"
	"os"
	"testing"
	"time"

	"muster/signer/store"
)

// looks is what tend does now and then.
func (s *site) looks() {
	s.t.Helper()
	s.try("server certificate", s.renewServer(context.Background()))
	s.try("CRL", s.signCRLs(context.Background()))
	s.leave(context.Background(), s.now())
}

// TestClockAheadForAWhile: what time alone undoes is not undone by a clock that is ahead, however often the head signs
// meanwhile, and though it starts anew.
func TestClockAheadForAWhile(t *testing.T) {
	const ahead = nodeLife + 8*24*time.Hour
	for what, wrong := range map[string]func(*site){
		"while it runs":  func(s *site) { s.clock.set(ahead); s.looks() },
		"when it starts": func(s *site) { s.clock.set(ahead); s.restart() },
		"from there on":  func(s *site) { s.clock.set(ahead); s.looks(); s.restart() },
		"in small steps": func(s *site) {
			for range 4000 {
				s.clock.set(ahead / 4000)
				s.pace.steady(s.now(), s.elapsed())
			}
		},
		"without a word": func(s *site) {
			s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{keySteady}}))
			s.clock.set(ahead)
			s.restart()
		},
		"and then a while": func(s *site) { s.clock.set(ahead); s.looks(); s.clock.move(steadyAfter - time.Minute); s.looks() },
	} {
		t.Run(what, func(t *testing.T) {
			s := newSite(t)
			s.clock.move(steadyAfter)
			_, cert := s.enrolled("n0")
			old := s.ca()
			s.rotate(RotateRequest{})
			s.rotate(RotateRequest{Finish: true, Force: true})
			s.revoke(RevokeRequest{IDs: []string{"n0"}, Reason: "keyCompromise"})
			s.looks()
			right := s.clock.now()
			wrong(s)
			s.looks()
			s.looks()
			s.clock.set(right.Sub(s.clock.now()))
			_, err := s.adminClockAccept(context.Background(), struct{}{}, noStream())
			s.must(err)
			s.must(s.signCRLs(context.Background()))
			wantListed(t, s.crlOf(old.id()), cert)
			equal(t, "role of its CA", s.ring.Load().byID(old.id()).role, roleRetired)
			_, err = os.Stat(s.caFile(old.keyFile))
			s.must(err)
		})
	}
}

// TestSteady: a clock that goes as time does is believed, at once after a restart, and a day after it was set.
func TestSteady(t *testing.T) {
	s := newSite(t)
	steady := func(what string, want bool) {
		t.Helper()
		equal(t, what, s.pace.steady(s.now(), s.elapsed()), want)
	}
	steady("at the first start", false)
	s.clock.move(steadyAfter)
	steady("after a day", true)
	s.looks()
	s.clock.move(98 * 24 * time.Hour)
	steady("long after", true)
	s.looks()
	s.clock.move(23 * time.Hour)
	s.clock.set(leap / 2)
	steady("with some drift", true)
	s.restart()
	steady("after a restart", true)
	s.clock.set(-2 * leap)
	steady("set back", false)
	s.clock.move(steadyAfter)
	steady("a day after that", true)
	s.clock.move(steadyAfter)
	s.restart()
	steady("after a day without a word", false)
}

// TestPrunesWhatIsOver, with a clock that is right, and not in a store that was set back.
func TestPrunesWhatIsOver(t *testing.T) {
	s := newSite(t)
	s.clock.move(steadyAfter)
	_, cert := s.enrolled("n0")
	key := prefixCert + serialHex(cert.SerialNumber)
	s.clock.move(nodeLife + keptFor + time.Hour)
	there := func() bool {
		item, err := s.store.Get(context.Background(), key)
		s.must(err)
		return item.Revision != 0
	}
	s.setBack = refuse("busy", whyRollback, "older")
	s.looks()
	equal(t, "on record in an older store", there(), true)
	s.setBack = nil
	s.looks()
	equal(t, "on record", there(), false)
}

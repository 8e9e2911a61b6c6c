package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// public asks the public listener's handler.
func (s *site) public(path string) reply {
	w := httptest.NewRecorder()
	s.PublicHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

func (s *site) crlBytes() []byte {
	s.t.Helper()
	r := s.public(crlPath(s.ca().id()))
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/pkix-crl" {
		s.t.Fatalf("CRL: got %d %v", r.status, r.header)
	}
	return r.body
}

// issues counts the certificates in the journal.
func (s *site) issues() (n int) {
	s.t.Helper()
	for _, e := range s.journal() {
		if e.Kind == "issue" {
			n++
		}
	}
	return n
}

// cannotSign is a head with one node that has its certificate and one that is about to get its own,
// for tests of what must go on while nothing can be signed (I8).
type cannotSign struct {
	*site
	have, want *key
	cert       []byte
	answer     wire.EnrollRequest
}

func newCannotSign(t *testing.T, s *site) *cannotSign {
	t.Helper()
	c := &cannotSign{site: s, have: aChip(t).nodeKey(), want: aChip(t).nodeKey()}
	s.enable("n[0-1]")
	c.cert = s.enrol(c.have, "n0").Cert
	c.answer = s.answered(c.want, "n1")
	return c
}

// check asserts that nothing new is signed, that what was given is given again, and that the public
// listener says so.
func (c *cannotSign) check(answer wire.EnrollRequest, why reason) {
	c.t.Helper()
	before, crl := c.issues(), c.crlBytes()
	r := c.post(wire.PathEnroll, answer)
	refusedWith(c.t, r, wire.Busy)
	if r.header.Get("Retry-After") == "" {
		c.t.Errorf("busy without Retry-After")
	}
	equal(c.t, "reason", c.reason("n1"), why)
	equal(c.t, "certificates signed", c.issues(), before)
	if c.record("n1").Cert != nil || c.record("n1").Grant.Used {
		c.t.Errorf("the grant was touched")
	}
	if got := c.enrol(c.have, "n0").Cert; !bytes.Equal(got, c.cert) {
		c.t.Errorf("n0 does not get its certificate again")
	}
	ready := c.public("/readyz")
	if ready.status != http.StatusServiceUnavailable || string(ready.body) != string(why)+"\n" {
		c.t.Errorf("readyz: %d %s", ready.status, ready.body)
	}
	equal(c.t, "healthz", c.public("/healthz").status, http.StatusOK)
	if err := c.signCRLs(context.Background()); err == nil {
		c.t.Errorf("a CRL was signed")
	}
	if !bytes.Equal(c.crlBytes(), crl) {
		c.t.Errorf("the CRL is another")
	}
}

// recovered asserts that all is well again, with the grant that was open.
func (c *cannotSign) recovered() {
	c.t.Helper()
	c.enrol(c.want, "n1")
	equal(c.t, "readyz", c.public("/readyz").status, http.StatusOK)
	equal(c.t, "first use", use(c.Head, certificate(c.t, c.cert)), "")
	c.must(c.signCRLs(context.Background()))
}

func TestClockBeforeItsFloor(t *testing.T) {
	c := newCannotSign(t, newSite(t))
	c.clock.move(-clockSlack)
	equal(t, "readyz within the slack", c.public("/readyz").status, http.StatusOK)
	c.clock.move(-time.Second)
	c.check(c.answered(c.want, "n1"), whyClock)
	equal(t, "first use of what was given", use(c.Head, certificate(t, c.cert)), "")
	c.clock.move(-10 * 365 * 24 * time.Hour)
	if no := c.maySign(c.clock.now()); no == nil {
		t.Error("signs ten years back")
	}
	c.clock.move(noon.Sub(c.clock.now()))
	c.recovered()
}

// TestFloorSurvivesARestart: and entries made by a clock that is back do not lower it.
func TestFloorSurvivesARestart(t *testing.T) {
	c := newCannotSign(t, newSite(t))
	c.clock.move(-time.Hour)
	c.disable("n1")
	c.enable("n1", func(r *EnableRequest) { r.For = 3 * time.Hour })
	if last := c.journal()[len(c.journal())-1]; !last.Time.Before(noon) {
		t.Fatalf("the last entry is of %v", last.Time)
	}
	for range 2 {
		c.restart() // it starts, and does what needs no signature
		if c.server.Load() != nil {
			t.Error("a head whose clock is back made itself a certificate")
		}
		c.check(c.answered(c.want, "n1"), whyClock)
	}
	c.clock.move(time.Hour)
	c.restart()
	if c.server.Load() == nil {
		t.Error("no server certificate")
	}
	c.recovered()
}

// TestFloorIsThatOfTheLastSignature also where the journal's end cannot be read.
func TestFloorIsThatOfTheLastSignature(t *testing.T) {
	s := newSite(t)
	s.clock.move(24 * time.Hour)
	s.must(s.signCRLs(context.Background()))
	equal(t, "floor", s.floor.Load(), s.clock.now().Unix())
	s.clock.move(24 * time.Hour)
	s.enable("n0")
	s.restart()
	equal(t, "floor after a restart", s.floor.Load(), s.clock.now().Unix())
}

func TestStoreCannotWrite(t *testing.T) {
	for _, failure := range []error{store.ErrFull, store.ErrFailed} {
		t.Run(failure.Error(), func(t *testing.T) {
			s := newSite(t)
			f := &faulty{Store: s.store}
			s.wrap = func(store.Store) store.Store { return f }
			s.open()
			c := newCannotSign(t, s)
			f.fail = func(store.Tx) (bool, error) { return false, fmt.Errorf("commit: %w", failure) }
			c.check(c.answer, whyStore)
			// A certificate that was given works, although its first use cannot be recorded.
			equal(t, "first use", use(c.Head, certificate(t, c.cert)), "")
			equal(t, "state", c.record("n0").state(noon), StateIssued)
			// So does a head that starts now: it has no certificate to serve nodes with, but the CRL.
			started, err := c.another()
			c.must(err)
			w := httptest.NewRecorder()
			started.PublicHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, crlPath(s.ca().id()), nil))
			equal(t, "CRL after a start", w.Code, http.StatusOK)
			f.fail = nil
			c.clock.move(time.Second) // for so long readyz believes what it found
			c.recovered()
		})
	}
}

// TestStoreCannotRead: not even strangers are told anything but busy.
func TestStoreCannotRead(t *testing.T) {
	c := newCannotSign(t, newSite(t))
	c.must(c.store.Close())
	refusedWith(t, c.post(wire.PathEnroll, c.answer), wire.Busy)
	refusedWith(t, c.post(wire.PathChallenge, c.want.ChallengeRequest("n1")), wire.Busy)
	equal(t, "use", use(c.Head, certificate(t, c.cert)), wire.Busy)
	equal(t, "readyz", c.public("/readyz").status, http.StatusServiceUnavailable)
	c.crlBytes()
}

// TestDamagedRecord: one record that is damaged stops that node and no other.
func TestDamagedRecord(t *testing.T) {
	for name, damage := range map[string]func(*site){
		"garbage": func(s *site) {
			s.must(s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: prefixSlot + "n0", Value: []byte(`{"node":`)}}}))
		},
		"unreadable": func(s *site) {
			s.wrap = func(st store.Store) store.Store { return &damaged{st, prefixSlot + "n0"} }
			s.open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, k, other := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
			s.enable("n[0-1]")
			cert := certificate(t, s.enrol(k, "n0").Cert)
			answer := s.answered(k, "n0")
			damage(s)
			refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.Busy)
			refusedWith(t, s.post(wire.PathEnroll, answer), wire.Busy)
			equal(t, "use", use(s.Head, cert), wire.Busy)
			equal(t, "certificates", s.issues(), 1)
			equal(t, "first use of another's", use(s.Head, certificate(t, s.enrol(other, "n1").Cert)), "")
			equal(t, "readyz", s.public("/readyz").status, http.StatusOK)
			if err := s.tryEnable("n0"); !errors.Is(err, store.ErrDamaged) {
				t.Errorf("enable: got %v", err)
			}
			listed := ask(t, s.adminSocket(t), AdminList, `{"ids":["n[0-1]"]}`)
			equal(t, "list", string(last(listed).Result), `{"count":1,"damaged":"n0"}`)
		})
	}
}

// damaged is a store that finds one record damaged.
type damaged struct {
	store.Store
	key string
}

func (d *damaged) Get(ctx context.Context, key string) (store.Item, error) {
	if key == d.key {
		return store.Item{Key: key}, fmt.Errorf("%s: %w", key, store.ErrDamaged)
	}
	return d.Store.Get(ctx, key)
}

// TestEpochRotation: an answer may come one epoch late, not two; and the new key is on the disk before it
// is used.
func TestEpochRotation(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n[0-1]")
	answer := s.answered(k, "n0")
	s.must(s.rotateEpoch())
	later := s.answered(k, "n0")
	if later.Epoch == answer.Epoch {
		t.Fatal("the epoch is the same")
	}
	onDisk, err := os.ReadFile(filepath.Join(s.dir, epochFile))
	s.must(err)
	if !bytes.Equal(onDisk, s.verifier.Epochs.Marshal()) {
		t.Error("the ring in use is not the one on the disk")
	}
	s.restart() // as after a crash just then
	first := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer))
	s.must(s.rotateEpoch())
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	if got := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, later)); !bytes.Equal(got.Cert, first.Cert) {
		t.Error("the previous epoch's answer gets another certificate")
	}
	info, err := os.Stat(filepath.Join(s.dir, epochFile))
	s.must(err)
	equal(t, "mode", info.Mode().Perm(), 0o600)
}

// TestEpochIsDurableBeforeUse: where it cannot be written, the old one stays in use.
func TestEpochIsDurableBeforeUse(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	before := s.challenged(k, "n0").Epoch
	// Root may write anywhere, but not make a file in a directory that is gone.
	real := s.Head.dir
	s.Head.dir = filepath.Join(s.dir, "absent")
	if err := s.rotateEpoch(); err == nil {
		t.Fatal("written to a directory that is not there")
	}
	s.Head.dir = real
	equal(t, "epoch", s.challenged(k, "n0").Epoch, before)
	s.restart()
	equal(t, "epoch after a restart", s.challenged(k, "n0").Epoch, before)
}

// TestListStates: what the administrator sees of a node, at each step of its life.
func TestListStates(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n[0-3]")
	s.disable("n3")
	equal(t, "first use", use(s.Head, certificate(t, s.enrol(k, "n0").Cert)), "")
	s.enrol(aChip(t).nodeKey(), "n1")
	want := map[string]State{"n0": StateActive, "n1": StateIssued, "n2": StateOpen, "n3": StateDisabled}
	for name, got := range s.states() {
		equal(t, name, got, want[name])
	}
	s.clock.move(nodeLife + time.Second)
	want = map[string]State{"n0": StateExpired, "n1": StateExpired, "n2": StateDisabled, "n3": StateDisabled}
	for name, got := range s.states() {
		equal(t, name+", later", got, want[name])
	}
}

func (s *site) states() map[string]State {
	s.t.Helper()
	w := httptest.NewRecorder()
	done, err := s.adminList(context.Background(), ListRequest{}, &stream{json.NewEncoder(w), http.NewResponseController(w)})
	s.must(err)
	states := map[string]State{}
	for dec := json.NewDecoder(w.Body); dec.More(); {
		var f Frame
		var v NodeView
		s.must(dec.Decode(&f))
		s.must(json.Unmarshal(f.Item, &v))
		states[v.Node] = v.State
	}
	equal(s.t, "nodes listed", done.(Listed).Count, len(states))
	return states
}

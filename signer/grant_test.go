package signer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"muster/internal/template"
	"muster/internal/wire"
	"muster/signer/store"
)

// witness remembers every certificate that ever left a head, lost replies included, and holds them
// against the store (I1, I2).
type witness struct {
	mu   sync.Mutex
	left []*x509.Certificate
	over map[string]bool // serials that a newer certificate's first use has ended
}

func newWitness() *witness { return &witness{over: map[string]bool{}} }

func (w *witness) saw(cert *x509.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = append(w.left, cert)
}

// of returns the certificates of a name, in the order in which they were first seen.
func (w *witness) of(name string) []*x509.Certificate {
	var list []*x509.Certificate
	seen := map[string]bool{}
	for _, c := range w.left {
		if c.Subject.CommonName == name && !seen[serialHex(c.SerialNumber)] {
			seen[serialHex(c.SerialNumber)] = true
			list = append(list, c)
		}
	}
	return list
}

func keyHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// violations is what the certificates, the journal and the records say against each other.
func (w *witness) violations(st store.Store) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	j, bad := readJournal(st)
	keyOf, nameOf, derOf := map[string]string{}, map[string]string{}, map[string][]byte{}
	for _, c := range w.left {
		serial, name, key := serialHex(c.SerialNumber), c.Subject.CommonName, keyHash(c)
		issue, ok := j[serial]
		if !ok {
			bad = append(bad, fmt.Sprintf("certificate %.8s of %s is in no journal", serial, name))
			continue
		}
		if issue.Fields["key"] != key || issue.Node != name {
			bad = append(bad, fmt.Sprintf("certificate %.8s is not the one of the journal", serial))
		}
		if was := nameOf[key]; was != "" && was != name {
			bad = append(bad, fmt.Sprintf("key %.8s serves %s and %s", key, was, name))
		}
		nameOf[key] = name
		if !onRecord(st, c) {
			bad = append(bad, fmt.Sprintf("certificate %.8s of %s is not in the store", serial, name))
		}
		if issue.Kind == "renew" { // which uses no grant
			continue
		}
		grant := name + "/" + issue.Fields["grant"]
		if was := keyOf[grant]; was != "" && was != key {
			bad = append(bad, fmt.Sprintf("grant %s led to the keys %.8s and %.8s", grant, was, key))
		}
		if was := derOf[grant]; was != nil && !bytes.Equal(was, c.Raw) {
			bad = append(bad, fmt.Sprintf("grant %s led to two certificates", grant))
		}
		keyOf[grant], derOf[grant] = key, c.Raw
	}
	return bad
}

// readJournal returns the entries of certificates by serial. It follows each grant through the journal: a
// certificate is issued under a grant that is open then, and under none twice. Without a grant a certificate is
// for a key that the name had before, or for one that was proven to replace it.
func readJournal(st store.Store) (issues map[string]store.Entry, bad []string) {
	issues = map[string]store.Entry{}
	open := map[string]string{} // by node: the grant that is open
	had := map[string]bool{}    // node/key
	for e, err := range st.Journal(context.Background(), 1) {
		if err != nil {
			return issues, append(bad, err.Error())
		}
		switch e.Kind {
		case "enable":
			open[e.Node] = e.Fields["grant"]
		case "disable":
			delete(open, e.Node)
		case "issue":
			if open[e.Node] != e.Fields["grant"] {
				bad = append(bad, fmt.Sprintf("entry %d: %s got a certificate under grant %.8s, which is not open", e.Seq, e.Node, e.Fields["grant"]))
			}
			delete(open, e.Node)
			issues[e.Fields["serial"]], had[e.Node+"/"+e.Fields["key"]] = e, true
		case "renew":
			if e.Fields["how"] != "new-key" && !had[e.Node+"/"+e.Fields["key"]] {
				bad = append(bad, fmt.Sprintf("entry %d: %s got a certificate for another key without a grant", e.Seq, e.Node))
			}
			issues[e.Fields["serial"]], had[e.Node+"/"+e.Fields["key"]] = e, true
		}
	}
	return issues, bad
}

// onRecord says whether the store has the certificate: as it is, or that it has ended.
func onRecord(st store.Store, c *x509.Certificate) bool {
	ctx := context.Background()
	if item, err := st.Get(ctx, prefixEnded+serialHex(c.SerialNumber)); err == nil && item.Revision != 0 {
		return true
	}
	item, err := st.Get(ctx, prefixSlot+c.Subject.CommonName)
	if err != nil || item.Revision == 0 {
		return false
	}
	s, err := parse[slot](item)
	if err != nil {
		return false
	}
	return s.Cert != nil && bytes.Equal(s.Cert.DER, c.Raw) || s.Old != nil && bytes.Equal(s.Old.DER, c.Raw)
}

// world is a cluster of two heads over one store, and the nodes that ask them.
type world struct {
	*site
	t    tb
	head [2]*Head
	keys []*key // of two TPMs, three each
	*witness
}

var worldNames = []string{"n0", "n1"}

func (w *world) openHeads() {
	for i := range w.head {
		h, err := w.another()
		w.must(err)
		w.head[i] = h
	}
	w.Head = w.head[0]
}

// attempt is one enrolment through some heads. A refusal is fine; a certificate is witnessed.
func (w *world) attempt(leg1, leg2 *Head, k *key, name string) *x509.Certificate {
	answer, ok := w.prepare(leg1, k, name)
	if !ok {
		return nil
	}
	return w.finish(leg2, answer)
}

func (w *world) prepare(h *Head, k *key, name string) (wire.EnrollRequest, bool) {
	r := post(h, wire.PathChallenge, wire.Encode(k.ChallengeRequest(name)))
	if r.status != http.StatusOK {
		return wire.EnrollRequest{}, false
	}
	answer, err := k.Answer(name, decoded[wire.Challenge](w.t, r))
	w.must(err)
	return answer, true
}

func (w *world) finish(h *Head, answer wire.EnrollRequest) *x509.Certificate {
	r := post(h, wire.PathEnroll, wire.Encode(answer))
	if r.status != http.StatusOK {
		return nil
	}
	cert := certificate(w.t, decoded[wire.Enrolled](w.t, r).Cert)
	w.saw(cert)
	return cert
}

// check is the invariant that holds at every moment.
func (w *world) check(t tb) {
	for _, bad := range w.violations(w.store) {
		t.Errorf("%s", bad)
	}
	for _, c := range w.left {
		for _, h := range w.head {
			if w.over[serialHex(c.SerialNumber)] && use(h, c) == "" {
				t.Errorf("certificate %.8s of %s is still good after its successor's first use", serialHex(c.SerialNumber), c.Subject.CommonName)
			}
		}
	}
}

// TestOneGrantOneKeyWhateverHappens draws histories of two heads, two names, two TPMs and six keys.
func TestOneGrantOneKeyWhateverHappens(t *testing.T) {
	t.Parallel() // it waits for the disk, mostly
	var keys []*key
	for range 2 {
		c := aChip(t)
		keys = append(keys, c.nodeKey(), c.nodeKey(), c.nodeKey())
	}
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		own := filepath.Join(dir, fmt.Sprint(n))
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		w := &world{site: siteIn(t, own), t: t, keys: keys, witness: newWitness()}
		defer func() { w.store.Close(); os.RemoveAll(own) }()
		w.openHeads()
		t.Repeat(w.actions())
	})
}

// drawn draws by number, so that a history that failed can be read.
func (w *world) drawn(t *rapid.T) (h *Head, name string, k *key) {
	h = w.head[rapid.IntRange(0, len(w.head)-1).Draw(t, "head")]
	name = rapid.SampledFrom(worldNames).Draw(t, "name")
	return h, name, w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(t, "key")]
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"enable": func(t *rapid.T) {
			h, name, _ := w.drawn(t)
			w.Head = h
			w.enable(name, lasting(time.Hour, 50))
		},
		"renew": func(t *rapid.T) {
			h, name, k := w.drawn(t)
			w.renewSome(t, h, name, k, rapid.Bool().Draw(t, "new key"))
		},
		"pin": func(t *rapid.T) { // refused where it contradicts a binding
			h, name, k := w.drawn(t)
			w.Head = h
			w.tryEnable(name, pinned(k.ekHash()))
		},
		"disable": func(t *rapid.T) {
			h, name, _ := w.drawn(t)
			w.Head = h
			if item, _ := w.store.Get(context.Background(), prefixSlot+name); item.Revision == 0 {
				t.Skip("no such node")
			}
			w.disable(name)
		},
		"enrol": func(t *rapid.T) {
			leg1, name, k := w.drawn(t)
			leg2, _, _ := w.drawn(t)
			if cert := w.attempt(leg1, leg2, k, name); cert != nil {
				w.retry(t, k, name, cert)
			}
		},
		"claim at once": func(t *rapid.T) {
			_, name, a := w.drawn(t)
			_, otherName, b := w.drawn(t)
			w.race(t, name, a, otherName, b)
		},
		"claim while the administrator changes it": func(t *rapid.T) {
			_, name, k := w.drawn(t)
			w.raceAdmin(t, name, k, rapid.Bool().Draw(t, "disable"))
		},
		"use": func(t *rapid.T) {
			h, name, _ := w.drawn(t)
			w.useSome(t, h, name)
		},
		"restart": func(*rapid.T) { w.must(w.store.Close()); w.openStore(); w.openHeads() },
		"wait":    func(*rapid.T) { w.clock.move(20 * time.Minute) },
		"":        func(t *rapid.T) { w.check(t) },
	}
}

// retry is what a node does whose reply was lost: the same key must get the same bytes, from any head.
func (w *world) retry(t tb, k *key, name string, cert *x509.Certificate) {
	for _, h := range w.head {
		again := w.attempt(h, h, k, name)
		if again == nil || !bytes.Equal(again.Raw, cert.Raw) {
			t.Errorf("%s: the reply was lost, and the retry gets another certificate, or none", name)
		}
	}
}

// race lets two proven claims meet in the store.
func (w *world) race(t *rapid.T, name string, a *key, otherName string, b *key) {
	first, ok := w.prepare(w.head[0], a, name)
	second, otherOK := w.prepare(w.head[1], b, otherName)
	if !ok || !otherOK {
		t.Skip("not challenged")
	}
	var both sync.WaitGroup
	both.Go(func() { w.finish(w.head[0], first) })
	both.Go(func() { w.finish(w.head[1], second) })
	both.Wait()
}

// raceAdmin lets a claim meet a change of its grant.
func (w *world) raceAdmin(t *rapid.T, name string, k *key, disable bool) {
	answer, ok := w.prepare(w.head[0], k, name)
	if !ok {
		t.Skip("not challenged")
	}
	w.Head = w.head[1]
	var both sync.WaitGroup
	both.Go(func() { w.finish(w.head[0], answer) })
	if disable {
		w.disable(answer.Slot)
	} else {
		w.enable(answer.Slot)
	}
	both.Wait()
}

// useSome shows a certificate that is known to a head. The first use of the newest ends all others.
func (w *world) useSome(t *rapid.T, h *Head, name string) {
	list := w.of(name)
	if len(list) == 0 {
		t.Skip("no certificate")
	}
	cert := list[rapid.IntRange(0, len(list)-1).Draw(t, "certificate")]
	newest := w.record(name).Cert
	if use(h, cert) != "" || !bytes.Equal(newest.DER, cert.Raw) {
		return
	}
	w.ended(list, cert)
}

// ended notes that the first use of cert has ended all others.
func (w *world) ended(list []*x509.Certificate, cert *x509.Certificate) {
	for _, c := range list {
		if !bytes.Equal(c.Raw, cert.Raw) {
			w.over[serialHex(c.SerialNumber)] = true
		}
	}
}

// renewSome shows a certificate that is known to a head, to renew it.
func (w *world) renewSome(t *rapid.T, h *Head, name string, k *key, newKey bool) {
	list := w.of(name)
	if len(list) == 0 {
		t.Skip("no certificate")
	}
	cert := list[rapid.IntRange(0, len(list)-1).Draw(t, "certificate")]
	w.Head = h
	newest := w.record(name).Cert
	ask := func() reply { return renewed(h, cert) }
	if newKey {
		ask = func() reply { return w.rekeyed(cert, k) }
	}
	if r := ask(); r.status == http.StatusOK {
		w.saw(certificate(t, decoded[wire.Enrolled](t, r).Cert))
		if bytes.Equal(newest.DER, cert.Raw) {
			w.ended(list, cert)
		}
	}
}

// faulty is a store with faults. Without any it is the store.
type faulty struct {
	store.Store
	unguarded bool                                  // takes every Tx, whatever its guards say
	before    func()                                // called once, before the next Tx with a guard on a slot
	fail      func(store.Tx) (done bool, err error) // nil: no failure
}

func (f *faulty) Commit(ctx context.Context, tx store.Tx) error {
	if before := f.before; before != nil && claims(tx) {
		f.before = nil
		before()
	}
	if f.unguarded {
		tx.Guards = nil
	}
	if f.fail == nil {
		return f.Store.Commit(ctx, tx)
	}
	done, err := f.fail(tx)
	if done {
		if real := f.Store.Commit(ctx, tx); real != nil {
			return real
		}
	}
	return err
}

// claims says whether a Tx stores a node's certificate.
func claims(tx store.Tx) bool {
	return len(tx.Events) > 0 && (tx.Events[0].Kind == "issue" || tx.Events[0].Kind == "renew")
}

// newWorld is a world without rapid, on a store with faults.
func newWorld(t *testing.T) (*world, *faulty) {
	t.Helper()
	s := newSite(t)
	f := &faulty{Store: s.store}
	s.wrap = func(store.Store) store.Store { return f }
	c := aChip(t)
	w := &world{site: s, t: t, keys: []*key{c.nodeKey(), c.nodeKey()}, witness: newWitness()}
	w.openHeads()
	return w, f
}

// clash lets another key's whole claim pass between a claim's decision and its commit.
func clash(w *world, f *faulty) {
	w.enable("n0")
	first, _ := w.prepare(w.head[0], w.keys[0], "n0")
	second, _ := w.prepare(w.head[1], w.keys[1], "n0")
	f.before = func() { w.finish(w.head[1], second) }
	w.finish(w.head[0], first)
}

// TestClash: the guards decide between two claims that both were right when they were judged.
func TestClash(t *testing.T) {
	w, f := newWorld(t)
	clash(w, f)
	w.check(t)
	if len(w.left) != 1 || keyHash(w.left[0]) != w.keys[1].hash() {
		t.Errorf("%d certificates left the heads", len(w.left))
	}
}

// TestClashOfNames: one EK, or one key, claims two names at once.
func TestClashOfNames(t *testing.T) {
	c := aChip(t)
	a, sameEK := c.nodeKey(), c.nodeKey()
	c.addEK(template.EKs()[1]) // to the head, another TPM
	sameKey := *a
	sameKey.ek = *c.ek()
	for name, test := range map[string]struct {
		other *key
		why   reason
	}{"one EK": {sameEK, whyEKTaken}, "one key": {&sameKey, whyKeyTaken}} {
		t.Run(name, func(t *testing.T) {
			w, f := newWorld(t)
			w.enable("n[0-1]")
			first, _ := w.prepare(w.head[0], a, "n0")
			second, _ := w.prepare(w.head[1], test.other, "n1")
			f.before = func() { w.finish(w.head[1], second) }
			if w.finish(w.head[0], first) != nil || len(w.left) != 1 {
				t.Errorf("%d certificates left the heads", len(w.left))
			}
			equal(t, "reason", w.reason("n0"), test.why)
			w.check(t)
		})
	}
}

// TestCheckerSeesMissingGuards is the control of the property test: without guards it goes red.
func TestCheckerSeesMissingGuards(t *testing.T) {
	w, f := newWorld(t)
	f.unguarded = true
	clash(w, f)
	wantViolation(t, w, "led to the keys")
}

// TestCheckerSeesLies: a store that says ok and writes nothing.
func TestCheckerSeesLies(t *testing.T) {
	w, f := newWorld(t)
	w.enable("n0")
	f.fail = func(store.Tx) (bool, error) { return false, nil }
	if w.attempt(w.Head, w.Head, w.keys[0], "n0") == nil {
		t.Fatal("no certificate")
	}
	wantViolation(t, w, "is in no journal")
}

// TestCheckerSeesSuperseded: a record that forgets nothing keeps the old certificate good.
func TestCheckerSeesSuperseded(t *testing.T) {
	w, _ := newWorld(t)
	w.enable("n0")
	first := w.attempt(w.Head, w.Head, w.keys[0], "n0")
	equal(t, "first use", use(w.Head, first), "")
	old := w.record("n0").Cert
	w.enable("n0")
	second := w.attempt(w.Head, w.Head, w.keys[1], "n0")
	equal(t, "first use", use(w.Head, second), "")
	w.over[serialHex(first.SerialNumber)] = true
	w.check(t)
	rec := w.record("n0")
	rec.Old = old
	w.putRecord(rec)
	red := &counting{}
	w.check(red)
	if red.errors == 0 {
		t.Error("the checker does not see that the old certificate is still good")
	}
}

// counting is a tb that counts what is wrong.
type counting struct {
	tb
	errors int
}

func (c *counting) Errorf(string, ...any) { c.errors++ }
func (c *counting) Helper()               {}

func wantViolation(t *testing.T, w *world, text string) {
	t.Helper()
	bad := strings.Join(w.violations(w.store), "\n")
	if !strings.Contains(bad, text) {
		t.Errorf("the checker does not see it: %q", bad)
	}
}

var errUnknown = errors.New("connection lost")

// TestUnknownOutcome: the store reports an error, and has written or not. The node is
// told to come back, and then the record decides.
func TestUnknownOutcome(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprintf("written %v", done), func(t *testing.T) {
			w, f := newWorld(t)
			w.enable("n0")
			answer, _ := w.prepare(w.Head, w.keys[0], "n0")
			f.fail = func(store.Tx) (bool, error) { return done, errUnknown }
			refusedWith(t, w.site.post(wire.PathEnroll, answer), wire.Busy)
			f.fail = nil
			if got := w.record("n0").Cert != nil; got != done {
				t.Fatalf("on record: %v", got)
			}
			cert := w.attempt(w.Head, w.Head, w.keys[0], "n0")
			if cert == nil {
				t.Fatal("locked out")
			}
			if done && !bytes.Equal(cert.Raw, w.record("n0").Cert.DER) {
				t.Error("another certificate than the one on record")
			}
			w.retry(t, w.keys[0], "n0", cert)
			if other := w.attempt(w.Head, w.Head, w.keys[1], "n0"); other != nil {
				t.Error("another key got a certificate by the same grant")
			}
			w.check(t)
		})
	}
}

// TestConflictsEnd: a record that others keep changing is read again, and the claim is judged again.
func TestConflictsEnd(t *testing.T) {
	w, f := newWorld(t)
	w.enable("n0")
	answer, _ := w.prepare(w.Head, w.keys[0], "n0")
	left := 5
	f.fail = func(tx store.Tx) (bool, error) {
		if left == 0 {
			return true, nil
		}
		left--
		return false, fmt.Errorf("key: %w", store.ErrConflict)
	}
	if w.finish(w.Head, answer) == nil {
		t.Error("no certificate after five conflicts")
	}
	w.check(t)
}

// TestGrantChangesUnderAClaim: a claim that met a conflict does not go on under another grant.
func TestGrantChangesUnderAClaim(t *testing.T) {
	w, f := newWorld(t)
	w.enable("n0")
	answer, _ := w.prepare(w.Head, w.keys[0], "n0")
	f.before = func() {
		rec := w.record("n0")
		rec.Grant = nil
		w.putRecord(rec)
		w.enable("n0")
	}
	refusedWith(t, w.site.post(wire.PathEnroll, answer), wire.StaleChallenge)
	untouched(t, w.site, w.record("n0").grantID(), w.keys[0], "n0")
}

// TestEnableMeetsAnEnrolment: an EK that is bound while the administrator records another one stays.
func TestEnableMeetsAnEnrolment(t *testing.T) {
	w, f := newWorld(t)
	w.enable("n0")
	stranger := aChip(t).nodeKey()
	fired := false
	f.fail = func(tx store.Tx) (bool, error) {
		if !fired && tx.Events[0].Kind == "enable" {
			fired = true
			if w.attempt(w.head[1], w.head[1], w.keys[0], "n0") == nil {
				t.Error("the node did not enrol")
			}
		}
		return true, nil
	}
	err := w.tryEnable("n0", pinned(stranger.ekHash()))
	var refused *AdminError
	if !errors.As(err, &refused) || refused.Kind != KindPolicy {
		t.Errorf("got %v", err)
	}
	if got := w.record("n0").EK; got != w.keys[0].ekHash() {
		t.Errorf("n0 has the certificate of one EK and the binding of another, %.8s", got)
	}
	w.check(t)
}

// TestLostReplyIsRepeatable: cut at whatever byte, the answer can be had again, on any head, after a
// restart, and by replaying the very same request.
func TestLostReplyIsRepeatable(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	answer := s.answered(k, "n0")
	first := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer))
	for range 3 {
		s.restart()
		replay := decoded[wire.Enrolled](t, s.post(wire.PathEnroll, answer))
		if !bytes.Equal(replay.Cert, first.Cert) {
			t.Error("a replay gets another certificate")
		}
	}
	other, err := s.another()
	s.must(err)
	var replay wire.Enrolled
	s.must(json.Unmarshal(post(other, wire.PathEnroll, wire.Encode(answer)).body, &replay))
	if !bytes.Equal(replay.Cert, first.Cert) {
		t.Error("another head gives another certificate")
	}
	s.clock.move(time.Hour + time.Minute) // the window is over; what was given can still be had
	if !bytes.Equal(s.enrol(k, "n0").Cert, first.Cert) {
		t.Error("after the window the certificate is another")
	}
}

// TestNewKeyWithANewGrant: the old certificate lives until the new one is used, and is refused then.
func TestNewKeyWithANewGrant(t *testing.T) {
	s, c := newSite(t), aChip(t)
	a, b := c.nodeKey(), c.nodeKey()
	s.enable("n0")
	old := certificate(t, s.enrol(a, "n0").Cert)
	equal(t, "first use", use(s.Head, old), "")
	s.enable("n0")
	next := certificate(t, s.enrol(b, "n0").Cert)
	equal(t, "the old one, before", use(s.Head, old), "")
	if !bytes.Equal(s.enrol(a, "n0").Cert, old.Raw) {
		t.Error("the old key does not get its old certificate while that is good")
	}
	equal(t, "the new one", use(s.Head, next), "")
	equal(t, "the old one, after", use(s.Head, old), wire.NotEnabled)
	refusedWith(t, s.post(wire.PathEnroll, s.answered(a, "n0")), wire.Refused)
	if item, _ := s.store.Get(context.Background(), prefixEnded+serialHex(old.SerialNumber)); item.Revision == 0 {
		t.Error("its end is not on record")
	}
}

// TestUnusedCertificateEndsAtOnce: nobody has it in use, so nothing is lost.
func TestUnusedCertificateEndsAtOnce(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	unused := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.enable("n0")
	s.enrol(c.nodeKey(), "n0")
	equal(t, "the unused one", use(s.Head, unused), wire.NotEnabled)
	if item, _ := s.store.Get(context.Background(), prefixEnded+serialHex(unused.SerialNumber)); item.Revision == 0 {
		t.Error("its end is not on record")
	}
}

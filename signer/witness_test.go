package signer

import (
	"context"
	"crypto"
	"errors"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"golang.org/x/sys/unix"

	"muster/internal/wire"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

// signs asserts whether the head signs, and why not.
func (s *site) signs(want reason) {
	s.t.Helper()
	got, _ := s.NotSigning(context.Background())
	equal(s.t, "why it does not sign", reason(got), want)
}

func (s *site) write(name string, data []byte) {
	s.t.Helper()
	s.must(os.WriteFile(filepath.Join(s.dir, name), data, 0o600))
}

// swap puts another store.db in the place of the one that is there, as a hand does.
func (s *site) swap(data []byte) {
	s.t.Helper()
	s.must(s.store.Close())
	s.write("store.db", data)
	s.openStore()
	s.open()
}

// closedCopy is the store as it is on the disk.
func (s *site) closedCopy() []byte {
	s.t.Helper()
	s.must(s.store.Close())
	b := s.file("store.db")
	s.openStore()
	s.open()
	return b
}

// TestOlderStore: any older copy is noticed, and serves what it has.
func TestOlderStore(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	empty := s.closedCopy()
	s.enable("n0")
	open := s.closedCopy()
	cert := s.enrol(k, "n0").Cert
	s.must(s.store.Close())
	newest := s.file("store.db") // whose head has not started again
	for name, older := range map[string][]byte{"before any node": empty, "with an open grant": open} {
		s.swap(older)
		s.signs(whyRollback)
		if s.server.Load() != nil {
			t.Errorf("%s: it made itself a certificate", name)
		}
		s.crlBytes()
		if err := s.signCRLs(context.Background()); err == nil {
			t.Errorf("%s: it signed a CRL", name)
		}
	}
	refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.Busy)
	equal(t, "certificates", s.issues(), 0)
	equal(t, "reason", s.reason("n0"), whyRollback)
	// A witness that spoke against a store does not learn from it.
	s.enable("n[1-40]")
	s.restart()
	s.signs(whyRollback)
	s.swap(newest)
	s.signs("")
	if again := s.enrol(k, "n0").Cert; string(again) != string(cert) {
		t.Error("n0 does not get its certificate again")
	}
}

// TestWitnessLags: a crash at any point between commit and witness leaves a witness that lags, which is no rollback.
func TestWitnessLags(t *testing.T) {
	s := newSite(t)
	lagging := s.file(witnessFile)
	for range 3 {
		s.enable("n0", func(r *EnableRequest) { r.For += time.Duration(len(s.journal())) * time.Minute })
		s.write(witnessFile, lagging)
		s.restart()
		s.signs("")
		if string(s.file(witnessFile)) == string(lagging) {
			t.Error("the witness did not catch up")
		}
	}
}

// TestWitnessSurvivesATornWrite: between two syncs one slot alone is written to.
func TestWitnessSurvivesATornWrite(t *testing.T) {
	s := newSite(t)
	s.must(s.book.Load().sync())
	synced := s.book.Load().last
	for i := range 5 {
		durable := s.file(witnessFile)
		s.enable("n0", func(r *EnableRequest) { r.For += time.Duration(i+1) * time.Minute })
		now := s.file(witnessFile)
		at := s.book.Load().slot * witnessSlot
		for _, torn := range []int64{0, 1, 100, 300} { // so much of the new line has reached the disk
			b := append([]byte(nil), durable...)
			copy(b[at:at+torn], now[at:at+torn])
			s.write(witnessFile, b)
			book, err := openWitness(s.dir)
			if err != nil || synced.after(book.last) {
				t.Errorf("torn after %d bytes: %v, %+v after %+v", torn, err, book, synced)
			}
		}
		s.write(witnessFile, now)
		if i%2 == 1 {
			s.must(s.book.Load().sync())
			synced = s.book.Load().last
		}
	}
}

// TestStoreOfNoWitness: a store of a release without a witness gets one, wherever its first start is cut short.
func TestStoreOfNoWitness(t *testing.T) {
	s := newSite(t)
	s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{keyEpoch}}))
	s.must(s.store.Close())
	old := s.file("store.db")
	s.without(witnessFile)
	s.without(witnessKeyFile)
	s.swap(old)
	s.signs("")
	equal(t, "epoch", s.epoch.Load(), uint64(1))
	t.Run("cut short after the key", func(*testing.T) {
		s.without(witnessFile)
		s.swap(old)
		s.signs("")
	})
	t.Run("after the witness", func(*testing.T) {
		s.must(s.store.Close())
		s.without(witnessFile)
		tail := s.tailOf(old)
		_, err := writeWitness(s.dir, mark{Seq: tail.Seq, Hash: tail.Hash})
		s.must(err)
		s.swap(old)
		s.signs("")
	})
	t.Run("after the epoch", func(*testing.T) {
		tail := s.tailOf(old)
		_, err := writeWitness(s.dir, mark{Seq: tail.Seq, Hash: tail.Hash})
		s.must(err)
		s.restart()
		s.signs("")
	})
	s.swap(old) // and then the old one is one that was set back
	s.signs(whyRollback)
}

func (s *site) without(name string) {
	s.t.Helper()
	s.must(os.Remove(filepath.Join(s.dir, name)))
}

// tailOf is the end of the journal of a store that is not in its place.
func (s *site) tailOf(db []byte) store.Chain {
	s.t.Helper()
	s.write("beside.db", db)
	st, err := bolt.Open(filepath.Join(s.dir, "beside.db"), time.Minute)
	s.must(err)
	defer st.Close()
	tail, err := st.Tail(context.Background())
	s.must(err)
	return tail
}

// TestWitnessCannotBeWritten: what was committed stays, and nothing more is signed.
func TestWitnessCannotBeWritten(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	answer := s.answered(k, "n0")
	s.must(os.Remove(filepath.Join(s.dir, witnessFile)))
	s.enable("n1")
	s.signs(whyStore)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.Busy)
	equal(t, "certificates", s.issues(), 0)
}

// TestWitnessNeedsNoDescriptor: strangers who take all of them stop no signature (I8, I10).
func TestWitnessNeedsNoDescriptor(t *testing.T) {
	s := newSite(t)
	var was unix.Rlimit
	s.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	f, err := os.Open(os.DevNull)
	s.must(err)
	low := unix.Rlimit{Cur: uint64(f.Fd()), Max: was.Max}
	s.must(f.Close())
	s.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	_, full := os.Open(os.DevNull)
	err = s.tryEnable("n0")
	s.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	s.must(err)
	if !errors.Is(full, unix.EMFILE) {
		t.Fatalf("descriptors were left: %v", full)
	}
	s.signs("")
	equal(t, "witnessed", s.book.Load().last.Seq, s.tail().Seq)
}

func (s *site) tail() store.Chain {
	s.t.Helper()
	tail, err := s.store.Tail(context.Background())
	s.must(err)
	return tail
}

// TestWitnessIsTriedAgain: what a disk refused for a moment is made good with a whole new file, and signing goes on.
func TestWitnessIsTriedAgain(t *testing.T) {
	for name, fail := range map[string]func(*site){
		"write": func(s *site) { s.enable("n0") },
		"sync":  func(s *site) { s.Head.tendWitness(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.enable("n2")
			s.must(s.book.Load().file.Close()) // any error will do
			fail(s)
			s.signs(whyStore)
			s.enable("n1") // is on record, and the witness is to know of it
			s.tendWitness(t.Context())
			s.signs("")
			book, err := openWitness(s.dir)
			s.must(err)
			equal(t, "witnessed", book.last.Seq, s.tail().Seq)
			s.enable("n3")
			s.must(s.book.Load().sync())
			s.restart()
			s.signs("")
		})
	}
}

// TestWitnessGoneStaysGone: who takes the witness away may put an older one there, and an older store.
func TestWitnessGoneStaysGone(t *testing.T) {
	for name, away := range map[string]func(*site){
		"removed":  func(s *site) { s.without(witnessFile) },
		"replaced": func(s *site) { s.must(os.Rename(s.dir+"/older", filepath.Join(s.dir, witnessFile))) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.write("older", s.file(witnessFile))
			away(s)
			s.enable("n0")
			s.signs(whyStore)
			s.tendWitness(t.Context())
			s.signs(whyStore)
		})
	}
}

// TestWitnessEntryUnreadable: an entry that was seen and cannot be read any more says nothing for the store, unless
// the journal ends with it.
func TestWitnessEntryUnreadable(t *testing.T) {
	s := newSite(t)
	s.enable("n[0-1]")
	at := s.tail()
	m := mark{Epoch: 1, Seq: at.Seq, Hash: at.Hash}
	check := func(m mark, tail store.Chain) error {
		return judge(t.Context(), spoiled{s.store}, m, generation{1}, tail)
	}
	if err := check(m, at); err != nil {
		t.Errorf("the journal's end: %v", err)
	}
	s.enable("n2")
	if err := check(m, s.tail()); err == nil {
		t.Error("an entry in the journal: no refusal")
	}
	if err := judge(t.Context(), s.store, m, generation{1}, s.tail()); err != nil {
		t.Errorf("control: %v", err)
	}
	m.Seq = s.tail().Seq
	if err := check(m, s.tail()); err == nil {
		t.Error("another end: no refusal")
	}
}

// spoiled is a store with a damaged journal.
type spoiled struct{ store.Store }

func (u spoiled) Journal(ctx context.Context, from uint64) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		for e := range u.Store.Journal(ctx, from) {
			if !yield(store.Entry{Seq: e.Seq}, store.ErrDamaged) {
				return
			}
		}
	}
}

// TestNoFirstWitness: without one nothing is signed.
func TestNoFirstWitness(t *testing.T) {
	s := siteBefore(t)
	s.must(os.MkdirAll(filepath.Join(s.dir, witnessFile), 0o700)) // no file can be made there
	s.open()
	s.signs(whyStore)
	s.without(witnessFile)
	s.tendWitness(t.Context()) // by the second
	s.signs("")
	equal(t, "epoch", s.epoch.Load(), uint64(1))
	s.restart()
	s.signs("")
}

// siteBefore is a site whose head has never started.
func siteBefore(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{keyEpoch}}))
	s.without(witnessFile)
	s.without(witnessKeyFile)
	return s
}

func BenchmarkWitness(b *testing.B) {
	dir := b.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "ca"), 0o700); err != nil {
		b.Fatal(err)
	}
	book, err := writeWitness(dir, mark{Epoch: 1})
	if err != nil {
		b.Fatal(err)
	}
	for i := uint64(1); b.Loop(); i++ {
		if err := book.note(mark{Epoch: 1, Seq: i}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestClockLeap: a clock that nothing disciplines signs nothing a day past the last record, until it is
// synchronised or accepted.
func TestClockLeap(t *testing.T) {
	c := newCannotSign(t, newSite(t))
	c.alone = true
	c.clock.move(clockLeap - time.Hour)
	c.enable("n1", func(r *EnableRequest) { r.For = 72 * time.Hour })
	c.signs("")
	c.clock.move(2 * time.Hour)
	c.check(c.answered(c.want, "n1"), whyClock)
	c.restart()
	c.signs("") // the entry of enable is a record
	c.clock.move(clockLeap + time.Minute)
	c.restart()
	c.signs(whyClock)
	c.alone = false
	c.clock.move(syncKept)
	c.signs("")
	c.alone = true
	acceptClock(c.site)
	c.signs("")
	c.restart()
	c.signs("")
}

// TestInSyncIsAskedSeldom: strangers do not make a head ask at each request what disciplines its clock.
func TestInSyncIsAskedSeldom(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	s.clock.move(clockLeap + time.Hour)
	s.alone = true
	for range 100 {
		equal(t, "readyz", s.public("/readyz").status, http.StatusServiceUnavailable)
		der := ocspRequestFor(t, cert, s.ca().cert, crypto.SHA256)
		equal(t, "OCSP", ocspError(t, askOCSP(s.Head, http.MethodPost, "/ocsp", der, nil)), ocsp.TryLater)
	}
	equal(t, "asked", s.asked.Load(), 1)
	s.alone = false
	equal(t, "readyz", s.public("/readyz").status, http.StatusServiceUnavailable)
	s.clock.move(syncKept)
	equal(t, "readyz, when it is asked again", s.public("/readyz").status, http.StatusOK)
	equal(t, "asked", s.asked.Load(), 2)
}

func acceptClock(s *site) {
	s.t.Helper()
	_, err := s.adminClockAccept(context.Background(), struct{}{}, noStream())
	s.must(err)
}

// TestAcceptABackwardClock: a head that once signed in the future signs again, and its CRL is good now.
func TestAcceptABackwardClock(t *testing.T) {
	c := newCannotSign(t, newSite(t))
	c.clock.move(40 * 24 * time.Hour)
	c.must(c.signCRLs(context.Background()))
	ahead := c.crlView()
	c.clock.move(-40 * 24 * time.Hour)
	c.restart()
	c.signs(whyClock)
	acceptClock(c.site)
	c.signs("")
	if c.server.Load() == nil || c.server.Load().Leaf.NotBefore.After(c.clock.now()) {
		t.Error("no server certificate that is good now")
	}
	c.must(c.signCRLs(context.Background()))
	if crl := c.crlView(); crl.Number <= ahead.Number || crl.ThisUpdate.After(c.clock.now()) {
		t.Errorf("CRL %+v after %+v", crl, ahead)
	}
	last := c.journal()[len(c.journal())-1]
	for _, e := range c.journal() {
		if e.Kind == "clock-accept" {
			last = e
		}
	}
	equal(t, "kind", last.Kind, "clock-accept")
	c.restart()
	c.signs("")
	c.enable("n1")
	c.recovered()
}

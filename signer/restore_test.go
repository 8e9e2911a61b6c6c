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
	"strings"
	"sync"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

// backup is what `muster backup` writes.
func (s *site) backup() []byte {
	s.t.Helper()
	w := httptest.NewRecorder()
	out := &stream{json.NewEncoder(w), http.NewResponseController(w)}
	_, err := s.adminBackup(context.Background(), BackupRequest{}, out)
	s.must(err)
	var whole bytes.Buffer
	for dec := json.NewDecoder(w.Body); dec.More(); {
		var f Frame
		s.must(dec.Decode(&f))
		whole.Write(append(f.Item, '\n'))
	}
	return whole.Bytes()
}

// restore does with a stopped head what `muster restore` does, and starts it again.
func (s *site) restore(backup []byte) *Restored {
	s.t.Helper()
	ctx := context.Background()
	found, err := ReadBackup(bytes.NewReader(backup), nil, nil)
	s.must(err)
	s.must(CanRestore(ctx, s.dir, found, s.store))
	staged := filepath.Join(s.dir, "staged.db")
	s.must(bolt.Create(staged, found.Head))
	st, err := bolt.Open(staged, time.Minute)
	s.must(err)
	_, err = LoadBackup(ctx, st, bytes.NewReader(backup))
	s.must(err)
	done, err := Settle(ctx, s.dir, st, s.store, map[string]string{}, s.clock.now())
	s.must(err)
	s.must(st.Close())
	s.must(RenewEpochs(s.dir, s.clock.now()))
	s.must(s.store.Close())
	s.must(os.Rename(staged, s.dbPath()))
	s.must(done.Witness(s.dir))
	s.openStore()
	s.open()
	s.signs("")
	return done
}

// TestBackupHasAll: records and journal come out of a backup as they were, hashes included.
func TestBackupHasAll(t *testing.T) {
	s := newSite(t)
	s.enable("n[0-300]") // more than one transaction
	s.enrol(aChip(t).nodeKey(), "n7")
	backup := s.backup()
	path := filepath.Join(t.TempDir(), "store.db")
	s.must(bolt.Create(path, "head1"))
	st, err := bolt.Open(path, time.Minute)
	s.must(err)
	defer st.Close()
	found, err := LoadBackup(t.Context(), st, bytes.NewReader(backup))
	s.must(err)
	equal(t, "nodes", found.Nodes, 301)
	equal(t, "open grants", found.Open, 300)
	for item, err := range s.store.List(t.Context(), "") {
		s.must(err)
		got, err := st.Get(t.Context(), item.Key)
		s.must(err)
		if !bytes.Equal(got.Value, item.Value) {
			t.Errorf("%s is another", item.Key)
		}
	}
	was, err := s.store.Tail(t.Context())
	s.must(err)
	is, err := st.Tail(t.Context())
	s.must(err)
	equal(t, "tail", is, was)
}

// TestBackupWhileServing: each backup is one moment of the store: what its journal tells of is in its records,
// and nothing else.
func TestBackupWhileServing(t *testing.T) {
	s := newSite(t)
	var busy sync.WaitGroup
	for i := range 4 {
		busy.Go(func() {
			for j := range 40 {
				s.enable(fmt.Sprintf("m%dn%d", i, j))
			}
		})
	}
	for range 5 {
		enabled := map[string]bool{}
		_, err := ReadBackup(bytes.NewReader(s.backup()), func(p store.Put) error {
			if name, ok := strings.CutPrefix(p.Key, prefixSlot); ok {
				enabled[name] = true
			}
			return nil
		}, func(e store.Entry) error {
			if e.Kind == "enable" && !enabled[e.Node] {
				t.Errorf("%s is in the journal only", e.Node)
			}
			delete(enabled, e.Node)
			return nil
		})
		s.must(err)
		if len(enabled) > 0 {
			t.Errorf("in the records only: %v", enabled)
		}
	}
	busy.Wait()
}

// TestBackupDamage: a backup that was changed anywhere, cut short or added to is none.
func TestBackupDamage(t *testing.T) {
	s := newSite(t)
	s.enable("n[0-3]")
	s.enrol(aChip(t).nodeKey(), "n0")
	good := s.backup()
	refused := func(what string, b []byte) {
		t.Helper()
		if found, err := ReadBackup(bytes.NewReader(b), nil, nil); err == nil || found != nil || !errors.Is(err, ErrNoBackup) {
			t.Errorf("%s: got %v, want ErrNoBackup", what, err)
		}
	}
	for i := 0; i < len(good); i += 7 {
		b := bytes.Clone(good)
		b[i] ^= 1
		refused(fmt.Sprintf("byte %d", i), b)
		refused(fmt.Sprintf("cut at byte %d", i), good[:i])
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	for i := range lines[:len(lines)-1] {
		refused(fmt.Sprintf("without line %d", i), bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil))
	}
	refused("twice", append(bytes.Clone(good), good...))
	refused("with more", append(bytes.Clone(good), '\n'))
	refused("a line without an end", bytes.Repeat([]byte("x"), 2*maxBackupLine))
	if _, err := ReadBackup(bytes.NewReader(good), nil, nil); err != nil {
		t.Errorf("control: %v", err)
	}
	other := newSite(t)
	found, err := ReadBackup(bytes.NewReader(good), nil, nil)
	s.must(err)
	if err := CanRestore(t.Context(), other.dir, found, other.store); !errors.Is(err, ErrNoBackup) {
		t.Errorf("of another cluster: got %v", err)
	}
}

// TestRestoreKeepsCAs: a rotation is not undone, and no CA that has died comes back.
func TestRestoreKeepsCAs(t *testing.T) {
	for name, rotate := range map[string]RotateRequest{"begun": {}, "at once": {RevokeAll: true}, "compromised": {Compromised: true}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			backup := s.backup()
			_, err := s.adminRotate(t.Context(), rotate, noStream())
			s.must(err)
			was, pin := s.ring.Load().bundle(), s.ca().pin()
			if _, err := s.settleBeside(backup, nil); !errors.Is(err, ErrOtherCAs) {
				t.Errorf("without the newest store: got %v, want ErrOtherCAs", err)
			}
			s.restore(backup)
			equal(t, "bundle", s.ring.Load().bundle(), was)
			equal(t, "pin", s.ca().pin(), pin)
		})
	}
}

// settleBeside is a restore up to where it replaces the store.
func (s *site) settleBeside(backup []byte, current store.Reader) (*Restored, error) {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "beside")
	s.must(err)
	s.must(bolt.Create(filepath.Join(dir, "store.db"), "head1"))
	st, err := bolt.Open(filepath.Join(dir, "store.db"), time.Minute)
	s.must(err)
	defer st.Close()
	_, err = LoadBackup(context.Background(), st, bytes.NewReader(backup))
	s.must(err)
	return Settle(context.Background(), s.dir, st, current, map[string]string{}, s.clock.now())
}

// TestRestoreOneGrantOneKey: what was done with the grants since the backup is not done again (I1).
func TestRestoreOneGrantOneKey(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k := c.nodeKey()
	s.enable("n[0-1]")
	backup := s.backup()
	given := certificate(t, s.enrol(k, "n0").Cert)
	answer := s.answered(c.nodeKey(), "n0") // made before
	done := s.restore(backup)
	equal(t, "closed", fold(done.Closed), "n[0-1]")
	equal(t, "epoch", s.epoch.Load(), done.Epoch)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
	for _, other := range []enroller{c.nodeKey(), aChip(t).nodeKey(), k} {
		refusedWith(t, s.post(wire.PathChallenge, other.ChallengeRequest("n0")), wire.NotEnabled)
	}
	equal(t, "certificates", s.issues(), 0)
	// What was given meanwhile is refused, and known from then on.
	equal(t, "use", use(s.Head, given), wire.NotEnabled)
	if found := s.quarantined(t); len(found) != 1 || found[0].Serial != serialHex(given.SerialNumber) {
		t.Errorf("quarantined: %+v", found)
	}
	s.enable("n0")
	s.enrol(c.nodeKey(), "n0")
	last := s.journal()
	s.must(store.Verify(s.store.Journal(t.Context(), 1)))
	for _, e := range last {
		if e.Kind == "restore" {
			return
		}
	}
	t.Error("the journal does not tell of the restore")
}

// TestRestoreKeepsWhatEnded: a certificate that ended after the backup stays so, by the CRL in public/ alone; and CRL
// numbers go on, whichever of their witnesses is left.
func TestRestoreKeepsWhatEnded(t *testing.T) {
	for name, lose := range map[string]func(*site){
		"nothing lost": func(*site) {},
		"without the newest store": func(s *site) {
			s.must(s.store.Close())
			s.must(os.Remove(s.dbPath()))
			s.must(bolt.Create(s.dbPath(), "head1"))
			s.openStore()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newSite(t), aChip(t)
			k := c.nodeKey()
			s.enable("n[0-1]")
			old := certificate(t, s.enrol(k, "n0").Cert)
			use(s.Head, old)
			revoked := certificate(t, s.enrol(aChip(t).nodeKey(), "n1").Cert)
			use(s.Head, revoked)
			backup := s.backup()
			s.enable("n0")
			next := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
			use(s.Head, next)
			s.must(s.store.Commit(t.Context(), store.Tx{Puts: []store.Put{
				put(prefixEnded+serialHex(revoked.SerialNumber), ended{At: s.clock.now(), CA: s.ca().id(), Reason: 1, NotAfter: revoked.NotAfter}),
			}}))
			for range 5 {
				s.must(s.signCRLs(t.Context()))
			}
			crl := s.crlView()
			equal(t, "ended before", crl.Entries, 2)
			lose(s)
			done := s.restore(backup)
			equal(t, "ended", done.Ended, 2)
			if now := s.crlView(); now.Number <= crl.Number || now.ThisUpdate.Before(crl.ThisUpdate) || now.Entries != 2 {
				t.Errorf("CRL %+v after %+v", now, crl)
			}
			equal(t, "use of what ended", use(s.Head, old), wire.NotEnabled)
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.NotEnabled)
			equal(t, "state of n1", s.record("n1").state(s.clock.now()), StateRevoked)
			if found := s.quarantined(t); len(found) != 0 {
				t.Errorf("what ended is quarantined: %+v", found)
			}
		})
	}
}

// TestRestoreOverAForeignCRL: what our CA did not sign ends nothing.
func TestRestoreOverAForeignCRL(t *testing.T) {
	s, other := newSite(t), newSite(t)
	backup := s.backup()
	s.write("public/"+s.ca().id()+".crl", other.crlBytes())
	if _, err := s.settleBeside(backup, s.store); err == nil {
		t.Error("settled with a CRL of another CA")
	}
	// Nor may the clock be before what is restored.
	s.write("public/"+s.ca().id()+".crl", s.ca().crl.list.Load().Raw)
	s.clock.move(-time.Hour)
	if _, err := s.settleBeside(backup, s.store); !errors.Is(err, ErrClockBack) {
		t.Errorf("with a clock that is back: got %v", err)
	}
}

// TestRestoreCutShort: a crash at any point leaves a store that is refused, or one that is settled.
func TestRestoreCutShort(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	open := s.closedCopy()
	s.enrol(k, "n0")
	s.swap(open)
	s.signs(whyRollback)
	// --accept that ends before its last transaction.
	refusing := &lastFails{Store: s.store}
	if _, err := Settle(t.Context(), s.dir, refusing, nil, map[string]string{}, s.clock.now()); err == nil {
		t.Fatal("no failure")
	}
	s.restart()
	s.signs(whyRollback)
	// And one that ends before the witness is written.
	done, err := Settle(t.Context(), s.dir, s.store, nil, map[string]string{}, s.clock.now())
	s.must(err)
	s.restart()
	s.signs("")
	equal(t, "epoch", s.epoch.Load(), done.Epoch)
	refusedWith(t, s.post(wire.PathChallenge, aChip(t).nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	s.swap(open)
	s.signs(whyRollback)
}

// lastFails is a store that does not take the transaction with the epoch.
type lastFails struct{ store.Store }

func (l *lastFails) Commit(ctx context.Context, tx store.Tx) error {
	for _, p := range tx.Puts {
		if p.Key == keyEpoch {
			return errors.New("power cut")
		}
	}
	return l.Store.Commit(ctx, tx)
}

// TestKeysAreForRoot: of those at the admin socket only root and the daemon's own user get the CA's keys.
func TestKeysAreForRoot(t *testing.T) {
	s := newSite(t)
	req := BackupRequest{WithKeys: true, Passphrase: "x"}
	for _, who := range []peerID{{}, {"uid 12345 pid 1", 12345, true}, {"uid 0 pid 1", 0, false}} {
		ctx := context.WithValue(t.Context(), peerKey{}, who)
		before := len(s.journal())
		_, err := s.adminBackup(ctx, req, noStream())
		var no *AdminError
		if !errors.As(err, &no) || no.Kind != KindPolicy || len(s.journal()) != before {
			t.Errorf("%+v: got %v", who, err)
		}
		if _, err := s.adminBackup(ctx, BackupRequest{}, noStream()); err != nil {
			t.Errorf("%+v, without keys: %v", who, err)
		}
	}
	if _, err := s.adminBackup(context.WithValue(t.Context(), peerKey{}, peerID{"uid 0 pid 1", 0, true}), req, noStream()); err != nil {
		t.Errorf("root: %v", err)
	}
}

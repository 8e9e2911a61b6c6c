package signer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

// loseStore leaves an empty store, as a new disk does.
func (s *site) loseStore() {
	s.t.Helper()
	s.must(s.store.Close())
	s.must(os.Remove(s.dbPath()))
	s.must(bolt.Create(s.dbPath(), "head1"))
	s.openStore()
}

// onCRL says whether the CRL of any CA lists a certificate.
func onCRL(s *site, cert *x509.Certificate) bool {
	s.t.Helper()
	for _, ca := range s.ring.Load().members {
		list := ca.crl.list.Load()
		if list == nil {
			continue
		}
		for _, e := range list.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return true
			}
		}
	}
	return false
}

// TestRestoreKeepsRevocations: who was revoked after the backup stays so, by name and by key, whatever
// the backup has of its certificates (I7).
func TestRestoreKeepsRevocations(t *testing.T) {
	for name, since := range map[string]func(*site, *key){
		"renewed, then revoked": func(s *site, k *key) {
			s.clock.move(70 * 24 * time.Hour)
			equal(s.t, "use", use(s.Head, s.mustRenew(certificate(s.t, s.record("n0").Cert.DER))), "")
			s.revoke(RevokeRequest{IDs: []string{"n0"}, Reason: "keyCompromise"})
		},
		"first certificate, then revoked": func(s *site, k *key) {
			s.must(s.tryEnable("n1"))
			s.enrol(k, "n1")
			s.revoke(RevokeRequest{IDs: []string{"n1"}, Reason: "keyCompromise"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			k, who := aChip(t).nodeKey(), "n1"
			if name == "renewed, then revoked" {
				k, _ = s.enrolled("n0")
				who = "n0"
			}
			s.enable("n1")
			backup := s.backup()
			since(s, k)
			s.restore(backup)
			equal(t, "state", s.record(who).state(s.clock.now()), StateRevoked)
			if err := s.tryEnable(who); err == nil {
				t.Error("enabled without --again")
			}
			s.enable(who, func(r *EnableRequest) { r.Again = true })
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k, who)), wire.KeyBarred)
		})
	}
}

// TestRestoreKeepsRevokedNames: also of a node that the backup does not know, whatever key its TPM makes.
func TestRestoreKeepsRevokedNames(t *testing.T) {
	s, c := newSite(t), aChip(t)
	backup := s.backup()
	s.enable("n0")
	s.enrol(c.nodeKey(), "n0")
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	s.restore(backup)
	if err := s.tryEnable("n0"); err == nil {
		t.Error("enabled without --again")
	}
	s.enable("n1")
	refusedWith(t, s.post(wire.PathEnroll, s.answered(c.nodeKey(), "n1")), wire.Revoked)
	s.enable("n0", again)
	s.enrol(c.nodeKey(), "n0")
	s.wellBound()
}

// TestRestoreKeepsDisabled: what was closed since stays so, and what was opened since does not come to be open.
func TestRestoreKeepsDisabled(t *testing.T) {
	s := newSite(t)
	s.enrolled("n0")
	backup := s.backup()
	s.disable("n0")
	s.restore(backup)
	equal(t, "state", s.record("n0").state(s.clock.now()), StateDisabled)
}

// TestRestoreKeepsReplaced: the board that was taken out is not the node's again.
func TestRestoreKeepsReplaced(t *testing.T) {
	for _, enrolled := range []bool{false, true} {
		s := newSite(t)
		k, _ := s.enrolled("n0")
		backup := s.backup()
		s.must(s.replaceBoard("n0"))
		if enrolled {
			s.enrol(aChip(t).nodeKey(), "n0")
		}
		s.restore(backup)
		equal(t, "EK", s.record("n0").EK, "")
		for _, key := range []string{prefixEK + k.ekHash(), prefixKey + k.hash()} {
			if item, err := s.store.Get(t.Context(), key); err != nil || item.Revision != 0 {
				t.Errorf("%s is %q, %v", key, item.Value, err)
			}
		}
		s.enable("n0")
		if r := s.post(wire.PathChallenge, k.ChallengeRequest("n0")); r.code() == "" {
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.KeyBarred)
		}
		s.enrol(aChip(t).nodeKey(), "n0")
	}
}

// TestRestoreWithoutTheStoreWarns: a CRL does not say whose certificate was revoked.
func TestRestoreWithoutTheStoreWarns(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	s.enrolled("n1")
	backup := s.backup()
	s.clock.move(70 * 24 * time.Hour)
	next := s.mustRenew(cert)
	use(s.Head, next)
	s.revoke(RevokeRequest{IDs: []string{"n0", "n1"}})
	s.loseStore()
	done := s.restore(backup)
	equal(t, "ended", done.Ended, 3)
	equal(t, "lost", done.Lost, 1) // n1's is in the backup
	equal(t, "state of n1", s.record("n1").state(s.clock.now()), StateRevoked)
	if !onCRL(s, next) {
		t.Error("n0's is no more on the CRL")
	}
	// For as long as it must be: by the backup, or as long as any may live.
	until := func(c *x509.Certificate) time.Time {
		item, err := s.store.Get(t.Context(), prefixEnded+serialHex(c.SerialNumber))
		s.must(err)
		e, err := parse[ended](item)
		s.must(err)
		return e.NotAfter
	}
	equal(t, "until, by the backup", until(cert), cert.NotAfter)
	if got := until(next); got.Before(next.NotAfter) || got.After(s.clock.now().Add(MaxLife)) {
		t.Errorf("until, by the CRL: %v", got)
	}
}

// TestRestoreAfterRevokeAll: that a CA ended says nothing of its nodes: each comes back with its key (I3).
func TestRestoreAfterRevokeAll(t *testing.T) {
	for name, late := range map[string]bool{"of before": false, "of after": true} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			k, _ := s.enrolled("n0")
			revoked, _ := s.enrolled("n1")
			s.revoke(RevokeRequest{IDs: []string{"n1"}})
			s.clock.move(time.Hour)
			backup := s.backup()
			s.rotate(RotateRequest{RevokeAll: true})
			if late {
				backup = s.backup()
			}
			check := func() {
				t.Helper()
				item, err := s.store.Get(t.Context(), prefixSlot+"n0")
				s.must(err)
				n0, err := s.readSlot(item)
				s.must(err)
				equal(t, "state of n0", n0.state(s.clock.now()), StateExpired)
				equal(t, "use", use(s.Head, certificate(t, s.enrol(k, "n0").Cert)), "")
				equal(t, "state of n1", s.record("n1").state(s.clock.now()), StateRevoked)
				refusedWith(t, s.post(wire.PathEnroll, s.answered(revoked, "n1")), wire.Revoked)
			}
			s.restore(backup)
			check()
			_, err := Settle(t.Context(), s.dir, s.store, nil, map[string]string{}, s.clock.now())
			s.must(err)
			s.restart()
			equal(t, "state of n0 after --accept", s.record("n0").state(s.clock.now()), StateActive)
		})
	}
}

// TestAcceptBeforeNodesAreBack: nor does restore --accept right after it.
func TestAcceptBeforeNodesAreBack(t *testing.T) {
	s := newSite(t)
	k, _ := s.enrolled("n0")
	s.rotate(RotateRequest{RevokeAll: true})
	done, err := Settle(t.Context(), s.dir, s.store, nil, map[string]string{}, s.clock.now())
	s.must(err)
	s.must(done.Witness(s.dir))
	s.restart()
	s.enrol(k, "n0")
}

// TestAcceptDamaged: one damaged record does not keep the others from being settled.
func TestAcceptDamaged(t *testing.T) {
	for _, damaged := range []string{prefixSlot + "n1", prefixCRL, keyEpoch, prefixEnded, prefixBarred} {
		t.Run(damaged, func(t *testing.T) {
			s := newSite(t)
			s.enable("n0")
			_, cert := s.enrolled("n1")
			revoked, gone := s.enrolled("n2")
			s.revoke(RevokeRequest{IDs: []string{"n2"}})
			switch damaged {
			case prefixCRL:
				damaged += s.ca().id()
			case prefixEnded:
				damaged += serialHex(gone.SerialNumber)
			case prefixBarred:
				damaged += revoked.hash()
			}
			number := s.crlView().Number
			f := &failing{Store: s.store, damaged: damaged}
			done, err := Settle(t.Context(), s.dir, f, nil, map[string]string{}, s.clock.now())
			s.must(err)
			equal(t, "closed", fold(done.Closed), "n0")
			want := ""
			if damaged == prefixSlot+"n1" {
				want = "n1"
			}
			equal(t, "unread", fold(done.Unread), want)
			equal(t, "epoch", done.Epoch, s.epoch.Load()+1)
			s.must(done.Witness(s.dir))
			s.restart()
			s.signs("")
			equal(t, "use", use(s.Head, cert), "")
			if now := s.crlView(); now.Number <= number || !onCRL(s, gone) {
				t.Errorf("CRL %+v after %d", now, number)
			}
		})
	}
}

// TestBackupOfADamagedStore: what cannot be read keeps nothing else from being saved, and what it closed stays closed.
func TestBackupOfADamagedStore(t *testing.T) {
	for _, kind := range []string{prefixSlot, prefixEnded, prefixBarred, prefixEK, prefixCRL} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			_, cert := s.enrolled("n0")
			k, gone := s.enrolled("n1")
			s.revoke(RevokeRequest{IDs: []string{"n1"}})
			damaged := kind + map[string]string{
				prefixSlot: "n1", prefixEnded: serialHex(gone.SerialNumber), prefixBarred: k.hash(), prefixEK: k.ekHash(), prefixCRL: s.ca().id(),
			}[kind]
			f := s.failing()
			f.damaged = damaged
			s.Head.store = viewing{s.Head.store, f}
			backup := s.backup()
			found, err := ReadBackup(bytes.NewReader(backup), nil, nil)
			s.must(err)
			equal(t, "damaged", strings.Join(found.Damaged, " "), damaged)
			s.wrap = nil
			s.must(os.Rename(s.dir+"/public", s.dir+"/public.lost")) // so that the backup alone can tell
			s.must(os.Mkdir(s.dir+"/public", 0o755))
			s.loseStore()
			s.restore(backup)
			equal(t, "use", use(s.Head, cert), "")
			equal(t, "on the CRL", onCRL(s, gone), true)
			if kind == prefixSlot {
				if err := s.tryEnable("n1", again); err == nil {
					t.Error("a name whose record is damaged is enabled")
				}
				return
			}
			equal(t, "use of what was revoked", use(s.Head, gone), wire.Revoked)
			s.must(s.tryEnable("n1", again))
			r := s.post(wire.PathChallenge, k.ChallengeRequest("n1"))
			if r.code() == "" {
				r = s.post(wire.PathEnroll, s.answered(k, "n1"))
			}
			if r.status == http.StatusOK {
				t.Error("the key that was barred is certified")
			}
		})
	}
	s := newSite(t)
	f := s.failing()
	f.damaged = keyCAs
	s.Head.store = viewing{s.Head.store, f}
	if _, err := s.adminBackup(t.Context(), BackupRequest{}, noStream()); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("without its CAs: %v", err)
	}
}

// viewing is a store whose views are damaged, too.
type viewing struct {
	store.Store
	f *failing
}

func (v viewing) View(ctx context.Context) (store.View, error) {
	view, err := v.f.Store.View(ctx)
	return damagedView{view, v.f}, err
}

type damagedView struct {
	store.View
	f *failing
}

func (v damagedView) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	return v.f.List(ctx, prefix)
}

// TestRestoreNeedsTheKeysThatSign: a key that has not got its name yet is one, and that of a CA which signs CRLs alone
// is missed in a warning only.
func TestRestoreNeedsTheKeysThatSign(t *testing.T) {
	s := newSite(t)
	old := s.caFile(s.ca().keyFile)
	s.rotate(RotateRequest{})
	backup := s.backup()
	found, err := ReadBackup(bytes.NewReader(backup), nil, nil)
	s.must(err)
	can := func() error { return CanRestore(t.Context(), s.dir, found, s.store) }
	next := s.caFile(s.ring.Load().newest().keyFile)
	s.must(os.Rename(next, next+unborn)) // a power cut before keepKeys
	s.must(can())
	s.must(os.Rename(next+unborn, next+".away"))
	if can() == nil {
		t.Error("restored without the key of the next CA")
	}
	s.must(os.Rename(next+".away", next))
	s.rotate(RotateRequest{Finish: true, Force: true})
	s.must(os.Remove(old))
	s.must(can())
	equal(t, "away", strings.Join(KeysAway(t.Context(), s.dir, found, s.store), " "), filepath.Base(old))
	s.must(os.Remove(next))
	if can() == nil {
		t.Error("restored without the key of the CA that signs")
	}
}

// TestRestoreOfTheLaterRoles: a backup that is newer than the store tells which CA signs.
func TestRestoreOfTheLaterRoles(t *testing.T) {
	s := newSite(t)
	s.rotate(RotateRequest{})
	s.must(s.store.Close())
	begun := s.file("store.db")
	s.openStore()
	s.open()
	s.rotate(RotateRequest{Finish: true, Force: true})
	pin, finished := s.ca().pin(), s.backup()
	s.swap(begun)
	s.signs(whyRollback)
	s.restore(finished)
	equal(t, "the CA that signs", s.ca().pin(), pin)
	// And the store where that is the newer one, by a journal of its own.
	earlier := s.backup()
	s.rotate(RotateRequest{})
	early := s.backup()
	s.rotate(RotateRequest{Finish: true, Force: true})
	pin = s.ca().pin()
	for _, backup := range [][]byte{earlier, early} {
		s.restore(backup)
		equal(t, "the CA that signs after an older backup", s.ca().pin(), pin)
	}
}

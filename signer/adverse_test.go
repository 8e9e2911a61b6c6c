package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// crlOf is the newest CRL of a CA.
func (s *site) crlOf(id string) *x509.RevocationList {
	s.t.Helper()
	return s.ring.Load().byID(id).crl.list.Load()
}

// enrolled is a node with its certificate, in use.
func (s *site) enrolled(name string) (*key, *x509.Certificate) {
	s.t.Helper()
	k := aChip(s.t.(*testing.T)).nodeKey()
	s.enable(name)
	cert := certificate(s.t, s.enrol(k, name).Cert)
	equal(s.t, "first use", use(s.Head, cert), "")
	return k, cert
}

// TestRotationInterrupted: whoever asked for it goes away while it is being written down. It is done all the same,
// and can be followed by another.
func TestRotationInterrupted(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	_, cert := s.enrolled("n0")
	ctx, cancel := context.WithCancel(context.Background())
	f.after = func(tx store.Tx) {
		if puts(tx, keyCAs) {
			cancel()
		}
	}
	old := s.ca().id()
	if _, err := s.adminRotate(ctx, RotateRequest{Compromised: true}, noStream()); err != nil {
		t.Errorf("it says %v", err)
	}
	if s.ca().id() == old {
		t.Error("the burnt CA signs on")
	}
	equal(t, "use", use(s.Head, cert), wire.NotEnabled)
	f.after = nil
	s.rotate(RotateRequest{})
	s.restart()
	equal(t, "CAs", len(s.ring.Load().members), 3)
}

// TestRotationOfUnknownOutcome: the store says that it failed, and has written all the same.
func TestRotationOfUnknownOutcome(t *testing.T) {
	for _, written := range []bool{true, false} {
		s := newSite(t)
		f := s.failing()
		old := s.ca().id()
		f.before = func(tx store.Tx) error {
			if !puts(tx, keyCAs) {
				return nil
			}
			if written {
				s.must(s.store.Commit(context.Background(), tx))
			}
			return errors.New("nobody knows")
		}
		_, err := s.tryRotate(RotateRequest{Compromised: true})
		equal(t, "succeeds", err == nil, written)
		equal(t, "the old CA signs", s.ca().id() == old, !written)
		f.before = nil
		s.rotate(RotateRequest{})
		s.restart()
	}
}

// TestRevokeFails: a revocation that is not on record is not called one.
func TestRevokeFails(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	_, cert := s.enrolled("n0")
	f.before = func(tx store.Tx) error {
		if puts(tx, prefixSlot) {
			return store.ErrFull
		}
		return nil
	}
	for _, req := range []RevokeRequest{{IDs: []string{"n0"}}, {Serial: serialHex(cert.SerialNumber)}} {
		if _, err := s.tryRevoke(req); !errors.Is(err, store.ErrFull) || strings.Contains(err.Error(), "revoked") {
			t.Errorf("it says %v", err)
		}
	}
	equal(t, "use", use(s.Head, cert), "")
}

// TestCRLOnFullDisk: where the CRL cannot be written to its files, it is served all the same, and the next look writes
// it.
func TestCRLOnFullDisk(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	dir := filepath.Join(s.dir, "public")
	s.must(os.Rename(dir, dir+".away"))
	_, err := s.tryRevoke(RevokeRequest{IDs: []string{"n0"}})
	var partly *AdminError
	if !errors.As(err, &partly) || partly.Kind != KindPartly {
		t.Errorf("revoke says %v", err)
	}
	wantListed(t, s.crlServed(), cert)
	equal(t, "CRLs asked for", len(s.crlAsked), 1)
	s.must(os.Rename(dir+".away", dir))
	wantListed(t, s.crlNow(), cert)
	inFile, err := x509.ParseRevocationList(s.file("public/" + filepath.Base(crlPath(s.ca().id()))))
	s.must(err)
	wantListed(t, inFile, cert)
}

// TestRetireWaits: a CA is there as long as any certificate of it is in date, ended or not, and its CRL with it.
func TestRetireWaits(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	old := s.ca().id()
	s.rotate(RotateRequest{})
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	s.rotate(RotateRequest{Finish: true})
	s.clock.move(headLife + time.Hour)
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(old).role, roleRetired)
	s.must(s.signCRLs(context.Background()))
	listed := false
	for _, e := range s.crlOf(old).RevokedCertificateEntries {
		listed = listed || e.SerialNumber.Cmp(cert.SerialNumber) == 0
	}
	equal(t, "listed", listed, true)
	equal(t, "CRLs in crl.pem", strings.Count(string(s.file("public/crl.pem")), "BEGIN"), 2)
}

// TestRetireDamaged: a record that cannot be read may be of the CA's last certificate, but not for ever.
func TestRetireDamaged(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	_, cert := s.enrolled("n0")
	old := s.ca()
	s.rotate(RotateRequest{})
	s.rotate(RotateRequest{Finish: true, Force: true})
	f.damaged = prefixCert + serialHex(cert.SerialNumber)
	for _, after := range []struct {
		gone time.Duration
		role role
	}{{headLife + keptFor + time.Hour, roleRetired}, {MaxLife - headLife - 2*time.Hour, roleRetired}, {2 * time.Hour, roleOver}} {
		s.clock.move(after.gone)
		s.must(s.retire(context.Background(), s.clock.now()))
		equal(t, "role", s.ring.Load().byID(old.id()).role, after.role)
		_, err := os.Stat(s.caFile(old.keyFile))
		equal(t, "the key is there", err == nil, after.role == roleRetired)
	}
}

// TestLinkBack: who trusts the new CA alone is told to believe the old one only as long as that one's certificates
// need it, and no CA below it.
func TestLinkBack(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	s.rotate(RotateRequest{})
	back := func() *x509.Certificate { return certificate(t, s.ring.Load().newest().back) }
	fits := func(leaf *x509.Certificate, slack time.Duration) {
		t.Helper()
		if b := back(); b.NotAfter.Before(leaf.NotAfter) || b.NotAfter.After(leaf.NotAfter.Add(slack)) || !b.MaxPathLenZero || b.MaxPathLen != 0 {
			t.Errorf("good until %v, with a path length of %d, and the last certificate until %v", b.NotAfter, b.MaxPathLen, leaf.NotAfter)
		}
	}
	fits(cert, linkSlack+time.Minute)
	// The old CA goes on signing, and the link follows.
	s.clock.move(3 * 24 * time.Hour)
	_, later := s.enrolled("n1")
	s.must(s.linkBack(context.Background(), s.clock.now()))
	fits(later, linkSlack+time.Minute)
	before := s.ring.Load()
	s.must(s.linkBack(context.Background(), s.clock.now()))
	if s.ring.Load() != before {
		t.Error("it is made anew for nothing")
	}
	s.rotate(RotateRequest{Finish: true, Force: true})
	fits(later, linkSlack+time.Minute)
}

// TestRevokeAllWithinARotation: the next CA, which is about already and vouches for the old one, ends too.
func TestRevokeAllWithinARotation(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	oldOnly := s.trusting(s.bundle())
	s.rotate(RotateRequest{})
	next := s.ring.Load().newest()
	nextOnly, back := s.trusting(string(certificatePEM(next.cert.Raw))), certificate(t, next.back)
	s.rotate(RotateRequest{RevokeAll: true})
	now := s.trusting(s.bundle())
	pool := x509.NewCertPool()
	pool.AddCert(back)
	_, err := cert.Verify(x509.VerifyOptions{Roots: now.roots, Intermediates: pool, CurrentTime: s.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err == nil {
		t.Error("a link that was about before vouches for a certificate that ended")
	}
	for name, v := range map[string]*verifier{"old": oldOnly, "next": nextOnly} {
		if err := s.takes(v, s.server.Load().Leaf); err != nil {
			t.Errorf("a node that pins the %s CA cannot come back: %v", name, err)
		}
	}
}

// TestEnrolDuringRevokeAll: nothing is signed by a CA that ends at that moment, and no grant is lost to it.
func TestEnrolDuringRevokeAll(t *testing.T) {
	for _, req := range []RotateRequest{{RevokeAll: true}, {Compromised: true}} {
		s := newSite(t)
		f := s.failing()
		s.enable("n0")
		k := aChip(t).nodeKey()
		answer := s.answered(k, "n0")
		f.before = func(tx store.Tx) error {
			if puts(tx, prefixSlot) {
				f.before = nil
				s.rotate(req)
			}
			return nil
		}
		r := s.post(wire.PathEnroll, answer)
		cert := certificate(t, decoded[wire.Enrolled](t, r).Cert)
		s.must(cert.CheckSignatureFrom(s.ca().cert))
		equal(t, "use", use(s.Head, cert), "")
	}
}

// TestAnotherHeadFollows: a head learns of the CAs that another one made, before it signs and at its next look.
func TestAnotherHeadFollows(t *testing.T) {
	s := newSite(t)
	other, err := s.another()
	s.must(err)
	_, cert := s.enrolled("n0")
	s.enable("n1")
	k := aChip(t).nodeKey()
	old := s.ca()
	s.rotate(RotateRequest{RevokeAll: true})
	r := post(other, wire.PathEnroll, wire.Encode(s.answered(k, "n1")))
	s.must(certificate(t, decoded[wire.Enrolled](t, r).Cert).CheckSignatureFrom(s.ca().cert))
	equal(t, "use at the other head", use(other, cert), wire.NotEnabled)

	s.rotate(RotateRequest{})
	s.must(other.signCRLs(context.Background()))
	equal(t, "CAs that the other head knows", len(other.ring.Load().members), 3)
	wantListed(t, other.ring.Load().byID(old.id()).crl.list.Load(), append(s.headCertificates(old), cert)...)
	_, err = s.adminHost(context.Background(), HostRequest{Add: []string{"head2"}}, noStream())
	s.must(err)
	s.must(other.followHosts(context.Background()))
	equal(t, "hosts at the other head", strings.Join(*other.hosts.Load(), ","), "head,127.0.0.1,head2")
}

// TestRingsReadLate: a ring that was read in the middle of a rotation takes the place of no newer one, nor of the
// same one, whose CRL and responder would be gone.
func TestRingsReadLate(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	s.Head.passphrase = Passphrase("secret")
	_, cert := s.enrolled("n0")
	var late *ring
	f.after = func(tx store.Tx) {
		if puts(tx, keyCAs) {
			f.after = nil
			var err error
			late, err = s.readRing(context.Background())
			s.must(err)
		}
	}
	s.rotate(RotateRequest{RevokeAll: true})
	now := s.ring.Load()
	s.adopt(late)
	equal(t, "the ring is that of the rotation", s.ring.Load() == now, true)
	equal(t, "CRL of the new CA", s.public(crlPath(s.ca().id())).status, 200)
	equal(t, "its responder", s.ca().responder.Load() != nil, true)
	s.clock.move(time.Hour)
	s.rotate(RotateRequest{RevokeAll: true})
	s.adopt(late)
	equal(t, "CAs", len(s.ring.Load().members), 3)
	equal(t, "use", use(s.Head, cert), wire.NotEnabled)
}

// TestRingReadFirst: one that meets the conflict takes the new ring before the rotation itself does.
func TestRingReadFirst(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	f.after = func(tx store.Tx) {
		if !puts(tx, keyCAs) {
			return
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := s.followRing(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	s.rotate(RotateRequest{RevokeAll: true})
	s.must(s.followRing(context.Background()))
	equal(t, "CRL of the new CA", s.public(crlPath(s.ca().id())).status, 200)
	equal(t, "its responder", s.ca().responder.Load() != nil, true)
	equal(t, "the server's certificate is of the old CA", s.outdated(s.server.Load()), false)
}

// TestFollowedKeys: to decrypt a key costs a head much, so those in memory are not read again.
func TestFollowedKeys(t *testing.T) {
	s := newSite(t)
	old := s.ca()
	other, err := s.another()
	s.must(err)
	s.rotate(RotateRequest{})
	s.must(os.WriteFile(s.caFile(old.keyFile), nil, 0o600))
	s.must(other.followRing(context.Background()))
	equal(t, "CAs that sign", len(other.ring.Load().all()), 2)
	equal(t, "the old one's CRL is served", other.ring.Load().byID(old.id()).crl.list.Load() != nil, true)
}

// TestServerMadeDuringRotation: a certificate that the old CA signed for this head does not replace the new one's.
func TestServerMadeDuringRotation(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	f.before = func(tx store.Tx) error {
		if puts(tx, prefixCert) {
			f.before = nil
			s.rotate(RotateRequest{RevokeAll: true})
		}
		return nil
	}
	s.must(s.renewServer(context.Background()))
	s.must(s.server.Load().Leaf.CheckSignatureFrom(s.ca().cert))
}

// TestBurntStaysBurnt whatever comes after.
func TestBurntStaysBurnt(t *testing.T) {
	s := newSite(t)
	s.enrolled("n0")
	old := s.ca().id()
	s.rotate(RotateRequest{Compromised: true})
	first := s.crlOf(old).RevokedCertificateEntries
	s.clock.move(time.Hour)
	s.rotate(RotateRequest{RevokeAll: true})
	equal(t, "role", s.ring.Load().byID(old).role, roleBurnt)
	for i, e := range s.crlOf(old).RevokedCertificateEntries {
		equal(t, "reason", e.ReasonCode, int(caCompromise))
		equal(t, "moment", e.RevocationTime.Equal(first[i].RevocationTime), true)
	}
	s.clock.move(nodeLife + keptFor + time.Hour)
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(old).role, roleBurnt)
	equal(t, "vouches", s.ring.Load().lives(old), false)
}

// TestEmergencyTwice: the second of two in a row would burn the pin that the first has just printed.
func TestEmergencyTwice(t *testing.T) {
	s := newSite(t)
	s.rotate(RotateRequest{Compromised: true})
	var refused *AdminError
	if _, err := s.tryRotate(RotateRequest{Compromised: true}); !errors.As(err, &refused) || refused.Kind != KindPolicy || !strings.Contains(refused.Hint, "--force") {
		t.Errorf("at once: %v", err)
	}
	s.rotate(RotateRequest{Compromised: true, Force: true})
	s.clock.move(tooSoon + time.Second)
	s.rotate(RotateRequest{Compromised: true})
}

// TestCompromisedEpoch: the epoch key lay beside the CA's.
func TestCompromisedEpoch(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	answer := s.answered(aChip(t).nodeKey(), "n0")
	before := string(s.file(epochFile))
	s.rotate(RotateRequest{Compromised: true})
	equal(t, "epoch key unchanged", string(s.file(epochFile)) == before, false)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
}

// TestEpochsAtOnce: a key that --compromised throws away does not come back as the last of a rotation that is due at
// that moment.
func TestEpochsAtOnce(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	k := aChip(t).nodeKey()
	for range 50 {
		answer := s.answered(k, "n0")
		var wg sync.WaitGroup
		for _, replace := range []func() error{s.newEpochs, s.rotateEpoch} {
			wg.Go(func() {
				if err := replace(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		refusedWith(t, s.post(wire.PathEnroll, answer), wire.StaleChallenge)
		equal(t, "epoch keys in memory and on the disk are the same", string(s.file(epochFile)) == string(s.verifier.Epochs.Marshal()), true)
	}
}

// TestKeysGo: the key of a CA that is over goes, though the head could not finish then.
func TestKeysGo(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	old := s.ca()
	s.rotate(RotateRequest{})
	s.rotate(RotateRequest{Finish: true})
	s.clock.move(headLife + keptFor + time.Hour)
	f.before = func(tx store.Tx) error {
		if puts(tx, prefixCRL) {
			return store.ErrFull
		}
		return nil
	}
	if err := s.retire(context.Background(), s.clock.now()); err == nil {
		t.Error("all went well")
	}
	equal(t, "role", s.ring.Load().byID(old.id()).role, roleOver)
	if _, err := os.Stat(s.caFile(old.keyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key: %v", err)
	}
	f.before = nil
	s.must(os.WriteFile(s.caFile(old.keyFile), []byte("put back from a copy"), 0o600))
	s.restart()
	if _, err := os.Stat(s.caFile(old.keyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key after a restart: %v", err)
	}
}

// TestLostKey: without the key of a CA that does not sign, the head goes on.
func TestLostKey(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	old := s.ca().id()
	s.rotate(RotateRequest{RevokeAll: true})
	s.must(os.Remove(filepath.Join(s.dir, caKeyFile)))
	s.restart()
	equal(t, "use", use(s.Head, cert), wire.NotEnabled)
	equal(t, "its CRL", s.public(crlPath(old)).status, 200)
	s.must(s.signCRLs(context.Background()))
	s.must(os.RemoveAll(s.crlFile(s.ca())))
	s.must(os.Mkdir(s.crlFile(s.ca()), 0o755))
	s.restart()
}

// TestKeyWithoutItsName: the head ended between the record of the next CA and its key's renaming.
func TestKeyWithoutItsName(t *testing.T) {
	s := newSite(t)
	s.rotate(RotateRequest{})
	path := s.caFile(s.ring.Load().newest().keyFile)
	s.must(os.Rename(path, path+unborn))
	s.restart()
	if s.ring.Load().newest().key == nil {
		t.Error("the key was not found")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	s.rotate(RotateRequest{Finish: true})
}

// TestDamagedRecordsInARotation: one record that cannot be read stops nothing but what it is about.
func TestDamagedRecordsInARotation(t *testing.T) {
	s := newSite(t)
	f := s.failing()
	_, c0 := s.enrolled("n0")
	s.enrolled("n1")
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	serial := serialHex(c0.SerialNumber)

	f.damaged = prefixEnded + serial
	wantListed(t, s.crlNow(), c0)
	f.damaged = prefixCRL + s.ca().id()
	last := s.crlServed().Number
	if next := s.crlNow().Number; next.Cmp(last) <= 0 {
		t.Errorf("number %v follows %v", next, last)
	}
	if _, err := s.another(); err != nil {
		t.Errorf("start: %v", err)
	}
	f.damaged = prefixSlot + "n0"
	done := s.rotate(RotateRequest{})
	equal(t, "waiting", done.Waiting, "n[0-1]")
	s.rotate(RotateRequest{Finish: true, Force: true})
	f.damaged = prefixCert + serial
	if _, err := s.adminCA(context.Background(), struct{}{}, noStream()); err != nil {
		t.Errorf("ca show: %v", err)
	}
	s.must(s.prune(context.Background(), s.clock.now()))
	s.rotate(RotateRequest{RevokeAll: true})
}

// TestOldKeysAreBarred: with a certificate that is revoked by its serial number, its key is, unless the node goes on
// using it.
func TestOldKeysAreBarred(t *testing.T) {
	for what, superseded := range map[string]bool{"old": false, "superseded": true} {
		s, c := newSite(t), aChip(t)
		first, second := c.nodeKey(), c.nodeKey()
		s.enable("n0")
		old := certificate(t, s.enrol(first, "n0").Cert)
		equal(t, "first use", use(s.Head, old), "")
		s.enable("n0")
		next := certificate(t, s.enrol(second, "n0").Cert)
		if superseded {
			equal(t, "first use", use(s.Head, next), "")
		}
		equal(t, what, s.revoke(RevokeRequest{Serial: serialHex(old.SerialNumber), Reason: "keyCompromise"}).Altered, "n0")
		s.enable("n0")
		refusedWith(t, s.post(wire.PathEnroll, s.answered(first, "n0")), wire.KeyBarred)
		equal(t, "use of the new one", use(s.Head, next), "")
	}
}

// TestCompromisedKeyEndsTheNode whichever of its certificates is named.
func TestCompromisedKeyEndsTheNode(t *testing.T) {
	s := newSite(t)
	k, old := s.enrolled("n0")
	s.enable("n0", pinned(k.ekHash())) // the same key, at a higher level
	next := certificate(t, s.enrol(k, "n0").Cert)
	s.revoke(RevokeRequest{Serial: serialHex(old.SerialNumber), Reason: "keyCompromise"})
	equal(t, "use", use(s.Head, next), wire.Revoked)
}

// TestEndsArePruned, of certificates whose own record is gone too.
func TestEndsArePruned(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	s.clock.move(nodeLife + keptFor + time.Hour)
	s.must(s.prune(context.Background(), s.clock.now()))
	s.revoke(RevokeRequest{IDs: []string{"n0"}})
	s.must(s.prune(context.Background(), s.clock.now()))
	item, err := s.store.Get(context.Background(), prefixEnded+serialHex(cert.SerialNumber))
	s.must(err)
	equal(t, "revision", item.Revision, uint64(0))
}

// TestRevokeOwnServer: the head makes itself another certificate at once.
func TestRevokeOwnServer(t *testing.T) {
	s := newSite(t)
	leaf := s.server.Load().Leaf
	s.revoke(RevokeRequest{Serial: serialHex(leaf.SerialNumber)})
	equal(t, "the same one serves", s.server.Load().Leaf.Equal(leaf), false)
}

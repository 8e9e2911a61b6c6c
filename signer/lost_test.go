package signer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// lostCertificate is one that a restore made unknown, and that its node has shown since.
func lostCertificate(t *testing.T) (*site, *key, *x509.Certificate) {
	t.Helper()
	s := newSite(t)
	s.enable("n0")
	backup := s.backup()
	k := aChip(t).nodeKey()
	cert := certificate(t, s.enrol(k, "n0").Cert)
	use(s.Head, cert)
	s.restore(backup)
	use(s.Head, cert)
	equal(t, "quarantined", len(s.quarantined(t)), 1)
	return s, k, cert
}

// TestRevokeLost: a certificate that a restore has lost is revoked by its number, with its node, and with its CA.
func TestRevokeLost(t *testing.T) {
	for name, how := range map[string]struct {
		end  func(*site, *x509.Certificate)
		kept bool // in the quarantine
	}{
		"by number": {func(s *site, cert *x509.Certificate) {
			equal(s.t, "revoked", s.revoke(RevokeRequest{Serial: serialHex(cert.SerialNumber), Reason: "keyCompromise"}).Altered, "n0")
		}, false},
		"with its node": {func(s *site, _ *x509.Certificate) { s.revoke(RevokeRequest{IDs: []string{"n0"}}) }, false},
		"removed":       {func(s *site, _ *x509.Certificate) { s.remove("n0") }, false},
		"by number, of a node that is no more": {func(s *site, cert *x509.Certificate) {
			s.must(s.store.Commit(context.Background(), store.Tx{Deletes: []string{prefixSlot + "n0"}}))
			s.revoke(RevokeRequest{Serial: serialHex(cert.SerialNumber)})
		}, false},
		"with its CA": {func(s *site, _ *x509.Certificate) { s.rotate(RotateRequest{RevokeAll: true}) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, k, cert := lostCertificate(t)
			equal(t, "on the CRL before", onCRL(s, cert), false)
			how.end(s, cert)
			equal(t, "on the CRL", onCRL(s, cert), true)
			equal(t, "in the quarantine", len(s.quarantined(t)) > 0, how.kept)
			if how.kept {
				return
			}
			s.enable("n0", again)
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k, "n0")), wire.KeyBarred)
			equal(t, "on record", certOf(t.Context(), s.store, serialHex(cert.SerialNumber)).Name, "n0")
		})
	}
}

// TestRevokeLostNotItsKey: a node whose key has another certificate that lives keeps it.
func TestRevokeLostNotItsKey(t *testing.T) {
	s := newSite(t)
	k, first := s.enrolled("n0")
	backup := s.backup()
	s.clock.move(70 * 24 * time.Hour)
	next := s.mustRenew(first)
	s.restore(backup)
	use(s.Head, next)
	s.revoke(RevokeRequest{Serial: serialHex(next.SerialNumber)})
	equal(t, "on the CRL", onCRL(s, next), true)
	equal(t, "use of the first", use(s.Head, first), "")
	item, err := s.store.Get(t.Context(), prefixBarred+k.hash())
	s.must(err)
	equal(t, "barred", item.Revision != 0, false)
}

// TestRevokeSerialOfNoRecord: a certificate that no slot names any more is on the CRL once it is revoked.
func TestRevokeSerialOfNoRecord(t *testing.T) {
	s := newSite(t)
	_, cert := s.enrolled("n0")
	s.must(s.store.Commit(t.Context(), store.Tx{Deletes: []string{prefixSlot + "n0"}})) // a backup from before, say
	s.enable("n0")
	equal(t, "revoked", s.revoke(RevokeRequest{Serial: serialHex(cert.SerialNumber)}).Altered, "n0")
	equal(t, "on the CRL", onCRL(s, cert), true)
	equal(t, "twice", s.revoke(RevokeRequest{Serial: serialHex(cert.SerialNumber)}).Unchanged, "n0")
}

// TestQuarantineIsBounded: a burnt CA fills nothing, what is over is forgotten, and a full one costs no listing.
func TestQuarantineIsBounded(t *testing.T) {
	s := newSite(t)
	forge := func(ca *authority) *x509.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		s.must(err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "x1"}, URIs: []*url.URL{s.spiffe("node", "x1")},
			NotBefore: noon, NotAfter: noon.Add(90 * 24 * time.Hour),
		}, ca.cert, key.Public(), ca.key)
		s.must(err)
		return certificate(t, der)
	}
	old := s.ca()
	s.rotate(RotateRequest{Compromised: true})
	use(s.Head, forge(old))
	equal(t, "of a burnt CA", s.countUnknown(t.Context()), 0)

	one := forge(s.ca())
	use(s.Head, one)
	equal(t, "of one that lives", s.countUnknown(t.Context()), 1)
	s.must(s.store.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: prefixUnknown + "damaged", Value: []byte("{")}}}))
	equal(t, "listed beside one that is damaged", len(s.quarantined(t)), 1)
	s.must(s.prune(t.Context(), one.NotAfter.Add(keptFor-time.Hour)))
	equal(t, "after its time", s.countUnknown(t.Context()), 2)
	s.must(s.prune(t.Context(), one.NotAfter.Add(keptFor+time.Hour)))
	equal(t, "long after", s.countUnknown(t.Context()), 1)

	b := &batch{ctx: t.Context(), st: s.store}
	for i := range maxUnknown - 1 {
		s.must(b.put(store.Put{Key: fmt.Sprintf("%s%032x", prefixUnknown, i+1), Value: []byte("{")}))
	}
	s.must(b.flush())
	lists := &listings{Store: s.store}
	s.Head.store = lists
	for range 10 {
		use(s.Head, forge(s.ca()))
	}
	equal(t, "times that it was counted", lists.n, 1)
	equal(t, "in it", s.countUnknown(t.Context()), maxUnknown)
}

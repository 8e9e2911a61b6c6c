package signer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// quarantined is `certs list --state unknown`.
func (s *site) quarantined(t *testing.T) []NodeView {
	t.Helper()
	var found []NodeView
	for _, f := range ask(t, s.adminSocket(t), AdminList, `{"state":"unknown"}`) {
		var v NodeView
		if f.Item != nil {
			s.must(json.Unmarshal(f.Item, &v))
			found = append(found, v)
		}
	}
	return found
}

// TestQuarantine: a certificate that our CA signed and that is not on record is refused, and recorded once.
func TestQuarantine(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n[0-1]")
	cert := certificate(t, s.enrol(k, "n0").Cert)
	lost := s.record("n0")
	lost.Cert, lost.Grant = nil, nil
	s.putRecord(lost)
	s.must(s.store.Commit(t.Context(), store.Tx{Deletes: []string{prefixCert + serialHex(cert.SerialNumber)}}))
	for range 3 {
		equal(t, "use", use(s.Head, cert), wire.NotEnabled)
	}
	found := s.quarantined(t)
	if len(found) != 1 || found[0].Serial != serialHex(cert.SerialNumber) || found[0].Node != "n0" || found[0].State != StateUnknown {
		t.Errorf("quarantined: %+v", found)
	}
	n := 0
	for _, e := range s.journal() {
		if e.Kind == "unknown-cert" {
			n++
		}
	}
	equal(t, "entries", n, 1)
	s.restart()
	equal(t, "use after a restart", use(s.Head, cert), wire.NotEnabled)
	equal(t, "quarantined after a restart", len(s.quarantined(t)), 1)
}

// TestStrangersFillNoQuarantine: what our CA did not sign, what has ended and what is over costs no write.
func TestStrangersFillNoQuarantine(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n[0-1]")
	first := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.enable("n0") // for a new key, so that the first certificate ends
	second := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	equal(t, "use", use(s.Head, second), "")
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	forge := func(uri string, by *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
		u, err := url.Parse(uri)
		s.must(err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: newSerial(), Subject: first.Subject, NotBefore: first.NotBefore, NotAfter: first.NotAfter, URIs: []*url.URL{u},
		}, by, own.Public(), key)
		s.must(err)
		return certificate(t, der)
	}
	impostor := *s.ca().cert // its name, with the stranger's key
	impostor.PublicKey = own.Public()
	before := len(s.journal())
	for name, cert := range map[string]*x509.Certificate{
		"ended":              first,
		"forged":             forge("spiffe://hpc.example/node/n0", &impostor, own),
		"of the CA, no node": forge("spiffe://hpc.example/head/n0", s.ca().cert, s.ca().key.(*ecdsa.PrivateKey)),
		"of another name":    forge("spiffe://hpc.example/node/n1", s.ca().cert, s.ca().key.(*ecdsa.PrivateKey)),
	} {
		equal(t, name, use(s.Head, cert), wire.NotEnabled)
		if found := s.quarantined(t); len(found) != 0 {
			t.Fatalf("%s: quarantined %+v", name, found)
		}
	}
	equal(t, "journal", len(s.journal()), before)
	good := forge("spiffe://hpc.example/node/n0", s.ca().cert, s.ca().key.(*ecdsa.PrivateKey))
	s.clock.move(91 * 24 * time.Hour)
	use(s.Head, good)
	equal(t, "when it is over", len(s.quarantined(t)), 0)
	s.clock.move(-91 * 24 * time.Hour)
	use(s.Head, good)
	equal(t, "control: the same in time", s.countUnknown(context.Background()), 1)
}

package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"muster/internal/testtpm"
	"muster/signer/store"
)

// crlNow signs a CRL and returns it as it is served, having checked what is true of each.
func (s *site) crlNow() *x509.RevocationList {
	s.t.Helper()
	s.must(s.signCRLs(context.Background()))
	return s.crlServed()
}

func (s *site) crlServed() *x509.RevocationList {
	s.t.Helper()
	list, err := x509.ParseRevocationList(s.crlBytes())
	s.must(err)
	s.must(list.CheckSignatureFrom(s.ca().cert))
	equal(s.t, "AKI", hex.EncodeToString(list.AuthorityKeyId), hex.EncodeToString(s.ca().cert.SubjectKeyId))
	equal(s.t, "issuer", hex.EncodeToString(list.RawIssuer), hex.EncodeToString(s.ca().cert.RawSubject))
	equal(s.t, "life", list.NextUpdate.Sub(list.ThisUpdate), crlLife)
	return list
}

func TestCRL(t *testing.T) {
	s, c := newSite(t), aChip(t)
	first := s.crlServed() // of the start
	equal(t, "entries", len(first.RevokedCertificateEntries), 0)
	equal(t, "number", first.Number.Int64(), 1)
	if !first.ThisUpdate.Equal(noon.Truncate(time.Second)) {
		t.Errorf("this update %v", first.ThisUpdate)
	}

	s.enable("n0")
	unused := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.enable("n0")
	used := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	wantListed(t, s.crlNow(), unused)
	equal(t, "first use", use(s.Head, used), "")
	s.enable("n0")
	last := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	wantListed(t, s.crlNow(), unused) // the one in use lives until its successor is used
	equal(t, "first use", use(s.Head, last), "")
	wantListed(t, s.crlNow(), unused, used)
	for _, e := range s.crlServed().RevokedCertificateEntries {
		if e.ReasonCode != int(superseded) || !e.RevocationTime.Equal(noon.Truncate(time.Second)) {
			t.Errorf("entry %x: reason %d at %v", e.SerialNumber, e.ReasonCode, e.RevocationTime)
		}
	}
	s.restart()
	wantListed(t, s.crlServed(), unused, used)
	s.clock.move(nodeLife + keptFor + 2*time.Second)
	wantListed(t, s.crlNow()) // both have expired
}

func wantListed(t *testing.T, list *x509.RevocationList, want ...*x509.Certificate) {
	t.Helper()
	listed := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		listed[serialHex(e.SerialNumber)] = true
	}
	if len(listed) != len(want) {
		t.Errorf("%d entries, want %d", len(listed), len(want))
	}
	for _, c := range want {
		if !listed[serialHex(c.SerialNumber)] {
			t.Errorf("%x is not listed", c.SerialNumber)
		}
	}
}

// TestCRLNeverGoesBack: its number grows with each, and its moment never goes down.
func TestCRLNeverGoesBack(t *testing.T) {
	s := newSite(t)
	last := s.crlServed()
	for _, step := range []time.Duration{0, time.Hour, -30 * time.Second, -20 * time.Second, time.Minute} {
		s.clock.move(step)
		next := s.crlNow()
		if next.Number.Cmp(last.Number) <= 0 || next.ThisUpdate.Before(last.ThisUpdate) {
			t.Errorf("after %v: number %v, %v follows %v, %v", step, next.Number, next.ThisUpdate, last.Number, last.ThisUpdate)
		}
		last = next
	}
	s.restart()
	if next := s.crlServed(); next.Number.Cmp(last.Number) <= 0 || next.ThisUpdate.Before(last.ThisUpdate) {
		t.Errorf("after a restart: number %v, %v", next.Number, next.ThisUpdate)
	}
	other, err := s.another()
	s.must(err)
	if list := other.ca().crl.list.Load(); list.Number.Cmp(s.crlServed().Number) <= 0 {
		t.Errorf("another head gave the number %v again", list.Number)
	}
}

// TestCRLGoesOnFromTheWitness: where record and file are those of an older disk, the number is the witness's. A head
// that signs CRLs alone makes no entry, so that the store is not seen to be older.
func TestCRLGoesOnFromTheWitness(t *testing.T) {
	s := newSite(t)
	name := "public/" + s.ca().id() + crlSuffix
	s.must(s.store.Close())
	db, crl := s.file("store.db"), s.file(name)
	s.openStore()
	s.Head.store = witnessing{s.store, s.Head}
	for range 5 {
		s.clock.move(time.Hour)
		s.must(s.signCRLs(t.Context()))
	}
	before := s.crlView()
	s.clock.move(-4 * time.Hour)
	s.write(name, crl)
	s.swap(db)
	s.signs(whyClock)
	s.clock.move(4 * time.Hour)
	s.restart()
	s.signs("")
	if after := s.crlView(); after.Number <= before.Number || after.ThisUpdate.Before(before.ThisUpdate) {
		t.Errorf("CRL %+v after %+v", after, before)
	}
}

// TestDamagedCRLRecord: where the CRL is lost, too, the witness tells its number; where nothing does, the head goes on
// without.
func TestDamagedCRLRecord(t *testing.T) {
	for name, known := range map[string]bool{"to the witness": true, "to nobody": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			f := s.failing()
			before := s.crlView()
			f.damaged = prefixCRL + s.ca().id()
			s.must(os.Remove(s.crlFile(s.ca())))
			if !known {
				m := s.book.Load().last
				m.CRL = crlRecord{}
				_, err := writeWitness(s.dir, m)
				s.must(err)
			}
			s.restart()
			s.signs("")
			acceptClock(s)
			list := s.ca().crl.list.Load()
			equal(t, "a CRL", list != nil, known)
			if list != nil && list.Number.Int64() <= before.Number {
				t.Errorf("number %v after %d", list.Number, before.Number)
			}
		})
	}
}

// TestCRLIsDueWhenACertificateEnds and not otherwise.
func TestCRLIsDueWhenACertificateEnds(t *testing.T) {
	s, c := newSite(t), aChip(t)
	due := func() bool {
		select {
		case <-s.crlAsked:
			return true
		default:
			return false
		}
	}
	s.enable("n0")
	s.enrol(c.nodeKey(), "n0")
	equal(t, "due after a first certificate", due(), false)
	s.enable("n0")
	used := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	equal(t, "due after one that replaces an unused one", due(), true)
	equal(t, "first use", use(s.Head, used), "")
	s.enable("n0")
	next := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	equal(t, "due before the first use", due(), false)
	equal(t, "first use", use(s.Head, next), "")
	equal(t, "due after the first use", due(), true)
}

// TestCRLFiles: web servers on the head load the same CRL, as DER and as PEM.
func TestCRLFiles(t *testing.T) {
	s := newSite(t)
	base := filepath.Join(s.dir, "public", s.ca().id()+".crl")
	der, err := os.ReadFile(base)
	s.must(err)
	text, err := os.ReadFile(base + ".pem")
	s.must(err)
	block, rest := pem.Decode(text)
	if !bytes.Equal(der, s.crlBytes()) || block == nil || block.Type != "X509 CRL" || !bytes.Equal(block.Bytes, der) || len(rest) != 0 {
		t.Error("the files are not the CRL that is served")
	}
}

// TestCRLFilesMend: a file that a hand or a disk has damaged is never served, and is whole again after the next CRL.
func TestCRLFilesMend(t *testing.T) {
	s := newSite(t)
	foreign, err := newAuthority("Other", noon)
	s.must(err)
	forged, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(99), ThisUpdate: noon, NextUpdate: noon.Add(crlLife),
	}, foreign.cert, foreign.key)
	s.must(err)
	base := filepath.Join(s.dir, "public", s.ca().id()+".crl")
	all := filepath.Join(s.dir, "public", allCRLs)
	for what, damage := range map[string]func(){
		"removed": func() { s.must(errors.Join(os.Remove(base), os.Remove(base+".pem"), os.Remove(all))) },
		"torn":    func() { s.must(errors.Join(os.Truncate(base, 20), os.Truncate(base+".pem", 20), os.Truncate(all, 20))) },
		"forged":  func() { s.must(os.WriteFile(base, forged, 0o644)) },
	} {
		before := s.crlNow()
		damage()
		s.clock.move(-time.Hour) // a head that may not sign begins with the files
		s.restart()
		if what != "removed" && !bytes.Contains(s.log.Bytes(), []byte("CRL of the last run is not good")) {
			t.Errorf("%s: not logged", what)
		}
		if r := s.public(crlPath(s.ca().id())); r.status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %x", what, r.status, r.body)
		}
		s.clock.move(time.Hour)
		after := s.crlNow()
		if after.Number.Cmp(before.Number) <= 0 {
			t.Errorf("%s: number %v follows %v", what, after.Number, before.Number)
		}
		der, err := os.ReadFile(base)
		s.must(err)
		text, err := os.ReadFile(all)
		s.must(err)
		if !bytes.Equal(der, after.Raw) || !bytes.Equal(text, crlPEM(after)) {
			t.Errorf("%s: the files are not the CRL that is served", what)
		}
	}
}

// TestCRLSize: an entry costs less than 50 bytes, so that 10,000 nodes that are revoked at once make half a megabyte.
func TestCRLSize(t *testing.T) {
	s := newSite(t)
	const n = 1000
	var tx store.Tx
	for range n {
		c := issued{Serial: serialHex(newSerial()), CA: s.ca().id(), NotAfter: noon.Add(nodeLife)}
		if tx.Puts = append(tx.Puts, c.end(noon, keyCompromise)); len(tx.Puts) == 100 {
			s.must(s.store.Commit(context.Background(), tx))
			tx = store.Tx{}
		}
	}
	list := s.crlNow()
	equal(t, "entries", len(list.RevokedCertificateEntries), n)
	if len(list.Raw) > 50*n+500 {
		t.Errorf("%d bytes", len(list.Raw))
	}
	t.Logf("%d bytes for %d entries", len(list.Raw), n)
}

// TestOpenSSLTakesTheCRL: so that another reading of RFC 5280 than Go's agrees.
func TestOpenSSLTakesTheCRL(t *testing.T) {
	testtpm.Need(t, "openssl")
	s, c := newSite(t), aChip(t)
	s.enable("n0")
	old := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.enable("n0")
	good := certificate(t, s.enrol(c.nodeKey(), "n0").Cert)
	s.crlNow()
	dir := t.TempDir()
	file := func(name string, der []byte) string {
		path := filepath.Join(dir, name)
		s.must(os.WriteFile(path, certificatePEM(der), 0o600))
		return path
	}
	ca, crl := file("ca.pem", s.ca().cert.Raw), filepath.Join(s.dir, "public", s.ca().id()+".crl.pem")
	openssl := func(args ...string) ([]byte, error) { return exec.Command("openssl", args...).CombinedOutput() }

	out, err := openssl("crl", "-in", crl, "-CAfile", ca, "-verify", "-noout")
	if err != nil || !bytes.Contains(out, []byte("verify OK")) {
		t.Errorf("openssl crl: %v: %s", err, out)
	}
	foreign, err := newAuthority("Other", noon)
	s.must(err)
	out, _ = openssl("crl", "-in", crl, "-CAfile", file("other.pem", foreign.cert.Raw), "-verify", "-noout")
	if bytes.Contains(out, []byte("verify OK")) {
		t.Errorf("the judge takes everything: %s", out)
	}
	verify := func(leaf string) ([]byte, error) {
		at := big.NewInt(noon.Unix()).String()
		return openssl("verify", "-x509_strict", "-purpose", "sslclient", "-attime", at, "-crl_check", "-CRLfile", crl, "-CAfile", ca, leaf)
	}
	if out, err := verify(file("good.pem", good.Raw)); err != nil {
		t.Errorf("the good certificate: %s", out)
	}
	if out, err := verify(file("old.pem", old.Raw)); err == nil || !bytes.Contains(out, []byte("revoked")) {
		t.Errorf("the superseded certificate: %s", out)
	}
}

package signer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
)

func (s *site) rotate(req RotateRequest) Rotated {
	s.t.Helper()
	done, err := s.tryRotate(req)
	s.must(err)
	return done
}

func (s *site) tryRotate(req RotateRequest) (Rotated, error) {
	done, err := s.adminRotate(context.Background(), req, noStream())
	rotated, _ := done.(Rotated)
	return rotated, err
}

// verifier is somebody who trusts roots, and takes the certificates that a peer sends along.
type verifier struct {
	roots *x509.CertPool
}

// trusting trusts the CAs of a bundle.
func (s *site) trusting(bundle string) *verifier {
	v := &verifier{roots: x509.NewCertPool()}
	if !v.roots.AppendCertsFromPEM([]byte(bundle)) {
		s.t.Fatal("no CA in the bundle")
	}
	return v
}

// takes says whether v believes leaf when its holder sends along what the head sends now.
func (s *site) takes(v *verifier, leaf *x509.Certificate) error {
	s.t.Helper()
	sent := x509.NewCertPool()
	for _, der := range s.ring.Load().sent() {
		sent.AddCert(certificate(s.t, der))
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: sent, CurrentTime: s.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

func (s *site) bundle() string { return s.ring.Load().bundle() }

// ack is what an agent says when its files name the CA that self asks for.
func (s *site) ack(cert *x509.Certificate) wire.Code {
	s.t.Helper()
	self, no := s.self(context.Background(), cert, &peer{})
	if no != nil {
		return no.code
	}
	if self.Ack == "" {
		return ""
	}
	_, no = s.acknowledge(context.Background(), wire.Encode(wire.Acknowledge{V: wire.Version, CA: self.Ack}), cert, &peer{})
	if no != nil {
		return no.code
	}
	return ""
}

// TestRotation: at each step every certificate that is not over verifies, for who trusts the old CA alone, both,
// or the new one alone (I12).
func TestRotation(t *testing.T) {
	s, c := newSite(t), aChip(t)
	s.enable("n[0-1]")
	k0, k1 := c.nodeKey(), aChip(t).nodeKey()
	n0 := certificate(t, s.enrol(k0, "n0").Cert)
	n1 := certificate(t, s.enrol(k1, "n1").Cert)
	equal(t, "first use", use(s.Head, n0), "")
	equal(t, "first use", use(s.Head, n1), "")
	oldOnly, oldCA := s.trusting(s.bundle()), s.ca()
	verifiers := map[string]*verifier{"old": oldOnly}
	step := func(what string, leaves ...*x509.Certificate) {
		t.Helper()
		for _, leaf := range append(leaves, s.server.Load().Leaf) {
			for name, v := range verifiers {
				if err := s.takes(v, leaf); err != nil {
					t.Errorf("%s: %s, trusting %s: %v", what, leaf.Subject, name, err)
				}
			}
		}
	}
	step("before", n0, n1)

	done := s.rotate(RotateRequest{})
	equal(t, "waiting", done.Waiting, "n[0-1]")
	verifiers["both"] = s.trusting(s.bundle())
	verifiers["new"] = s.trusting(string(certificatePEM(s.ring.Load().newest().cert.Raw)))
	step("next made", n0, n1)
	equal(t, "signing", s.ca().id(), oldCA.id())
	equal(t, "pin", s.ring.Load().newest().pin(), done.Pin)
	if n := strings.Count(s.bundle(), "BEGIN"); n != 2 {
		t.Errorf("%d CAs in the bundle", n)
	}
	equal(t, "public/ca.pem", string(s.file("public/ca.pem")), s.bundle())
	if _, err := s.tryRotate(RotateRequest{}); err == nil {
		t.Error("two rotations at once")
	}

	var refused *AdminError
	if _, err := s.tryRotate(RotateRequest{Finish: true}); !errors.As(err, &refused) || refused.Kind != KindPolicy || !strings.Contains(refused.Message, "n[0-1]") {
		t.Errorf("finish before anybody knows: %v", err)
	}
	equal(t, "ack", s.ack(n0), "")
	equal(t, "ack again", s.ack(n0), "")
	if _, err := s.tryRotate(RotateRequest{Finish: true}); !errors.As(err, &refused) || !strings.HasSuffix(refused.Message, ": n1") {
		t.Errorf("finish before n1 knows: %v", err)
	}
	equal(t, "ack", s.ack(n1), "")
	s.restart()
	step("acknowledged", n0, n1)

	done = s.rotate(RotateRequest{Finish: true})
	equal(t, "signing", s.ca().pin(), done.Pin)
	step("finished", n0, n1)
	equal(t, "an old certificate", use(s.Head, n0), "")
	equal(t, "signer of the server's certificate", certificate(t, s.server.Load().Certificate[0]).Issuer.String(), s.ca().cert.Subject.String())
	s.enable("n2")
	n2 := certificate(t, s.enrol(aChip(t).nodeKey(), "n2").Cert)
	step("a node of the new CA", n0, n1, n2)
	s.restart()
	step("after a restart", n0, n1, n2)

	// The old CA retires with its last certificate, and its key goes.
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(oldCA.id()).role, roleRetired)
	s.clock.move(nodeLife + keptFor + time.Hour)
	s.must(s.renewServer(context.Background()))
	s.enable("n3")
	n2 = certificate(t, s.enrol(aChip(t).nodeKey(), "n3").Cert)
	s.must(s.retire(context.Background(), s.clock.now()))
	equal(t, "role", s.ring.Load().byID(oldCA.id()).role, roleOver)
	if _, err := os.Stat(filepath.Join(s.dir, caKeyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of a CA that is over is still there: %v", err)
	}
	s.restart()
	// A node that was away all the time still pins the old one alone.
	delete(verifiers, "both")
	step("the old one is over", n2)
	if n := strings.Count(s.bundle(), "BEGIN"); n != 1 {
		t.Errorf("%d CAs in the bundle", n)
	}
}

// TestRotationForced: who was left behind is named, and can still come back along the cross-certificate.
func TestRotationForced(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert)
	s.rotate(RotateRequest{})
	done := s.rotate(RotateRequest{Finish: true, Force: true})
	equal(t, "broken", done.Broken, "n0")
	equal(t, "use", use(s.Head, cert), "")
	if _, err := s.tryRotate(RotateRequest{Finish: true}); err == nil {
		t.Error("finished twice")
	}
}

// TestRevokeAll: all that the CA signed ends at once.
func TestRevokeAll(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert)
	equal(t, "first use", use(s.Head, cert), "")
	old, before := s.ca(), s.trusting(s.bundle())
	done := s.rotate(RotateRequest{RevokeAll: true})
	equal(t, "ended", done.Ended, 2) // the server's too
	equal(t, "use", use(s.Head, cert), wire.NotEnabled)
	equal(t, "reason", s.reasonOf(cert), whyCAEnded)
	crl, err := x509.ParseRevocationList(s.ring.Load().byID(old.id()).crl.list.Load().Raw)
	s.must(err)
	wantListed(t, crl, cert, s.headCertificates(old)[0])
	if err := s.takes(before, s.server.Load().Leaf); err != nil {
		t.Errorf("a node with the old pin cannot come back: %v", err)
	}
	now := s.trusting(s.bundle())
	if s.takes(now, cert) == nil {
		t.Error("who trusts the new CA believes a certificate of the old one")
	}
	s.restart()
	equal(t, "use after a restart", use(s.Head, cert), wire.NotEnabled)
	why, err := s.adminWhy(context.Background(), WhyRequest{ID: "n0"}, noStream())
	s.must(err)
	equal(t, "state", why.(WhyView).State, StateExpired)
}

// TestCompromised: nothing leads from the old CA to the new one, or back.
func TestCompromised(t *testing.T) {
	for what, prepare := range map[string]func(*site){
		"at once":           func(*site) {},
		"within a rotation": func(s *site) { s.rotate(RotateRequest{}) },
		"after one":         func(s *site) { s.rotate(RotateRequest{}); s.rotate(RotateRequest{Finish: true, Force: true}) },
	} {
		s := newSite(t)
		s.enable("n0")
		cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert)
		prepare(s)
		before := s.trusting(s.bundle())
		done := s.rotate(RotateRequest{Compromised: true})
		equal(t, what+": pin", s.ca().pin(), done.Pin)
		equal(t, what+": use", use(s.Head, cert), wire.NotEnabled)
		if s.takes(before, s.server.Load().Leaf) == nil {
			t.Errorf("%s: who trusts the burnt CA believes its successor", what)
		}
		if s.takes(s.trusting(s.bundle()), cert) == nil {
			t.Errorf("%s: who trusts the new CA believes a certificate of the burnt one", what)
		}
		s.restart()
		if n := len(s.ring.Load().sent()); n != 1 {
			t.Errorf("%s: %d certificates go along with the server's", what, n)
		}
	}
}

// TestRotationIsOfTheRecord: a key that no record names, of a rotation that was cut short, is nobody's CA.
func TestRotationIsOfTheRecord(t *testing.T) {
	s := newSite(t)
	a, err := newAuthority("Muster", noon)
	s.must(err)
	text, err := marshalKey(a.key, nil)
	s.must(err)
	orphan := s.caFile(a.id() + keySuffix + unborn)
	s.must(os.WriteFile(orphan, text, 0o600))
	s.restart()
	equal(t, "CAs", len(s.ring.Load().members), 1)
	s.rotate(RotateRequest{})
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan is still there: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(s.dir, "ca/*"))
	s.must(err)
	equal(t, "keys, and the witness with its own", len(files), 4)
}

// TestAcknowledge: only for the CA that is asked for, and only by who shows a certificate on record.
func TestAcknowledge(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	cert := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert)
	s.rotate(RotateRequest{})
	post := func(cert *x509.Certificate, body []byte) reply {
		r := httptest.NewRequest(http.MethodPost, wire.PathAck, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if cert != nil {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		}
		w := httptest.NewRecorder()
		s.NodeHandler().ServeHTTP(w, r)
		return reply{w.Code, w.Header(), w.Body.Bytes()}
	}
	good := wire.Encode(wire.Acknowledge{V: wire.Version, CA: s.ring.Load().newest().pin()})
	refusedWith(t, post(nil, good), wire.NotEnabled)
	refusedWith(t, post(s.server.Load().Leaf, good), wire.NotEnabled)
	refusedWith(t, post(cert, append(good, ' ')), wire.BadRequest)
	refusedWith(t, post(cert, wire.Encode(wire.Acknowledge{V: 2, CA: s.ca().pin()})), wire.BadRequest)
	equal(t, "another CA", post(cert, wire.Encode(wire.Acknowledge{V: wire.Version, CA: s.ca().pin()})).status, http.StatusOK)
	equal(t, "acknowledged", s.record("n0").Acked, "")
	equal(t, "right", post(cert, good).status, http.StatusOK)
	equal(t, "acknowledged", s.record("n0").Acked, s.ring.Load().newest().id())
}

// reasonOf is why a certificate is refused.
func (s *site) reasonOf(cert *x509.Certificate) reason {
	_, no := s.self(context.Background(), cert, &peer{})
	if no == nil {
		return ""
	}
	return no.reason
}

// headCertificates are those on record that a CA signed for heads.
func (s *site) headCertificates(ca *authority) []*x509.Certificate {
	var certs []*x509.Certificate
	for item, err := range s.store.List(context.Background(), prefixCert) {
		s.must(err)
		var c certRecord
		s.must(json.Unmarshal(item.Value, &c))
		if c.Class == classHead && c.CA == ca.id() {
			certs = append(certs, certificate(s.t, c.DER))
		}
	}
	slices.Reverse(certs)
	return certs
}

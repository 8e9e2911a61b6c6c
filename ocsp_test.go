package muster_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"muster/internal/testtpm"
)

// desk is what a judge needs to tell whether a certificate is revoked: files, PEM, and where OCSP is answered.
type desk struct {
	*bench
	responder string // certificate of the responder; for those who want it named
	ocsp      string // URL
}

// statusJudge is a program that nobody here wrote: it says "good" or "revoked" of a certificate, or an error if it
// does not believe what it was told.
type statusJudge struct {
	name  string
	needs string
	ocsp  bool // asks; else it reads the CRL
	rule  func(d *desk, cert string) (string, error)
}

var statusJudges = []statusJudge{
	{"openssl verify", "openssl", false, (*desk).opensslCRL},
	{"certtool", "certtool", false, (*desk).gnutlsCRL},
	{"nss", "crlutil", false, (*desk).nssCRL},
	{"strongswan", "pki", false, (*desk).strongswanCRL},
	{"openssl ocsp sha1", "openssl", true, func(d *desk, cert string) (string, error) { return d.opensslOCSP(cert, "-sha1") }},
	{"openssl ocsp sha256", "openssl", true, func(d *desk, cert string) (string, error) { return d.opensslOCSP(cert, "-sha256") }},
	{"openssl ocsp with a nonce", "openssl", true, func(d *desk, cert string) (string, error) { return d.opensslOCSP(cert, "-nonce") }},
	{"openssl ocsp GET", "openssl", true, (*desk).opensslGET},
	{"ocsptool", "ocsptool", true, (*desk).gnutlsOCSP},
	{"ocspclnt", "ocspclnt", true, (*desk).nssOCSP},
}

// TestRevocationJudges: of two nodes one is revoked. Every judge says so, by CRL and by OCSP; none believes an
// answer of a stranger who signs in the responder's name.
func TestRevocationJudges(t *testing.T) {
	t.Parallel()
	h := newHead(t)
	dir := t.TempDir()
	file := func(n *softNode) string {
		path := filepath.Join(dir, n.name+".pem")
		writePEM(t, path, "CERTIFICATE", n.cert.Raw)
		return path
	}
	goodNode := enrolSoft(t, h, "n0")
	good, gone := file(goodNode), file(enrolSoft(t, h, "n1"))
	h.must("certs", "revoke", "-i", "n1", "--reason", "keyCompromise", "--yes")
	ca, _ := readCA(t, h)
	real := &desk{&bench{t: t, ca: filepath.Join(h.dir, "public/ca.pem"), crl: filepath.Join(h.dir, "public/crl.pem")}, filepath.Join(dir, "responder.pem"), h.public("/ocsp")}
	writePEM(t, real.responder, "CERTIFICATE", responderOf(t, goodNode.cert, ca, real.ocsp))
	forged := &desk{real.bench, real.responder, falseResponder(t, ca)}
	for _, j := range statusJudges {
		t.Run(j.name, func(t *testing.T) {
			testtpm.Need(t, j.needs)
			at := func(d *desk) *desk {
				b := *d.bench
				b.t = t
				return &desk{&b, d.responder, d.ocsp}
			}
			for cert, want := range map[string]string{good: "good", gone: "revoked"} {
				if got, err := j.rule(at(real), cert); err != nil || got != want {
					t.Errorf("%s: %q, %v", filepath.Base(cert), got, err)
				}
			}
			if !j.ocsp {
				return
			}
			if got, err := j.rule(at(forged), gone); err == nil {
				t.Errorf("control: a stranger's answer was believed: %s", got)
			}
		})
	}
	t.Run("zlint", func(t *testing.T) { // its form; TestJudges has the control
		testtpm.Need(t, "go")
		if err := (&bench{t: t}).zlint(exhibit{name: "responder", file: real.responder}); err != nil {
			t.Error(err)
		}
	})
}

// responderOf asks for the status of a certificate and returns the responder's own, DER.
func responderOf(t *testing.T, cert, ca *x509.Certificate, url string) []byte {
	t.Helper()
	req, err := ocsp.CreateRequest(cert, ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(url, "application/ocsp-request", strings.NewReader(string(req)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := ocsp.ParseResponseForCert(der, cert, ca)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Certificate.Raw
}

// falseResponder says "good" of everything, in the name of a CA, without that CA's key.
func falseResponder(t *testing.T, ca *x509.Certificate) (url string) {
	t.Helper()
	impostor, key := selfSigned(t, ca.RawSubject)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "OCSP"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		AuthorityKeyId: ca.SubjectKeyId,
	}
	own := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, impostor, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		der, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodGet {
			der, _ = base64.StdEncoding.DecodeString(strings.TrimPrefix(r.URL.Path, "/ocsp/"))
		}
		req, err := ocsp.ParseRequest(der)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		now := time.Now().Truncate(time.Minute)
		answer, err := ocsp.CreateResponse(ca, cert, ocsp.Response{
			Status: ocsp.Good, SerialNumber: req.SerialNumber, IssuerHash: req.HashAlgorithm, Certificate: cert,
			ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		}, own)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.Write(answer)
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/ocsp"
}

// said is the status that a judge told, by a word of its output for each.
func said(out string, err error, good, revoked string) (string, error) {
	switch {
	case strings.Contains(out, revoked):
		return "revoked", nil
	case err == nil && strings.Contains(out, good):
		return "good", nil
	}
	return "", fmt.Errorf("%v: %s", err, out)
}

// output is what a program says, however it ends.
func (d *desk) output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func (d *desk) opensslCRL(cert string) (string, error) {
	out, err := d.output("openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", d.ca, "-CRLfile", d.crl, cert)
	return said(out, err, ": OK", "certificate revoked")
}

func (d *desk) gnutlsCRL(cert string) (string, error) {
	out, err := d.output("certtool", "--verify", "--load-ca-certificate", d.ca, "--load-crl", d.crl, "--infile", cert)
	if !strings.Contains(out, "Checked against CRL") {
		return "", errors.New(out)
	}
	return said(out, err, "The certificate is trusted", "chain is revoked")
}

// nssDB is a database in which the CA, and what else is named, is trusted.
func (d *desk) nssDB(cert string, trusted ...string) (string, error) {
	dir := d.t.TempDir()
	for i, file := range append([]string{d.ca}, trusted...) {
		if i == 0 {
			if _, err := d.program("certutil", "-N", "--empty-password", "-d", dir); err != nil {
				return "", err
			}
		}
		if _, err := d.program("certutil", "-A", "-n", fmt.Sprint("trusted", i), "-t", "CT,,", "-i", file, "-d", dir); err != nil {
			return "", err
		}
	}
	_, err := d.program("certutil", "-A", "-n", "leaf", "-t", ",,", "-i", cert, "-d", dir)
	return dir, err
}

func (d *desk) nssCRL(cert string) (string, error) {
	db, err := d.nssDB(cert)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(d.crl)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	der := filepath.Join(db, "crl.der") // crlutil reads no PEM
	if err := os.WriteFile(der, block.Bytes, 0o600); err != nil {
		return "", err
	}
	if _, err := d.program("crlutil", "-I", "-i", der, "-d", db); err != nil {
		return "", err
	}
	out, err := d.output("certutil", "-V", "-e", "-u", "C", "-n", "leaf", "-d", db)
	return said(out, err, "certificate is valid", "has been revoked")
}

func (d *desk) strongswanCRL(cert string) (string, error) {
	out, err := d.output("pki", "--verify", "--in", cert, "--cacert", d.ca, "--crl", d.crl)
	return said(out, err, "certificate not revoked", "certificate was revoked")
}

func (d *desk) opensslOCSP(cert, option string) (string, error) {
	if option == "-nonce" { // answered without one, since it was signed before; OpenSSL warns
		option = "-sha256"
	} else {
		option += " -no_nonce"
	}
	args := append(strings.Fields(option), "-issuer", d.ca, "-cert", cert, "-url", d.ocsp, "-CAfile", d.ca)
	return d.opensslSaid(cert, args)
}

// opensslSaid ends well whatever it finds, and says whether it believes the answer.
func (d *desk) opensslSaid(cert string, args []string) (string, error) {
	out, err := d.output("openssl", append([]string{"ocsp"}, args...)...)
	if !strings.Contains(out, "Response verify OK") {
		return "", fmt.Errorf("openssl ocsp: %v: %s", err, out)
	}
	return said(out, err, cert+": good", cert+": revoked")
}

// opensslGET makes the request with OpenSSL, which can send it by POST only, and reads the answer with it.
func (d *desk) opensslGET(cert string) (string, error) {
	dir := d.t.TempDir()
	req, answer := filepath.Join(dir, "req"), filepath.Join(dir, "answer")
	if _, err := d.program("openssl", "ocsp", "-no_nonce", "-issuer", d.ca, "-cert", cert, "-reqout", req); err != nil {
		return "", err
	}
	der, err := os.ReadFile(req)
	if err != nil {
		return "", err
	}
	resp, err := http.Get(d.ocsp + "/" + base64.StdEncoding.EncodeToString(der))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if der, err = io.ReadAll(resp.Body); err != nil {
		return "", err
	}
	if err := os.WriteFile(answer, der, 0o600); err != nil {
		return "", err
	}
	return d.opensslSaid(cert, []string{"-no_nonce", "-issuer", d.ca, "-cert", cert, "-respin", answer, "-CAfile", d.ca})
}

func (d *desk) gnutlsOCSP(cert string) (string, error) {
	out, err := d.output("ocsptool", "--ask="+d.ocsp, "--load-cert", cert, "--load-issuer", d.ca)
	if !strings.Contains(out, "Verifying OCSP Response: Success") {
		return "", fmt.Errorf("ocsptool: %v: %s", err, out)
	}
	return said(out, err, "Certificate Status: good", "Certificate Status: revoked")
}

// nssOCSP names the responder, as one must where certificates do not.
func (d *desk) nssOCSP(cert string) (string, error) {
	db, err := d.nssDB(cert, d.responder)
	if err != nil {
		return "", err
	}
	out, err := d.output("ocspclnt", "-S", "leaf", "-d", db, "-l", d.ocsp, "-t", "trusted1")
	return said(out, err, "succeeded", "has been revoked")
}

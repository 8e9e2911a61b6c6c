package muster_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/testtpm"
)

// exhibit is a certificate or CRL before the judges.
type exhibit struct {
	name    string
	file    string // PEM
	purpose string // of OpenSSL: sslclient, sslserver, empty for a CA
	crl     bool
}

// bench is what the judges need to know: the CA and the CRL that go with the exhibits.
type bench struct {
	t       *testing.T
	ca, crl string // PEM files
}

// judge is a program that nobody here wrote; it returns an error for what it does not accept.
type judge struct {
	name  string
	needs string
	rule  func(b *bench, e exhibit) error
}

var judges = []judge{
	{"zlint", "go", (*bench).zlint},
	{"openssl", "openssl", (*bench).openssl},
	{"gnutls", "certtool", (*bench).gnutls},
	{"nss", "certutil", (*bench).nss},
	{"strongswan", "pki", (*bench).strongswan},
}

// TestJudges shows every shape of certificate and CRL that Muster makes to five independent
// verifiers (I11), and each verifier a bad sample that it must reject.
func TestJudges(t *testing.T) {
	h := newHead(t).withEST()
	dir := t.TempDir()
	exhibits := append(estExhibits(t, h, dir), makeExhibits(t, h, dir)...)
	b := &bench{t: t, ca: filepath.Join(h.dir, "public/ca.pem"), crl: filepath.Join(dir, "crl.pem")}
	bad := makeBadExhibits(t, h, dir)
	for _, j := range judges {
		t.Run(j.name, func(t *testing.T) {
			testtpm.Need(t, j.needs)
			b := &bench{t, b.ca, b.crl}
			for _, e := range exhibits {
				if err := j.rule(b, e); err != nil {
					t.Errorf("%s: %v", e.name, err)
				}
			}
			for _, e := range bad {
				if j.name == "zlint" != (e.name == "malformed") {
					continue // zlint looks at form alone, the others at the signature
				}
				if err := j.rule(b, e); err == nil {
					t.Errorf("control: %s was accepted, so this judge shows nothing", e.name)
				}
			}
		})
	}
}

func makeExhibits(t *testing.T, h *head, dir string) []exhibit {
	t.Helper()
	exhibits := []exhibit{
		{name: "CA", file: filepath.Join(h.dir, "public/ca.pem")},
		{name: "head", file: headCertificate(t, h, dir), purpose: "sslserver"},
		{name: "empty CRL", file: filepath.Join(dir, "empty-crl.pem"), crl: true},
	}
	if crl := fetchCRL(t, h, exhibits[2].file); len(crl.RevokedCertificateEntries) != 0 {
		t.Errorf("the first CRL lists %d certificates", len(crl.RevokedCertificateEntries))
	}
	for _, shape := range []struct {
		name   string
		enable []string
		boot   []string
	}{
		{"tofu", nil, nil},
		{"names", []string{"--dns", "n1.example.org,n1", "--ip", "10.0.0.1,fd00::1"}, nil},
		{"pinned", []string{"--ek"}, nil},
		{"p384", nil, []string{"--key", "p384"}},
		{"rsa2048", nil, []string{"--key", "rsa2048"}},
	} {
		n := newNode(t, h, shape.name)
		args := append([]string{"certs", "enable", "-i", shape.name}, shape.enable...)
		if shape.name == "pinned" {
			args = append(args, strings.Fields(n.agent("ek").stdout)[0])
		}
		h.must(args...)
		n.mustBoot(shape.boot...)
		file := filepath.Join(dir, shape.name+".pem")
		if err := os.WriteFile(file, n.file("node.crt"), 0o644); err != nil {
			t.Fatal(err)
		}
		exhibits = append(exhibits, exhibit{name: shape.name, file: file, purpose: "sslclient"})
	}
	gone := newNode(t, h, "gone")
	h.must("certs", "enable", "-i", "gone")
	gone.mustBoot()
	replaceKey(t, h, gone)
	// The CRL is signed anew soon after the first use of the new key ended the old certificate.
	file := filepath.Join(dir, "crl.pem")
	for range 500 {
		if crl := fetchCRL(t, h, file); len(crl.RevokedCertificateEntries) == 1 {
			return append(exhibits, exhibit{name: "CRL", file: file, crl: true})
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the CRL never listed the certificate that ended")
	return nil
}

// replaceKey gives the node a new key by a new grant, so that its first certificate ends.
func replaceKey(t *testing.T, h *head, n *node) {
	t.Helper()
	h.must("certs", "enable", "-i", n.name)
	if r := n.agent("forget", "--key"); r.status != 0 {
		t.Fatalf("forget: %v", r)
	}
	n.mustBoot()
}

func fetchCRL(t *testing.T, h *head, to string) *x509.RevocationList {
	t.Helper()
	var ca struct{ CRL string }
	h.json(&ca, "ca", "show", "--json")
	resp, err := http.Get(ca.CRL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, to, "X509 CRL", der)
	return crl
}

func headCertificate(t *testing.T, h *head, dir string) string {
	t.Helper()
	c, err := tls.Dial("tcp", h.addr(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file := filepath.Join(dir, "head.pem")
	writePEM(t, file, "CERTIFICATE", c.ConnectionState().PeerCertificates[0].Raw)
	return file
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// makeBadExhibits are what no judge may accept: a certificate of another CA with the same subject and
// key identifier, a CRL of that CA, and a certificate against RFC 5280's form.
func makeBadExhibits(t *testing.T, h *head, dir string) []exhibit {
	t.Helper()
	ca, key := readCA(t, h)
	other, otherKey := selfSigned(t, ca.RawSubject)
	other.SubjectKeyId = ca.SubjectKeyId
	forged := filepath.Join(dir, "forged.pem")
	writePEM(t, forged, "CERTIFICATE", leaf(t, newKey(t).Public(), other, otherKey, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil))
	other.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(9), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
	}, other, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	forgedCRL := filepath.Join(dir, "forged-crl.pem")
	writePEM(t, forgedCRL, "X509 CRL", der)
	malformed := filepath.Join(dir, "malformed.pem")
	// A CA certificate whose basic constraints are missing (RFC 5280, 4.2.1.9).
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, ca, newKey(t).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, malformed, "CERTIFICATE", der)
	return []exhibit{
		{name: "forged certificate", file: forged, purpose: "sslclient"},
		{name: "forged CRL", file: forgedCRL, crl: true},
		{name: "malformed", file: malformed, purpose: "sslclient"},
	}
}

// program runs a judge; its output is the error when it ends badly.
func (b *bench) program(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// zlint looks at form: no error, no fatal finding.
func (b *bench) zlint(e exhibit) error {
	out, err := b.program(zlintProgram(b.t), "-includeSources", "RFC5280,RFC5480,RFC8813", e.file)
	if err != nil {
		return err
	}
	var findings map[string]struct{ Result string }
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&findings); err != nil {
		return fmt.Errorf("zlint: %v\n%s", err, out)
	}
	for lint, f := range findings {
		if f.Result == "error" || f.Result == "fatal" {
			err = fmt.Errorf("zlint: %s: %s", lint, f.Result)
		}
	}
	return err
}

// zlintProgram builds zlint apart from our own module, which must not need it.
func zlintProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "install", "github.com/zmap/zlint/v3/cmd/zlint@v3.6.4")
	cmd.Env = append(os.Environ(), "GOBIN="+dir)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("zlint cannot be built: %v", err)
		}
		t.Fatalf("zlint: %v\n%s", err, out)
	}
	return filepath.Join(dir, "zlint")
}

func (b *bench) openssl(e exhibit) error {
	if e.crl {
		out, err := b.program("openssl", "crl", "-in", e.file, "-noout", "-verify", "-CAfile", b.ca)
		if err == nil && !strings.Contains(out, "verify OK") {
			err = fmt.Errorf("openssl crl: %s", out) // it ends well whatever it finds
		}
		return err
	}
	args := []string{"verify", "-x509_strict", "-CAfile", b.ca}
	if e.purpose != "" {
		args = append(args, "-purpose", e.purpose, "-crl_check", "-CRLfile", b.crl)
	}
	_, err := b.program("openssl", append(args, e.file)...)
	return err
}

func (b *bench) gnutls(e exhibit) error {
	verify := "--verify"
	if e.crl {
		verify = "--verify-crl"
	}
	_, err := b.program("certtool", verify, "--load-ca-certificate", b.ca, "--infile", e.file)
	return err
}

// nss verifies with a database of its own, in which the CA is trusted for clients and servers.
func (b *bench) nss(e exhibit) error {
	db := "sql:" + b.t.TempDir()
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-n", "ca", "-t", "CT,,", "-i", b.ca},
	} {
		if _, err := b.program("certutil", append(args, "-d", db)...); err != nil {
			return err
		}
	}
	if e.crl {
		text, err := os.ReadFile(e.file)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		der := filepath.Join(b.t.TempDir(), "crl.der") // crlutil reads no PEM
		if err := os.WriteFile(der, block.Bytes, 0o644); err != nil {
			return err
		}
		_, err = b.program("crlutil", "-I", "-i", der, "-d", db)
		return err
	}
	usage := map[string]string{"sslclient": "C", "sslserver": "V", "": "L"}[e.purpose]
	name := "ca"
	if e.purpose != "" { // the CA, put there again, would lose its trust
		name = "leaf"
		if _, err := b.program("certutil", "-A", "-n", name, "-t", ",,", "-i", e.file, "-d", db); err != nil {
			return err
		}
	}
	_, err := b.program("certutil", "-V", "-e", "-u", usage, "-n", name, "-d", db)
	return err
}

func (b *bench) strongswan(e exhibit) error {
	if e.crl {
		// pki verifies a CRL only beside a certificate; a good one that is not listed must pass.
		good := filepath.Join(filepath.Dir(b.crl), "p384.pem")
		out, err := b.program("pki", "--verify", "--in", good, "--cacert", b.ca, "--crl", e.file)
		if err == nil && !strings.Contains(out, "certificate not revoked") {
			err = fmt.Errorf("pki --verify: %s", out) // a CRL that it does not believe is left out, no more
		}
		return err
	}
	args := []string{"--verify", "--in", e.file, "--cacert", b.ca}
	if e.purpose != "" {
		args = append(args, "--crl", b.crl)
	}
	_, err := b.program("pki", args...)
	return err
}

package muster_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/wire"
)

// TestStrangers: the node obeys no head that does not chain to the pinned CA (I6). It gets no
// signature and no activation from the TPM, and changes no file of the node.
func TestStrangers(t *testing.T) {
	h := newHead(t)
	ca, caKey := readCA(t, h)
	other, otherKey := selfSigned(t, ca.RawSubject)
	serve := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	heads := []asn1.ObjectIdentifier{wire.HeadEKU}
	strangers := map[string]struct {
		chain  func(key crypto.PublicKey) [][]byte
		answer http.HandlerFunc
		good   bool
	}{
		"self-signed": {chain: func(key crypto.PublicKey) [][]byte {
			return [][]byte{leaf(t, key, other, otherKey, serve, heads), other.Raw}
		}},
		"another CA with the same subject, and the right one's certificate": {chain: func(key crypto.PublicKey) [][]byte {
			return [][]byte{leaf(t, key, other, otherKey, serve, heads), ca.Raw}
		}},
		"right CA, clientAuth only": {chain: func(key crypto.PublicKey) [][]byte {
			return [][]byte{leaf(t, key, ca, caKey, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil), ca.Raw}
		}},
		"right CA, a server that is no head": {chain: func(key crypto.PublicKey) [][]byte {
			return [][]byte{leaf(t, key, ca, caKey, serve, nil), ca.Raw}
		}},
		"the real head, redirecting": {
			chain: func(key crypto.PublicKey) [][]byte {
				return [][]byte{leaf(t, key, ca, caKey, serve, heads), ca.Raw}
			},
			answer: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, h.url()+r.URL.Path, http.StatusTemporaryRedirect)
			},
			good: true, // it may be asked, and its redirect is not followed
		},
	}
	for name, s := range strangers {
		t.Run(name, func(t *testing.T) {
			asked := 0
			url := strangeHead(t, s.chain, func(w http.ResponseWriter, r *http.Request) {
				asked++
				if s.answer != nil {
					s.answer(w, r)
				}
			})
			n := newNode(t, h, "n0")
			counter := n.counted(t)
			n.agent("run", "--head", "https://127.0.0.1:1", "--ca", h.pin, "--wait", "0") // leaves its lock, on nobody's word
			before := tree(t, n.root)
			counter.Reset()
			r := n.bootAt(url, h.pin, "--wait", "1s")
			if r.status == 0 {
				t.Fatalf("the node obeyed: %v", r)
			}
			if after := tree(t, n.root); !slices.Equal(before, after) {
				t.Errorf("files before %v, after %v", before, after)
			}
			used := counter.Commands()
			if slices.Contains(used, tpm2.TPMCCActivateCredential) {
				t.Error("the TPM activated a credential")
			}
			if !s.good && (asked > 0 || slices.Contains(used, tpm2.TPMCCSign)) {
				t.Errorf("%d requests, TPM commands %x", asked, used)
			}
		})
	}
	t.Run("control: the real head", func(t *testing.T) {
		h.must("certs", "enable", "-i", "n0")
		n := newNode(t, h, "n0")
		counter := n.counted(t)
		n.mustBoot()
		if !slices.Contains(counter.Commands(), tpm2.TPMCCActivateCredential) {
			t.Error("no activation either, so this test shows nothing")
		}
	})
}

func readCA(t *testing.T, h *head) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "public/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cert := parseCertificate(t, b)
	if b, err = os.ReadFile(filepath.Join(h.dir, "ca/ca.key")); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key.(crypto.Signer)
}

// selfSigned is a CA of somebody else with a given subject.
func selfSigned(t *testing.T, subject []byte) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func leaf(t *testing.T, key crypto.PublicKey, ca *x509.Certificate, caKey crypto.Signer, eku []x509.ExtKeyUsage, more []asn1.ObjectIdentifier) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "head"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: eku, UnknownExtKeyUsage: more,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca, key, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// strangeHead serves with a chain of the test's making.
func strangeHead(t *testing.T, chain func(crypto.PublicKey) [][]byte, answer http.HandlerFunc) (url string) {
	t.Helper()
	key := newKey(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: chain(key.Public()), PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return "https://" + l.Addr().String()
}

// tree lists the files below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		files = append(files, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

package muster_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/standin"
	"muster/internal/template"
	"muster/internal/wire"
)

// softNode is a node at level tofu whose key other programs can use, since it is in no TPM.
type softNode struct {
	*standin.TPM
	name string
	head *head
	cert *x509.Certificate
}

// enrolSoft enables a name and enrols a stand-in under it.
func enrolSoft(t *testing.T, h *head, name string) *softNode {
	t.Helper()
	h.must("certs", "enable", "-i", name)
	soft, err := standin.New(template.EKs()[0])
	if err != nil {
		t.Fatal(err)
	}
	n := &softNode{TPM: soft, name: name, head: h}
	client := n.client(t)
	var c wire.Challenge
	n.post(t, client, wire.PathChallenge, soft.ChallengeRequest(name), &c)
	answer, err := soft.Answer(name, c)
	if err != nil {
		t.Fatal(err)
	}
	var e wire.Enrolled
	n.post(t, client, wire.PathEnroll, answer, &e)
	if n.cert, err = x509.ParseCertificate(e.Cert); err != nil {
		t.Fatal(err)
	}
	return n
}

// client keeps its connection alive, and shows the certificate if the node has one.
func (n *softNode) client(t *testing.T) *http.Client {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.head.dir, "public/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	cfg.RootCAs.AddCert(parseCertificate(t, b))
	if n.cert != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{n.cert.Raw}, PrivateKey: n.Signer()}}
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (n *softNode) post(t *testing.T, client *http.Client, path string, message, answer any) {
	t.Helper()
	resp, err := client.Post(n.head.url()+path, "application/json", bytes.NewReader(wire.Encode(message)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, answer)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", path, resp.StatusCode, body, err)
	}
}

// ask is one request for the node's own record; the code of a refusal, empty for none.
func (n *softNode) ask(client *http.Client) (wire.Code, error) {
	resp, err := client.Get(n.head.url() + wire.PathSelf)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var e wire.Error
	body, err := io.ReadAll(resp.Body) // to its end, so that the connection is used again
	if err != nil || resp.StatusCode == http.StatusOK {
		return "", err
	}
	if err := json.Unmarshal(body, &e); err != nil || e.Code == "" {
		return "", fmt.Errorf("%d %s", resp.StatusCode, body)
	}
	return e.Code, nil
}

// TestRevokedAtOnce: under 200 requests a second on connections kept alive, no request succeeds that began after
// `certs revoke` had returned (I7). A head that does not look at each request fails this test.
func TestRevokedAtOnce(t *testing.T) {
	t.Parallel()
	if err := revokedAtOnce(t, newHead(t)); err != nil {
		t.Error(err)
	}
	t.Run("control", func(t *testing.T) {
		unchecked := brokenHead(t, change{"signer/self.go", `case s.Revoked:`, `case false:`})
		if err := revokedAtOnce(t, newHeadAt(t, "127.0.0.1", unchecked)); err == nil {
			t.Error("a head that does not look passes")
		}
	})
}

func revokedAtOnce(t *testing.T, h *head) error {
	t.Helper()
	gone, other := enrolSoft(t, h, "n0"), enrolSoft(t, h, "n1")
	load := &traffic{}
	stop := load.run(t, gone, other)
	load.await(&load.good, 100)
	h.must("certs", "revoke", "-i", "n0", "--yes")
	load.over.Store(true)
	load.await(&load.late, 100)
	stop()
	t.Logf("n0: %d answers before, %d refusals of requests that began before, %d that began after; n1: %d answers", load.good.Load(), load.flight.Load(), load.late.Load(), load.others.Load())
	if failed := load.failed.Load(); failed != nil {
		return *failed
	}
	// On a new connection, and as the first request after a restart.
	if code, err := gone.ask(gone.client(t)); err != nil || code != wire.Revoked {
		return fmt.Errorf("on a new connection: %q, %v", code, err)
	}
	h.kill()
	h.start()
	if code, err := gone.ask(gone.client(t)); err != nil || code != wire.Revoked {
		return fmt.Errorf("the first request after a restart: %q, %v", code, err)
	}
	if code, err := other.ask(other.client(t)); err != nil || code != "" {
		return fmt.Errorf("another node: %q, %v", code, err)
	}
	return nil
}

// traffic is 200 requests a second: four connections of a node that will be revoked, and one of another.
type traffic struct {
	over                       atomic.Bool // revoke has returned
	good, flight, late, others atomic.Int64
	failed                     atomic.Pointer[error]
}

func (l *traffic) run(t *testing.T, gone, other *softNode) (stop func()) {
	done := make(chan struct{})
	var group sync.WaitGroup
	every := func(node *softNode, interval time.Duration, count func(began bool, code wire.Code) error) {
		client := node.client(t)
		group.Go(func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				over := l.over.Load() // before the request begins
				code, err := node.ask(client)
				if err == nil {
					err = count(over, code)
				}
				if err != nil {
					l.failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	for range 4 {
		every(gone, 20*time.Millisecond, l.countGone)
	}
	every(other, 20*time.Millisecond, func(_ bool, code wire.Code) error {
		l.others.Add(1)
		if code != "" {
			return fmt.Errorf("another node was refused: %s", code)
		}
		return nil
	})
	return sync.OnceFunc(func() { close(done); group.Wait() })
}

func (l *traffic) countGone(over bool, code wire.Code) error {
	switch {
	case over:
		l.late.Add(1)
		if code != wire.Revoked {
			return fmt.Errorf("a request that began after revoke had returned: %q", code)
		}
	case code == "":
		l.good.Add(1)
	case code == wire.Revoked:
		l.flight.Add(1)
	default:
		return fmt.Errorf("before the revocation: %s", code)
	}
	return nil
}

// await waits until so many requests of a kind were made, or one has failed.
func (l *traffic) await(count *atomic.Int64, n int64) {
	for range 3000 {
		if count.Load() >= n || l.failed.Load() != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	err := errors.New("no load")
	l.failed.CompareAndSwap(nil, &err)
}

// TestRevokeKilled kills the head between the record of a revocation and its CRL, and between the record of a CRL's
// number and its files: the node is refused, the CRL lists it after the restart, and no number is used twice. A head
// that forgets the number fails this test.
func TestRevokeKilled(t *testing.T) {
	t.Parallel()
	programs := t.TempDir()
	if err := build(programs, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	h := newHeadAt(t, "127.0.0.1", filepath.Join(programs, "muster"))
	n := enrolSoft(t, h, "n0")
	dir := t.TempDir()
	before := fetchCRL(t, h, filepath.Join(dir, "crl.pem"))

	h.kill()
	h.env = []string{"MUSTER_FAILPOINT=revoked"}
	h.start()
	if r := h.run("certs", "revoke", "-i", "n0", "--yes"); r.status == 0 {
		t.Fatalf("the revocation under which the head died: %v", r)
	}
	h.await()
	h.env = []string{"MUSTER_FAILPOINT=crl-recorded"}
	h.startServe() // it dies at its first CRL
	h.await()
	h.env = nil
	h.start()
	if code, err := n.ask(n.client(t)); err != nil || code != wire.Revoked {
		t.Errorf("%q, %v", code, err)
	}
	after := fetchCRL(t, h, filepath.Join(dir, "crl.pem"))
	if len(after.RevokedCertificateEntries) != 1 || after.RevokedCertificateEntries[0].SerialNumber.Cmp(n.cert.SerialNumber) != 0 {
		t.Errorf("the CRL has %d entries", len(after.RevokedCertificateEntries))
	}
	// Two starts and one that died signed one each.
	if got := after.Number.Int64() - before.Number.Int64(); got != 3 || after.ThisUpdate.Before(before.ThisUpdate) {
		t.Errorf("the number went up by %d, from %v to %v", got, before.ThisUpdate, after.ThisUpdate)
	}

	h.kill()
	h.muster = brokenHead(t, change{"signer/crl.go", `max(last.Number, ca.publishedNumber(), h.book.Load().crl().Number) + 1`, `1`})
	h.start()
	if control := fetchCRL(t, h, filepath.Join(dir, "crl.pem")); control.Number.Cmp(after.Number) > 0 {
		t.Error("control: a head that forgets the number is not seen")
	}
}

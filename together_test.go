package muster_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"muster/internal/testtpm"
)

// shared is a node whose TPM several programs use at once, as through /dev/tpmrm0.
type shared struct {
	*node
	chip *striker
}

// striker counts what reaches the chip, and acts before command at.
type striker struct {
	transport.TPM
	mu  sync.Mutex
	n   int
	at  int
	act func()
}

func (s *striker) Send(command []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n++; s.n == s.at {
		s.act()
	}
	return s.TPM.Send(command)
}

func newShared(t *testing.T, h *head, name string) *shared {
	t.Helper()
	n := newNode(t, h, name)
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	s := &shared{n, &striker{TPM: tpm}}
	spec, closer, err := testtpm.ServeManaged(s.chip, filepath.Join(n.tpm.Dir(), "shared"))
	if err != nil {
		t.Fatal(err)
	}
	n.spec = spec
	t.Cleanup(func() { closer.Close(); tpm.Close() })
	return s
}

// begin starts an agent, and does not wait for it.
func (s *shared) begin(out *logBuffer) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "muster-agent"), "run", "--tpm", s.spec, "--root", s.root,
		"--head", s.head.url(), "--ca", s.head.pin, "--node", s.name, "--wait", "60s")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// together runs three agents at the same moment and returns what all said, and whether each ended with 0.
func (s *shared) together() (said string, well bool) {
	s.t.Helper()
	var out logBuffer
	var agents []*exec.Cmd
	for range 3 {
		agents = append(agents, s.begin(&out))
	}
	well = true
	for _, a := range agents {
		a.Wait()
		well = well && a.ProcessState.ExitCode() == 0
	}
	return out.String(), well
}

// wrong is what is not as one agent alone would have left it: "" for nothing.
func (s *shared) wrong() string {
	s.t.Helper()
	if issues := s.head.issues(s.name); len(issues) != 1 {
		return fmt.Sprintf("%d certificates were issued", len(issues))
	}
	for first, want := range map[uint32][]tpm2.TPMHandle{0x81000000: {0x81004E00}, 0x01800000: {0x01804E00}, 0x80000000: nil} {
		if got := s.handles(first); !slices.Equal(got, want) {
			return fmt.Sprintf("the TPM holds %x", got)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.root, "run/muster"))
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".lock ca.pem chain.pem node.crt node.key openssl.cnf status.json" {
		return "files: " + got
	}
	leaf, roots := parseCertificate(s.t, s.file("node.crt")), x509.NewCertPool()
	roots.AppendCertsFromPEM(s.file("ca.pem"))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err.Error()
	}
	var status struct{ State, Serial, Storage string }
	if err := json.Unmarshal(s.file("status.json"), &status); err != nil || status.State != "active" || status.Storage != "nv" {
		return fmt.Sprintf("status.json: %+v %v", status, err)
	}
	if !strings.HasPrefix(string(s.file("node.key")), "-----BEGIN TSS2 PRIVATE KEY-----\n") {
		return fmt.Sprintf("node.key: %s", s.file("node.key"))
	}
	// A later boot signs with the key that NV names.
	if r := s.boot(); r.status != 0 || !strings.Contains(r.stdout, ", confirmed by ") {
		return r.String()
	}
	return ""
}

func (s *shared) handles(first uint32) []tpm2.TPMHandle {
	s.t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(s.chip)
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		s.t.Fatal(err)
	}
	return list.Handle
}

const rounds = 10

// TestTogether: agents that start at the same moment on one node, as an initramfs's, the unit's and an
// administrator's may, make one key and get one certificate, and none of them fails.
func TestTogether(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "swtpm")
	h := newHead(t)
	h.must("certs", "enable", "-i", fmt.Sprintf("n[0-%d]", rounds-1))
	for i := range rounds {
		s := newShared(t, h, fmt.Sprintf("n%d", i))
		said, well := s.together()
		if !well {
			t.Fatalf("round %d: an agent failed:\n%s", i, said)
		}
		if wrong := s.wrong(); wrong != "" {
			t.Fatalf("round %d: %s\n%s", i, wrong, said)
		}
	}
}

// TestTogetherUnlocked is the control: without the lock the same agents get in each other's way.
func TestTogetherUnlocked(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "swtpm")
	h := newHead(t)
	h.must("certs", "enable", "-i", fmt.Sprintf("n[0-%d]", rounds-1))
	for i := range rounds {
		s := newShared(t, h, fmt.Sprintf("n%d", i))
		// What cannot be opened for writing cannot be locked.
		if err := os.MkdirAll(filepath.Join(s.root, "run/muster/.lock"), 0o755); err != nil {
			t.Fatal(err)
		}
		said, well := s.together()
		if wrong := s.wrong(); !well || wrong != "" {
			t.Logf("round %d: well: %v, wrong: %s\n%s", i, well, wrong, said)
			return
		}
	}
	t.Errorf("without the lock all was well in %d rounds: TestTogether shows nothing", rounds)
}

// TestTogetherKilled: of two agents one is killed, at another TPM command each time. The other goes on at once,
// and what the first left behind is gone.
func TestTogetherKilled(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "swtpm")
	h := newHead(t)
	h.must("certs", "enable", "-i", fmt.Sprintf("n[0-%d]", rounds-1))
	killed := 0
	for i := range rounds {
		s := newShared(t, h, fmt.Sprintf("n%d", i))
		leftover := filepath.Join(s.root, "run/muster/.node.crt.tmp-1")
		if err := os.MkdirAll(filepath.Dir(leftover), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(leftover, []byte("half a cert"), 0o600); err != nil {
			t.Fatal(err)
		}
		var first *exec.Cmd
		s.chip.at, s.chip.act = s.chip.n+3+8*i, func() { first.Process.Kill() }
		var one, two logBuffer
		s.chip.mu.Lock() // until first is known
		first = s.begin(&one)
		s.chip.mu.Unlock()
		other := s.begin(&two)
		first.Wait()
		other.Wait()
		if first.ProcessState.ExitCode() < 0 {
			killed++
		}
		if status := other.ProcessState.ExitCode(); status != 0 {
			t.Fatalf("round %d: exit status %d\n%s\nthe other said\n%s", i, status, &two, &one)
		}
		if wrong := s.wrong(); wrong != "" {
			t.Fatalf("round %d: %s\n%s%s", i, wrong, &one, &two)
		}
	}
	t.Logf("%d of %d were killed while they worked", killed, rounds)
	if killed < rounds/2 {
		t.Error("this shows little")
	}
}

// TestLockWait: who finds the node taken waits as long as --wait, and not longer; the holder's end frees it.
func TestLockWait(t *testing.T) {
	t.Parallel()
	h := newHead(t)
	n := newNode(t, h, "n0")
	h.must("certs", "enable", "-i", "n0")
	dir := filepath.Join(n.root, "run/muster")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	holder, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(holder.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, wait := range []string{"0", "1s"} {
		r := n.boot("--wait", wait)
		if r.status != 75 || !strings.Contains(r.stderr, "muster-agent: another muster-agent is at work on this node (waited ") {
			t.Errorf("--wait %s: %v", wait, r)
		}
	}
	time.AfterFunc(time.Second, func() { holder.Close() })
	n.mustBoot()
}

package muster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/testtpm"
)

// TestPowerCuts pulls the plug before and after every single TPM command of a first boot, a second
// boot and an enrolment after a new grant, until a run completes. The next boot must end enrolled
// (I3), with one key for the grant (I1), and the TPM's lockout counter at 0.
func TestPowerCuts(t *testing.T) {
	for _, phase := range []struct {
		name    string
		prepare func(t *testing.T, n *node)
	}{
		{"first boot", func(t *testing.T, n *node) {}},
		{"second boot", func(t *testing.T, n *node) { n.mustBoot() }},
		{"re-enrolment", func(t *testing.T, n *node) {
			n.mustBoot()
			if r := n.agent("forget", "--key"); r.status != 0 {
				t.Fatalf("forget: %v", r)
			}
			n.head.must("certs", "enable", "-i", n.name)
		}},
	} {
		for _, after := range []bool{false, true} {
			when := "before"
			if after {
				when = "after"
			}
			t.Run(phase.name+"/"+when, func(t *testing.T) {
				t.Parallel()
				h := newHead(t)
				for k := 1; ; k++ {
					if !cutAt(t, h, k, after, phase.prepare) {
						t.Logf("%d cuts", k-1)
						if k < 3 {
							t.Errorf("only %d commands to cut at", k-1)
						}
						return
					}
				}
			})
		}
	}
}

// cutAt prepares a new node, cuts the power of its next boot at command k, and boots it again. It
// reports whether there was a command k.
func cutAt(t *testing.T, h *head, k int, after bool, prepare func(*testing.T, *node)) bool {
	n := newNode(t, h, fmt.Sprintf("n%d", k))
	defer n.tpm.Stop()
	h.must("certs", "enable", "-i", n.name)
	prepare(t, n)
	grants := grantsUsed(h, n.name)
	killer := n.cutPower(t, k, after)
	r := n.boot()
	if !killer.Fired() {
		if r.status != 0 {
			t.Fatalf("the boot without a cut: %v", r)
		}
		return false
	}
	n.loseRun()
	n.spec = n.tpm.Spec()
	if err := n.tpm.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	if r := n.boot(); r.status != 0 {
		t.Fatalf("cut at command %d: the next boot: %v\nthe boot that was cut: %s", k, r, h.log)
	}
	checkOneKey(t, h, n, grants)
	checkLockout(t, n, k)
	return true
}

func grantsUsed(h *head, node string) map[string]string {
	keys := map[string]string{}
	for _, issue := range h.issues(node) {
		keys[issue["grant"]] = issue["key"]
	}
	return keys
}

// checkOneKey: over its whole life no grant led to two keys.
func checkOneKey(t *testing.T, h *head, n *node, keys map[string]string) {
	t.Helper()
	for _, issue := range h.issues(n.name) {
		if key, ok := keys[issue["grant"]]; ok && key != issue["key"] {
			t.Fatalf("grant %s led to two keys", issue["grant"])
		}
		keys[issue["grant"]] = issue["key"]
	}
	if got := h.record(n.name).State; got != "active" {
		t.Fatalf("%s is %s, not active", n.name, got)
	}
}

func checkLockout(t *testing.T, n *node, k int) {
	t.Helper()
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	if c := property(t, tpm, tpm2.TPMPTLockoutCounter); c != 0 {
		t.Fatalf("cut at command %d: the lockout counter is %d", k, c)
	}
}

func property(t *testing.T, tpm transport.TPM, p tpm2.TPMPT) uint32 {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil || len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != p {
		t.Fatalf("TPM property %#x: %v, %v", p, list, err)
	}
	return list.TPMProperty[0].Value
}

// cutPower kills the node's TPM at command k of what follows; the agent is left with a dead TPM.
func (n *node) cutPower(t *testing.T, k int, after bool) *testtpm.Killer {
	t.Helper()
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	killer := n.tpm.CutPower(tpm, k, after)
	path := filepath.Join(n.tpm.Dir(), "killer")
	os.Remove(path)
	spec, closer, err := testtpm.Serve(killer, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close(); tpm.Close() })
	n.spec = spec
	return killer
}

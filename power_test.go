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
// boot, an enrolment after a new grant, a renewal, one with another key and the boot after that, until a run
// completes. The next boot must end enrolled (I3), with one key for the grant (I1), and the TPM's lockout counter
// at 0.
func TestPowerCuts(t *testing.T) {
	for _, phase := range []struct {
		name    string
		prepare func(t *testing.T, n *node)
		act     func(n *node) result
	}{
		{"first boot", func(t *testing.T, n *node) {}, boots},
		{"second boot", func(t *testing.T, n *node) { n.mustBoot() }, boots},
		{"re-enrolment", func(t *testing.T, n *node) {
			n.mustBoot()
			if r := n.agent("forget", "--key"); r.status != 0 {
				t.Fatalf("forget: %v", r)
			}
			n.head.must("certs", "enable", "-i", n.name)
		}, boots},
		{"renewal", func(t *testing.T, n *node) { n.mustBeDue() }, func(n *node) result { return n.renew() }},
		{"another key", func(t *testing.T, n *node) { n.mustBoot() }, func(n *node) result { return n.renew("--new-key") }},
		{"boot with another key", func(t *testing.T, n *node) {
			n.mustBoot()
			if r := n.renew("--new-key"); r.status != 0 {
				t.Fatalf("renew: %v", r)
			}
		}, boots},
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
					if !cutAt(t, h, k, after, phase.prepare, phase.act) {
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

func boots(n *node) result { return n.boot() }

// cutAt prepares a new node, cuts the power of what it does then at command k, and boots it again. It
// reports whether there was a command k.
func cutAt(t *testing.T, h *head, k int, after bool, prepare func(*testing.T, *node), act func(*node) result) bool {
	n := newNode(t, h, fmt.Sprintf("n%d", k))
	defer n.tpm.Stop()
	h.must("certs", "enable", "-i", n.name)
	prepare(t, n)
	grants := grantsUsed(h, n.name)
	killer := n.cutPower(t, k, after)
	r := act(n)
	if !killer.Fired() {
		if r.status != 0 {
			t.Fatalf("without a cut: %v", r)
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
	if n.keys(t) == 2 { // it was cut before the new one was used; another attempt clears up
		if r := n.renew("--new-key"); r.status != 0 {
			t.Fatalf("cut at command %d: the next renewal: %v", k, r)
		}
		n.mustBoot()
	}
	checkOneKey(t, h, n, grants)
	checkLockout(t, n, k)
	if n := n.keys(t); n != 1 {
		t.Fatalf("cut at command %d: %d keys", k, n)
	}
	return true
}

// keys is how many of our slots in the TPM are taken.
func (n *node) keys(t *testing.T) (taken int) {
	t.Helper()
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x81004E00, PropertyCount: 2}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list.Handle {
		if h == 0x81004E00 || h == 0x81004E01 {
			taken++
		}
	}
	return taken
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

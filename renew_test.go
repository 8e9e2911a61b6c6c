package muster_test

import (
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/testtpm"
)

// between puts a double between the node and its TPM, until the returned function is called.
func (n *node) between(t *testing.T, double func(transport.TPM) transport.TPM) (end func()) {
	t.Helper()
	tpm, err := n.tpm.Dial()
	if err != nil {
		t.Fatal(err)
	}
	spec, closer, err := testtpm.Serve(double(tpm), n.tpm.Dir()+"/double")
	if err != nil {
		t.Fatal(err)
	}
	n.spec = spec
	return func() { closer.Close(); tpm.Close(); n.spec = n.tpm.Spec() }
}

// TestRenewalWithoutNV: a TPM whose NV has no room for a certificate. The head has it, and at each boot the node finds
// out which of its keys it is for.
func TestRenewalWithoutNV(t *testing.T) {
	full := func(next transport.TPM) transport.TPM {
		return testtpm.Inject(next, testtpm.Fault{Code: tpm2.TPMCCNVDefineSpace, At: 1, Times: 999, Answer: testtpm.RC(tpm2.TPMRCNVSpace)})
	}
	h := newHead(t)
	n := newNode(t, h, "n0")
	did := func(what string, r result) {
		t.Helper()
		if r.status != 0 || !strings.Contains(r.stdout, what) || !strings.Contains(r.stdout, "storage head") {
			t.Fatalf("want %s: %v", what, r)
		}
		if got, want := serialOf(t, n), h.record("n0").Serial; got != want {
			t.Errorf("%s: the node has %s, the record %s", what, got, want)
		}
	}
	with := func(act func()) {
		t.Helper()
		end := n.between(t, full)
		defer end()
		act()
	}
	reboot := func() {
		t.Helper()
		n.loseRun()
		if err := n.tpm.PowerCycle(); err != nil {
			t.Fatal(err)
		}
	}
	with(func() {
		n.mustBeDue()
		did("renewed at", n.renew())
	})
	reboot()
	with(func() {
		n.awaitDue()
		did("renewed at", n.boot()) // the one on record was due
		did("renewed with another key", n.renew("--new-key"))
	})
	for _, keys := range []int{1, 1} { // the first boot tries the old key first, and evicts it
		reboot()
		with(func() { did("n0: ", n.boot()) })
		if got := n.keys(t); got != keys {
			t.Errorf("%d keys", got)
		}
	}
}

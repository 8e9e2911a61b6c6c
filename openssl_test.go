package muster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/testtpm"
	"muster/internal/wire"
)

// TestCurl: a client that nobody here wrote, curl on Debian's OpenSSL with its tpm2 provider, uses
// the installed files for TLS 1.3 with the key in the TPM. Version 1.1.1 of the provider needs a
// resource manager, here tpm2-abrmd on a bus of its own.
func TestCurl(t *testing.T) {
	for _, program := range []string{"curl", "tpm2-abrmd", "dbus-run-session"} {
		testtpm.Need(t, program)
	}
	h := newHead(t)
	for _, alg := range []string{"p256", "p384", "rsa2048"} {
		t.Run(alg, func(t *testing.T) {
			n := newNode(t, h, alg, testtpm.TCP())
			h.must("certs", "enable", "-i", alg)
			n.mustBoot("--key", alg)
			out := n.withResourceManager(t, `curl --silent --show-error --fail --tlsv1.3 --cacert ca.pem --cert node.crt --key node.key `+h.url()+wire.PathSelf)
			if !strings.Contains(out, fmt.Sprintf(`"node":%q`, alg)) {
				t.Errorf("curl: %s", out)
			}
			// Control: without the provider the key is of no use.
			if out, err := exec.Command("curl", "--silent", "--show-error", "--fail", "--cacert", filepath.Join(n.root, "run/muster/ca.pem"),
				"--cert", filepath.Join(n.root, "run/muster/node.crt"), "--key", filepath.Join(n.root, "run/muster/node.key"),
				h.url()+wire.PathSelf).CombinedOutput(); err == nil {
				t.Errorf("control: curl without the TPM: %s", out)
			}
		})
	}
}

// withResourceManager runs a shell command in /run/muster of the node, where OpenSSL is configured
// by the installed openssl.cnf and finds the TPM through tpm2-abrmd.
func (n *node) withResourceManager(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	script := `tpm2-abrmd --allow-root --session --tcti "$TCTI" & rm=$!
trap 'kill $rm; wait $rm' EXIT
until dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:com.intel.tss2.Tabrmd | grep -q 'boolean true'; do
	kill -0 $rm || exit 1
	sleep 0.05
done
` + command
	cmd := exec.CommandContext(ctx, "dbus-run-session", "--", "sh", "-ec", script)
	cmd.Dir = filepath.Join(n.root, "run/muster")
	cmd.Env = append(os.Environ(), "TCTI="+n.spec, "OPENSSL_CONF=openssl.cnf", "TPM2OPENSSL_TCTI=tabrmd:bus_type=session")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, out, stderr.String())
	}
	return string(out)
}

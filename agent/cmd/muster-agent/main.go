// Muster-agent gives a compute node a certificate whose private key was born in the node's TPM and
// never leaves it.
//
// Synopsis:
//
//	muster-agent run     [--wait 10m] [--head URL,…] [--ca PIN|FILE,…] [--node NAME] [--key ALG]
//	                     [--install PROFILE,…] [--clock MODE] [options]
//	muster-agent renew   [--new-key] [options of run]
//	muster-agent status  [--json] [options]
//	muster-agent cert    [options]
//	muster-agent ek      [options]
//	muster-agent get     [options] URL
//	muster-agent forget  [--key] [options]
//	muster-agent doctor  [--head URL,…] [--ca PIN|FILE,…] [--node NAME] [options]
//	muster-agent version
//
// Run is the boot flow, and may be run as often as one likes. With a certificate in the TPM it shows
// that to the head, which takes one signature; else it makes a key in the TPM, proves to the head
// that it lives there, and stores the certificate that the head signs. Then it installs the files of
// the profile pem in /run/muster: ca.pem, node.crt, chain.pem, node.key (a TSS2 PRIVATE KEY for
// OpenSSL's provider tpm2), openssl.cnf and status.json. With no head in reach, a node that has a
// certificate and its CA's does without. A TPM that the firmware announces or --tpm names may appear
// late: run waits up to 10 seconds for it. Of a run that fails for want of a TPM, or for what else a
// head cannot see, a head is told, for `muster why` there.
//
// Renew renews the certificate over mTLS when the head says that it is due, as run does at boot; with
// --new-key at once, for another key in the TPM, which is proven as at first. The old pair stays until the new
// one is in use, and its key until the next run.
//
// Status tells what the node holds, without a network. Cert prints its certificate, PEM. Ek prints
// the endorsement keys' SHA-256 (for `muster certs enable --ek` on the head) and kind, first the one
// that enrolment uses. Get fetches a URL over mTLS with the key in the TPM, from a head or any other server with
// a certificate of the pinned CA for the URL's name. Forget erases
// certificate and pinned CA, never the key; with --key that too. Doctor examines everything and
// changes nothing.
//
// A head's URL without a port means port 8443.
//
// Every setting has the same name on the kernel command line (muster.head=…), in the configuration
// file (head = "…") and as a flag (--head …). Flags win over the file, and the file over the kernel
// command line.
//
// Options:
//
//	--tpm SPEC       device:/dev/tpmrm0, swtpm:path=SOCKET or swtpm:host=HOST,port=PORT;
//	                 default: /dev/tpm0 in an initramfs, else /dev/tpmrm0
//	--root DIR       where /etc/muster and /run/muster are looked for; default: /
//	--config FILE    configuration file; default: /etc/muster/agent.toml
//
// Only in the file and on the kernel command line: key-slots and nv-slots, two handles each. Only on
// the kernel command line: muster.forget=1, which is forget before run.
//
// Exit status:
//
//	0    done
//	1    get: the answer is 3xx or 4xx; doctor: something is wrong; cert, get, renew: there is none
//	69   no usable TPM
//	75   try again: no head in reach, or busy; get: 5xx; not enabled or pending, or another muster-agent at
//	     work, and --wait is over; interrupted
//	77   refused or revoked
//	78   configuration or usage
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"muster/agent/cli"
)

// version and committed (when, in Unix seconds) are set by the build.
var version, committed = "devel", "0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := cli.Program{Version: version, Built: cli.CommitTime(committed), Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(p.Run(ctx, os.Args[1:]))
}

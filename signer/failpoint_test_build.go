//go:build failpoints

package signer

import (
	"os"
	"syscall"
)

// failpoint ends the process as a power cut does, with no deferred call run, when the environment
// variable MUSTER_FAILPOINT names it. Only builds with the tag failpoints have it.
func failpoint(name string) {
	if broken(name) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// broken says whether MUSTER_FAILPOINT names what is to be left out or done wrong: "unchecked" (whether a node is
// revoked), "crl-number" (the number of the CRL before).
func broken(name string) bool { return os.Getenv("MUSTER_FAILPOINT") == name }

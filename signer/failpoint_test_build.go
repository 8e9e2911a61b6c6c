//go:build failpoints

package signer

import (
	"os"
	"syscall"
)

// failpoint ends the process as a power cut does, with no deferred call run, when the environment
// variable MUSTER_FAILPOINT names it. Only builds with the tag failpoints have it.
func failpoint(name string) {
	if os.Getenv("MUSTER_FAILPOINT") == name {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

//go:build failpoints

package signer

import (
	"os"
	"syscall"
)

// sabotaged is true of what the environment variable MUSTER_SABOTAGE names: a step that is to be left out, so
// that the tests show that they would notice.
func sabotaged(step string) bool { return os.Getenv("MUSTER_SABOTAGE") == step }

// failpoint ends the process as a power cut does, with no deferred call run, when the environment
// variable MUSTER_FAILPOINT names it. Only builds with the tag failpoints have it.
func failpoint(name string) {
	if os.Getenv("MUSTER_FAILPOINT") == name {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

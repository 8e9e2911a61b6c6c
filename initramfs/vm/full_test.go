package vm_test

import (
	"flag"
	"os"
	"os/exec"
	"testing"
)

var full = flag.Bool("full", false, "boot what takes minutes, too: other systems' boot images, a Debian root")

// needFull leaves a test out of the suite that always runs. It needs root, and programs that .ci/deps full
// installs.
func needFull(t *testing.T, programs ...string) {
	t.Helper()
	if !*full {
		t.Skip("takes minutes: make test-full")
	}
	lacking := t.Skipf
	if os.Getenv("CI") != "" {
		lacking = t.Fatalf
	}
	if os.Getuid() != 0 {
		lacking("needs root, to mount")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			lacking("%s is not installed", program)
		}
	}
}

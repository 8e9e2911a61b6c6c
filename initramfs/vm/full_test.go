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
	needRoot(t)
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			lacks(t, "%s is not installed", program)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		lacks(t, "needs root, to mount")
	}
}

// lacks ends a test for what this machine has not: failed where CI is set, skipped elsewhere.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

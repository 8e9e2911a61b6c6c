package main

import (
	"os"
	"testing"
)

// TestProc: the counters of this very process can be read, which is all that can be known of them.
func TestProc(t *testing.T) {
	pid := os.Getpid()
	if _, err := cpu(pid); err != nil {
		t.Error(err)
	}
	for name, read := range map[string]func(int) (float64, error){"written": written, "resident": resident, "peak": peak, "mapped": mapped} {
		if _, err := read(pid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if mib, _ := peak(pid); mib < 1 {
		t.Errorf("a peak of %v MiB", mib)
	}
}

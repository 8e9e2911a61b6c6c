//go:build !failpoints

package signer

// failpoint is where a test build ends the process; in this build it is nothing.
func failpoint(string) {}

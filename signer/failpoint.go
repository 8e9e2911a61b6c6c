//go:build !failpoints

package signer

// failpoint is where a test build ends the process; in this build it is nothing.
func failpoint(string) {}

// broken says whether a test build leaves out or does wrong what name means, so that a test can be seen to fail; in
// this build it never does.
func broken(string) bool { return false }

// Command muster is the head of a cluster: it signs a certificate, once, for each node that the
// administrator enabled and that proves itself with its TPM.
//
//	muster init                            make a cluster: CA, store, state directory
//	muster serve                           be the signer
//	muster certs enable -i 'n[0-99]'       let these nodes enrol, for an hour
//	muster certs disable|list|show         close a grant; look
//	muster nodes import|list|group|remove  which nodes there are, and how to tell them apart
//	muster why n0                          what happened last to this node, and what to do
//	muster log [verify]                    the journal
//	muster status, muster clock accept     how this head is; sign again with the clock as it is
//	muster backup|restore FILE             the record, for another disk
//	muster ca show|export                  what nodes must trust
//
// All but init, serve and restore talk to the daemon over its admin socket (--socket).
//
// Exit status: 0 done; 1 failed; 2 usage or configuration; 3 partly done; 4 nothing matched; 5 head or
// store unreachable; 6 refused by policy; 130 interrupted. An error is one line on standard error,
// followed, where something can be done, by one that begins with "hint:".
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

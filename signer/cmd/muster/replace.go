package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/internal/wire"
	"muster/signer"
)

func (e *env) replaceCommand() *cobra.Command {
	var which choice
	var sure yes
	var ek, level string
	var asJSON bool
	req := signer.ReplaceRequest{}
	c := &cobra.Command{
		Use:   "replace -i NODE",
		Short: "Let another TPM be this node: its board was changed",
		Long: `replace ends what the node's old TPM had, as revoke does, and opens one grant for another TPM.
The old board may become another node. It is not taken back as this one, unless --take-back says so,
and the keys that it had are barred for ever. MACs and UUID on record are the old board's and go
with it: import those of the new one afterwards.

Of a pinned node the new board is pinned, too: name it with --ek, or see it first, with --approve. --level tofu
lets in the first other TPM that asks.`,
		Example: `  muster certs replace -i n7
  muster certs replace -i n7 --ek 7c1d…90ab     (on the new board: muster-agent ek)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			req.ID, req.Level = strings.Join(which.ids, ","), wire.Level(level)
			if req.ID == "" || which.selector != "" {
				return fail(exitUsage, "muster certs replace -i n0", "say which node, with -i")
			}
			if ek != "" {
				fingerprint, err := readEK(ek)
				if err != nil {
					return err
				}
				req.EK = fingerprint
				if level == "" {
					req.Level = wire.Pinned
				}
			}
			if err := e.showBoards(cmd.Context(), which.ids); err != nil {
				return err
			}
			if err := sure.ask(cmd, "Replace the TPM of "+req.ID+"? Its certificate ends, which cannot be undone, and "+successor(req)+"."); err != nil {
				return err
			}
			done, err := e.change(cmd.Context(), signer.AdminReplace, req, "replacing")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			fmt.Fprintf(e.out, "%s may enrol with another TPM until %s:  %s\n", nodes(done.Count), done.Until.Local().Format("2006-01-02 15:04"), done.Nodes)
			return nil
		},
	}
	which.flags(c, false)
	sure.flag(c)
	f := c.Flags()
	req.For = time.Hour
	f.Var((*window)(&req.For), "for", "how long the window stays open: 90m, 12h, 2d; at most 30d")
	f.StringVar(&level, "level", "", "ask for at least this `level`: tofu, vendor or pinned (default that of the old board)")
	f.StringVar(&ek, "ek", "", "pin the new board's EK: its SHA-256, or a `file` with it, its public key or its certificate")
	f.BoolVar(&req.TakeBack, "take-back", false, "with --ek: also a TPM that was taken out of the node before")
	f.BoolVar(&req.Approve, "approve", false, "let the new TPM wait for muster certs approve")
	f.StringVar(&req.Reason, "reason", "", "why, for the CRL: "+strings.Join(signer.Reasons(), ", ")+" (default superseded)")
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	c.RegisterFlagCompletionFunc("level", cobra.FixedCompletions(levels, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(signer.Reasons(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// successor says which TPM is to be the node.
func successor(req signer.ReplaceRequest) string {
	switch {
	case req.EK != "":
		return "the TPM with the EK " + req.EK + " may take its place"
	case req.Approve:
		return "the first other TPM that asks waits for your approval"
	}
	return "the first other TPM that asks takes its place"
}

// showBoards tells, on the error output, which TPM goes, and which was seen in its place.
func (e *env) showBoards(ctx context.Context, ids []string) error {
	list, damaged, err := e.records(ctx, signer.ListRequest{IDs: ids, Whole: true})
	if err != nil {
		return err
	}
	if damaged != nil {
		return damaged
	}
	if len(list) != 1 {
		return fail(exitUsage, "muster certs replace -i n0", "%d nodes are named, not one", len(list))
	}
	v := list[0]
	fmt.Fprintf(e.err, "%-10s %s, %s\n%-10s %s\n", "node", v.Node, v.State, "old EK", dash(v.EK))
	why, err := call[signer.WhyView](ctx, e, signer.AdminWhy, signer.WhyRequest{ID: v.Node}, nil)
	if err != nil {
		return err
	}
	if last := why.Last; last != nil && last.EK != "" && last.EK != v.EK {
		word := "proven"
		if !last.Proven {
			word = "unproven, so compare it with what muster-agent ek prints there"
		}
		fmt.Fprintf(e.err, "%-10s %s, from %s at %s (%s)\n", "asked", last.EK, last.Addr, at(last.At), word)
	}
	return nil
}

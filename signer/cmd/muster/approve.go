package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"muster/signer"
)

func (e *env) approveCommand() *cobra.Command {
	var which choice
	var sure yes
	var ek string
	var asJSON bool
	req := signer.ApproveRequest{}
	c := &cobra.Command{
		Use:   "approve -i NODES | --all",
		Short: "Let in the TPMs that wait",
		Long: `approve is for nodes that were enabled with --approve: the first TPM that proved itself waits,
with the EK that muster certs list --state pending shows, and gets its certificate after this,
when it asks next. Another TPM does not. muster certs disable drops what waits.

--ek names the right TPM, whether it waits or not, and pins it (level pinned): what muster-agent
ek prints on the node. --all shows the table and asks, and approves what the table showed.`,
		Example: `  muster certs list --state pending
  muster certs approve -i n7
  muster certs approve -i n7 --ek 7c1d…90ab     (on the node: muster-agent ek)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			if ek != "" {
				fingerprint, err := readEK(ek)
				if err != nil {
					return err
				}
				req.EK = fingerprint
			}
			if which.all == (len(which.ids) > 0 || which.selector != "") {
				return fail(exitUsage, "-i 'n[0-99]' for some, --all for all that wait", "say which nodes: either -i or --all")
			}
			req.IDs, req.Selector = which.ids, which.selector
			if which.all {
				seen, err := e.pending(cmd.Context())
				if err != nil {
					return err
				}
				if err := sure.ask(cmd, "Approve "+nodes(len(seen))+"?"); err != nil {
					return err
				}
				req.Expect = seen
			}
			done, err := e.change(cmd.Context(), signer.AdminApprove, req, "approving")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			fmt.Fprintf(e.out, "%s approved, and may enrol until %s:  %s\n", nodes(done.Count), done.Until.Local().Format("2006-01-02 15:04"), done.Nodes)
			return nil
		},
	}
	which.flags(c, false)
	sure.flag(c)
	f := c.Flags()
	req.For = time.Hour
	f.BoolVarP(&which.all, "all", "a", false, "all that wait")
	f.Var((*window)(&req.For), "for", "how long they have, from now, to get their certificates: 90m, 12h, 2d; at most 30d")
	f.StringVar(&ek, "ek", "", "this EK and no other, and pin it: its SHA-256, or a `file` with it, its public key or its certificate")
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	return c
}

// pending shows on the error output who waits, and returns their EKs by name.
func (e *env) pending(ctx context.Context) (map[string]string, error) {
	list, damaged, err := e.records(ctx, signer.ListRequest{State: signer.StatePending})
	if err != nil {
		return nil, err
	}
	if damaged != nil {
		return nil, damaged
	}
	if len(list) == 0 {
		return nil, fail(exitNone, "muster certs list", "no node waits for approval")
	}
	(&env{out: e.err, err: e.err}).printPending(list)
	seen := map[string]string{}
	for _, v := range list {
		seen[v.Node] = v.EK
	}
	return seen, nil
}

// printPending is the table to approve by, with whole EKs: a part of one is easily made alike.
func (e *env) printPending(list []signer.NodeView) {
	if len(list) == 0 {
		fmt.Fprintln(e.err, "no nodes")
		return
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(table.Row{"NODE", "LEVEL", "SINCE", "FROM", "WINDOW", "TPM (EK)"})
	now := time.Now()
	for _, v := range inOrder(list) {
		t.AppendRow(table.Row{v.Node, v.Level, at(v.Pending.Since), v.Pending.Addr, in(v.WindowUntil, now), v.EK})
	}
	e.printLines(t)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
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

approve shows who waits and asks, and approves the EKs that it showed and no others.

--ek names the right TPM, whether it waits or not, and pins it (level pinned): what muster-agent
ek prints on the node.`,
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
			if ek == "" {
				seen, err := e.candidates(cmd.Context(), signer.ListRequest{IDs: which.ids, Selector: which.selector, State: signer.StatePending}, waiting)
				if err != nil {
					return err
				}
				if which.all && len(seen) == 0 {
					return fail(exitNone, "muster certs list", "no node waits for approval")
				}
				if err := sure.askOf(cmd, "Approve", seen); err != nil {
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
			for _, name := range slices.Sorted(maps.Keys(done.EKs)) {
				fmt.Fprintf(e.out, "  %-9s %s\n", name, done.EKs[name])
			}
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
	f.BoolVar(&req.TakeBack, "take-back", false, "with --ek: also a TPM that muster certs replace took out of the node")
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	return c
}

func waiting(v signer.NodeView) *signer.Candidate { return v.Pending }

func learned(v signer.NodeView) *signer.Candidate { return v.Learned }

// candidates shows on the error output the TPMs that of gives, and returns their EKs by name: what is decided after a look
// at them is decided about them alone.
func (e *env) candidates(ctx context.Context, req signer.ListRequest, of func(signer.NodeView) *signer.Candidate) (map[string]string, error) {
	list, damaged, err := e.records(ctx, req)
	if err != nil {
		return nil, err
	}
	if damaged != nil {
		return nil, damaged
	}
	list = slices.DeleteFunc(list, func(v signer.NodeView) bool { return of(v) == nil })
	seen := map[string]string{}
	for _, v := range list {
		seen[v.Node] = of(v).EK
	}
	if len(list) > 0 {
		(&env{out: e.err, err: e.err}).printCandidates(list, of)
	}
	return seen, nil
}

// askOf asks about what candidates showed. About nothing it does not: the daemon says why that cannot be.
func (y *yes) askOf(cmd *cobra.Command, verb string, seen map[string]string) error {
	if len(seen) == 0 {
		return nil
	}
	return y.ask(cmd, verb+" "+nodes(len(seen))+"?")
}

func (e *env) printPending(list []signer.NodeView) { e.printCandidates(list, waiting) }

// printCandidates is the table to decide by, with whole EKs: a part of one is easily made alike.
func (e *env) printCandidates(list []signer.NodeView, of func(signer.NodeView) *signer.Candidate) {
	if len(list) == 0 {
		fmt.Fprintln(e.err, "no nodes")
		return
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(table.Row{"NODE", "LEVEL", "SINCE", "FROM", "WINDOW", "TPM (EK)"})
	now := time.Now()
	for _, v := range inOrder(list) {
		c := of(v)
		t.AppendRow(table.Row{v.Node, c.Level, at(c.Since), c.Addr, in(v.WindowUntil, now), c.EK})
	}
	e.printLines(t)
}

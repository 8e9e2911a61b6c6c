package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/signer"
	"muster/signer/store"
)

func (e *env) whyCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:               "why NODE",
		Short:             "What happened last to a node, in one sentence, and what to do",
		Example:           `  muster why n0`,
		Args:              oneNode,
		ValidArgsFunction: completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			view, err := call[signer.WhyView](cmd.Context(), e, signer.AdminWhy, signer.WhyRequest{ID: args[0]}, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(view)
			}
			fmt.Fprintln(e.out, view.Sentence)
			if view.Hint != "" {
				fmt.Fprintf(e.out, "hint: %s\n", view.Hint)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func oneNode(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fail(exitUsage, "muster why n0", "name one node, not %d", len(args))
	}
	return nil
}

func (e *env) logCommand() *cobra.Command {
	var which choice
	var since time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "log [-i NODES]",
		Short: "The journal: every grant, certificate and refusal, in order",
		Long: `log prints this head's journal. Each entry carries the hash of the one before it, so that an
entry cannot be changed or taken out unseen.`,
		Example: `  muster log -i n0
  muster log --since 1h --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			req := signer.LogRequest{IDs: which.ids, Selector: which.selector}
			if since > 0 {
				req.Since = time.Now().Add(-since)
			}
			n, err := call[int](cmd.Context(), e, signer.AdminLog, req, func(f signer.Frame) error {
				if asJSON {
					_, err := fmt.Fprintf(e.out, "%s\n", f.Item)
					return err
				}
				var entry store.Entry
				if err := json.Unmarshal(f.Item, &entry); err != nil {
					return err
				}
				e.printEntry(entry)
				return nil
			})
			switch {
			case err != nil || *n > 0:
				return err
			case len(which.ids) > 0 && since == 0:
				return fail(exitNone, "muster certs list shows the names", "no entries about %s", strings.Join(which.ids, ","))
			}
			fmt.Fprintln(e.err, "no entries")
			return nil
		},
	}
	which.flags(c, false)
	c.Flags().DurationVar(&since, "since", 0, "only what is younger")
	c.Flags().BoolVar(&asJSON, "json", false, "print each entry as a line of JSON")
	return c
}

func (e *env) printEntry(entry store.Entry) {
	var fields []string
	for _, k := range slices.Sorted(maps.Keys(entry.Fields)) {
		fields = append(fields, k+"="+entry.Fields[k])
	}
	fmt.Fprintf(e.out, "%6d  %s  %-10s %-12s %s\n", entry.Seq, at(entry.Time), entry.Kind, dash(entry.Node), strings.Join(fields, " "))
}

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"muster/signer"
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
			e.printWhy(view)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (e *env) printWhy(view *signer.WhyView) {
	fmt.Fprintln(e.out, printable(view.Sentence))
	if view.Hint != "" {
		fmt.Fprintf(e.out, "hint: %s\n", printable(view.Hint))
	}
}

func oneNode(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fail(exitUsage, "muster why n0", "name one node, not %d", len(args))
	}
	return nil
}

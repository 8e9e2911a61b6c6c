package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"muster/signer"
)

func (e *env) statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "status",
		Short:   "How this head is: signing, clock, store, CA, CRL, nodes",
		Example: `  muster status`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := call[signer.StatusView](cmd.Context(), e, signer.AdminStatus, struct{}{}, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(v)
			}
			e.printStatus(v)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (e *env) printStatus(v *signer.StatusView) {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(e.out, "%-9s %s\n", what, printable(fmt.Sprintf(format, args...)))
	}
	now := time.Now()
	line("cluster", "%s, %s", v.Cluster, v.Pin)
	if v.Signing {
		line("signing", "yes")
	} else {
		line("signing", "no (%s): %s", v.Reason, v.Detail)
		line("", "hint: %s", v.Hint)
	}
	disciplined := "synchronised"
	if !v.Clock.Synchronised {
		disciplined = "not synchronised"
	}
	line("clock", "%s, %s; last record %s", at(v.Clock.Now), disciplined, at(v.Clock.LastRecord))
	line("store", "epoch %d, journal of %d entries", v.Store.Epoch, v.Store.Entries)
	line("CA", "expires %s", in(v.CA, now))
	if v.CRL == nil {
		line("CRL", "none yet")
	} else {
		line("CRL", "number %d of %s, %s ended, expires %s", v.CRL.Number, at(v.CRL.ThisUpdate), certificates(v.CRL.Entries), in(v.CRL.NextUpdate, now))
	}
	n := 0
	for _, count := range v.Nodes {
		n += count
	}
	if n == 0 {
		line("nodes", "none yet")
	} else {
		line("nodes", "%s", summary(n, v.Nodes))
	}
	if v.Unknown > 0 {
		line("unknown", "%s of this CA not on record: muster certs list --state unknown", certificates(v.Unknown))
	}
	if v.Damaged > 0 {
		line("damaged", "%s cannot be read: muster certs list", records(v.Damaged))
	}
}

func records(n int) string {
	if n == 1 {
		return "1 record"
	}
	return fmt.Sprintf("%d records", n)
}

func (e *env) clockCommand() *cobra.Command {
	accept := &cobra.Command{
		Use:   "accept",
		Short: "Sign again with the clock as it is now",
		Long: `accept says that the head's clock is right now. A head signs nothing while its clock is before
its last record, or, where nothing synchronises it, more than a day after it. Look at the clock first:
what is signed by a wrong one is good at a wrong time. Who accepted is in the journal.`,
		Example: `  date && muster clock accept`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := call[signer.ClockView](cmd.Context(), e, signer.AdminClock, struct{}{}, nil)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "the clock is right: %s\n", at(v.Now))
			return nil
		},
	}
	return group("clock", "The head's clock", accept)
}

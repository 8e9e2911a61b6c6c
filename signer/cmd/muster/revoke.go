package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"muster/signer"
)

func (e *env) revokeCommand() *cobra.Command {
	var which choice
	var sure yes
	var asJSON bool
	req := signer.RevokeRequest{}
	c := &cobra.Command{
		Use:   "revoke -i NODES | --serial SERIAL",
		Short: "End certificates now, for good",
		Long: `revoke ends the certificates of nodes: from the next request on, no head serves them, and the
CRL lists them. Their keys are barred for ever. A revoked node gets nothing until it is enabled
with --again, and then only with another key of the TPM that it had; for another TPM see
muster certs replace.

--serial ends one certificate, of whatever class, and one of muster certs list --state unknown too. If
it is the one that a node has, the node is revoked.`,
		Example: `  muster certs revoke -i n7 --reason keyCompromise
  muster certs revoke --serial 5d0c2f1e… --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			req.IDs, req.All, req.Selector = which.ids, which.all, which.selector
			what, err := e.toRevoke(cmd.Context(), req, which)
			if err != nil {
				return err
			}
			if err := sure.ask(cmd, "Revoke "+what+"? This cannot be undone."); err != nil {
				return err
			}
			done, err := e.change(cmd.Context(), signer.AdminRevoke, req, "revoking")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			if done.Serial != "" {
				e.sayEnded(done)
				return nil
			}
			fmt.Fprintf(e.out, "%s revoked:  %s\n", nodes(done.Count), done.Nodes)
			if done.Unchanged != "" {
				fmt.Fprintf(e.out, "  already   %s\n", done.Unchanged)
			}
			return nil
		},
	}
	which.flags(c, true)
	sure.flag(c)
	f := c.Flags()
	f.StringVar(&req.Serial, "serial", "", "the certificate with this `serial` number, in hex")
	f.StringVar(&req.Reason, "reason", "", "why, for the CRL: "+strings.Join(signer.Reasons(), ", "))
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	c.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(signer.Reasons(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// toRevoke says for the question what would end. Without any it is an error, before anybody is asked.
func (e *env) toRevoke(ctx context.Context, req signer.RevokeRequest, which choice) (string, error) {
	if req.Serial == "" {
		return which.String(), which.some()
	}
	req.DryRun = true
	would, err := call[signer.Changed](ctx, e, signer.AdminRevoke, req, nil)
	switch {
	case err != nil:
		return "", err
	case would.Serial == "":
		return would.Nodes + ", whose certificate " + req.Serial + " is", nil
	case would.Keeps != "":
		return fmt.Sprintf("certificate %s of %s, which keeps %s", would.Serial, would.Nodes, would.Keeps), nil
	}
	return fmt.Sprintf("certificate %s of %s", would.Serial, would.Nodes), nil
}

// sayEnded tells of one certificate that ended, and nobody with it.
func (e *env) sayEnded(done *signer.Changed) {
	ended := "ended"
	if done.Unchanged != "" {
		ended = "had ended before"
	}
	fmt.Fprintf(e.out, "certificate %s of %s %s", done.Serial, done.Nodes, ended)
	if done.Keeps != "" {
		fmt.Fprintf(e.out, "; %s keeps %s", done.Nodes, done.Keeps)
	}
	fmt.Fprintln(e.out)
}

// some is an error where no nodes are chosen.
func (c *choice) some() error {
	if len(c.ids) == 0 && !c.all && c.selector == "" {
		return fail(exitUsage, "-i 'n[0-99]' for some, -a for all", "say which nodes: either -i or -a")
	}
	return nil
}

// String is the choice as it was written, for a question.
func (c *choice) String() string {
	text := strings.Join(c.ids, ",")
	if len(c.ids) == 0 && (c.all || c.selector != "") {
		text = "all known nodes"
	}
	if c.selector != "" {
		text += " that fit " + c.selector
	}
	return text
}

// yes is the consent that destroying something needs: --yes, or the answer of a person at a terminal.
type yes bool

func (y *yes) flag(cmd *cobra.Command) {
	cmd.Flags().BoolVarP((*bool)(y), "yes", "y", false, "do not ask")
}

func (y *yes) ask(cmd *cobra.Command, question string) error {
	if *y {
		return nil
	}
	in := cmd.InOrStdin()
	if w, ok := in.(io.Writer); !ok || !isTerminal(w) {
		return fail(exitUsage, cmd.CommandPath()+" … --yes", "%s asks before it does that, and there is no terminal", cmd.CommandPath())
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return fail(exitFailed, "", "nothing was changed")
	}
	return nil
}

package main

import (
	"fmt"
	"net/url"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"muster/signer"
)

func (e *env) caCommand() *cobra.Command {
	var asJSON bool
	show := &cobra.Command{
		Use:   "show",
		Short: "The CA that signs, and its pin",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := call[signer.CAView](cmd.Context(), e, signer.AdminCA, struct{}{}, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(ca)
			}
			e.printCA(ca)
			return nil
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print as JSON, with the certificate")
	export := &cobra.Command{
		Use:     "export",
		Short:   "The CA certificate as PEM, for images and web servers",
		Example: `  muster ca export > ca.pem`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := call[signer.CAView](cmd.Context(), e, signer.AdminCA, struct{}{}, nil)
			if err != nil {
				return err
			}
			fmt.Fprint(e.out, ca.Cert)
			return nil
		},
	}
	return group("ca", "The CA that nodes trust", show, export, e.hostCommand(), e.rotateCommand())
}

func (e *env) printCA(ca *signer.CAView) {
	fmt.Fprintf(e.out, "subject  %s\npin      %s\nexpires  %s\nCRL      %s\nOCSP     %s\n",
		printable(ca.Subject), ca.Pin, at(ca.Expires), printable(ca.CRL), printable(ca.OCSP))
	e.sayRing(ca)
}

// sayRing tells of the other CAs, where there are any.
func (e *env) sayRing(ca *signer.CAView) {
	if len(ca.CAs) < 2 {
		return
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(table.Row{"CA", "ROLE", "SINCE", "CERTIFICATES", "PIN"})
	for _, one := range ca.CAs {
		t.AppendRow(table.Row{one.ID, one.Role, at(one.Since), one.Certificates, one.Pin})
	}
	fmt.Fprintln(e.out)
	e.printLines(t)
	if ca.Waiting != "" {
		fmt.Fprintf(e.out, "\nnot acknowledged yet by  %s\n", ca.Waiting)
	}
}

func (e *env) rotateCommand() *cobra.Command {
	var sure yes
	var asJSON bool
	req := signer.RotateRequest{}
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the CA by another, without a gap",
		Long: `rotate makes the next CA, which the one that signs certifies, and tells nodes to trust both;
each node acknowledges that at its next contact, and muster ca show says who has not. With
--finish the next CA signs from then on, and the old one retires when its last certificate is
over. --finish is refused while a node with a good certificate has not acknowledged; --force
leaves such nodes behind.

--revoke-all is for an emergency: all that the CA signed ends at once, and nodes come back by
themselves, with the TPM and key that they have. --compromised is for a stolen CA key: that, and
nothing leads from the old CA to the new one, so that each node needs the new pin and
muster.forget=1.`,
		Example: `  muster ca rotate
  muster ca show
  muster ca rotate --finish`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Finish && (req.RevokeAll || req.Compromised) || req.RevokeAll && req.Compromised || req.Force && !req.Finish && !req.RevokeAll && !req.Compromised {
				return fail(exitUsage, "muster ca rotate --help", "one of --finish, --revoke-all and --compromised; --force goes with any of them")
			}
			if question := rotateQuestion(req); question != "" {
				if err := sure.ask(cmd, question); err != nil {
					return err
				}
			}
			done, err := call[signer.Rotated](cmd.Context(), e, signer.AdminRotate, req, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(done)
			}
			e.sayRotated(req, done)
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&req.Finish, "finish", false, "let the next CA sign")
	f.BoolVar(&req.Force, "force", false, "with --finish: leave nodes behind that have not acknowledged; with the others: again")
	f.BoolVar(&req.RevokeAll, "revoke-all", false, "end all that the CA signed, now")
	f.BoolVar(&req.Compromised, "compromised", false, "somebody else has the CA's key: as --revoke-all, and trust nothing of it")
	sure.flag(c)
	f.BoolVar(&asJSON, "json", false, "print what was done as JSON")
	return c
}

// rotateQuestion asks before what cannot be undone; "" where nothing is lost.
func rotateQuestion(req signer.RotateRequest) string {
	switch {
	case req.Compromised:
		return "End all certificates, and make every node need the new pin?"
	case req.RevokeAll:
		return "End all certificates? Nodes get others at their next boot or renewal."
	case req.Finish && req.Force:
		return "Leave the nodes behind that have not acknowledged?"
	}
	return ""
}

func (e *env) sayRotated(req signer.RotateRequest, done *signer.Rotated) {
	switch {
	case req.Compromised:
		fmt.Fprintf(e.out, "%s ended. The old CA is worth nothing; the new one signs.\n", certificates(done.Ended))
		fmt.Fprintf(e.out, "pin  %s\nNext: put this pin on the nodes' kernel command line, with muster.forget=1 for one boot,\nand the new CA into images that have an /etc/muster/ca.pem, which wins over the pin: muster ca export\n", done.Pin)
		return
	case req.RevokeAll:
		fmt.Fprintf(e.out, "%s ended. The new CA signs; nodes come back by themselves.\npin  %s\n", certificates(done.Ended), done.Pin)
		return
	case req.Finish:
		fmt.Fprintf(e.out, "The next CA signs from now on. The old one retires when its last certificate is over.\npin  %s\n", done.Pin)
		if done.Broken != "" {
			fmt.Fprintf(e.out, "left behind  %s\n", done.Broken)
		}
		return
	}
	fmt.Fprintf(e.out, "The next CA is made, and nodes learn of it at their next contact.\npin  %s\n", done.Pin)
	if done.Waiting != "" {
		fmt.Fprintf(e.out, "not acknowledged yet by  %s\n", done.Waiting)
	}
	fmt.Fprintln(e.out, "Next: muster ca show, until nobody is left; then muster ca rotate --finish")
}

func certificates(n int) string {
	if n == 1 {
		return "1 certificate"
	}
	return fmt.Sprintf("%d certificates", n)
}

func (e *env) hostCommand() *cobra.Command {
	var asJSON bool
	req := signer.HostRequest{}
	c := &cobra.Command{
		Use:   "host",
		Short: "The names and addresses under which nodes reach the head",
		Long: `host prints the names and addresses that the head's own certificate holds, or changes them: the
head makes itself another certificate at once. The first is its common name.`,
		Example: `  muster ca host --add head2.example.org,10.54.0.2`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := call[signer.HostView](cmd.Context(), e, signer.AdminHost, req, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(done)
			}
			for _, host := range done.Hosts {
				fmt.Fprintln(e.out, host)
			}
			if u, err := url.Parse(done.PublicURL); err == nil && slices.Contains(req.Remove, u.Hostname()) {
				fmt.Fprintf(e.err, "warning: certificates lead to CRL and OCSP at %s until the next start; see serve --public-url\n", done.PublicURL)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringSliceVar(&req.Add, "add", nil, "`names` and addresses to add")
	f.StringSliceVar(&req.Remove, "remove", nil, "`names` and addresses to take away")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

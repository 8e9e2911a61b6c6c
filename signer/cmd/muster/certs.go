package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"muster/internal/wire"
	"muster/signer"
)

func (e *env) certsCommand() *cobra.Command {
	return group("certs", "Which nodes may enrol, and what they got",
		e.enableCommand(), e.disableCommand(), e.revokeCommand(), e.listCommand(), e.showCommand(),
		e.approveCommand(), e.replaceCommand())
}

// choice is how a command is told which nodes.
type choice struct {
	ids      []string
	all      bool
	selector string
	narrowed *pflag.Flag // --selector
}

// flags uses StringArray: a StringSlice would cut n[1,3] at its comma.
func (c *choice) flags(cmd *cobra.Command, withAll bool) {
	cmd.Flags().StringArrayVarP(&c.ids, "ids", "i", nil, "`nodes`, as 'n[0-99],gpu[01-16]', @GROUP, a MAC, an IP or a UUID; may be given again")
	cmd.Flags().StringVar(&c.selector, "selector", "", "of these, the nodes that fit an `expression`, as 'status[state] == active and not %gpu'")
	if withAll {
		cmd.Flags().BoolVarP(&c.all, "all", "a", false, "all known nodes")
	}
	c.narrowed = cmd.Flags().Lookup("selector")
	cmd.RegisterFlagCompletionFunc("ids", completeNodes)
	cmd.Args = cobra.ArbitraryArgs
	cmd.ValidArgsFunction = completeNodes
}

// with adds the nodes named without -i. Where all of them are files, the shell has most likely
// read n[0-9] as a pattern.
func (c *choice) with(args []string) error {
	c.ids = append(c.ids, args...)
	files := 0
	for _, a := range c.ids {
		if _, err := os.Lstat(a); err == nil {
			files++
		}
	}
	if len(args) > 0 && len(c.ids) > 1 && files == len(c.ids) {
		return fail(exitUsage, "quote the set: -i 'n[0-99]'", "the shell took the nodes for the file names %s", strings.Join(c.ids, " "))
	}
	for _, id := range c.ids {
		if strings.TrimSpace(id) == "" {
			return fail(exitUsage, "is a shell variable empty? -i 'n[0-99]' for some, -a for all", "no nodes are named")
		}
	}
	if c.narrowed.Changed && strings.TrimSpace(c.selector) == "" {
		return fail(exitUsage, "is a shell variable empty? leave --selector out, or: --selector 'status[state] == active'", "--selector chooses nothing")
	}
	return nil
}

// completeNodes completes the last name or group of a set from the daemon's record.
func completeNodes(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	e := &env{}
	e.socket, _ = cmd.Flags().GetString("socket")
	before := toComplete[:strings.LastIndexByte(toComplete, ',')+1]
	var names []string
	add := func(name string) {
		if strings.HasPrefix(before+name, toComplete) {
			names = append(names, before+name)
		}
	}
	if last := toComplete[len(before):]; strings.HasPrefix(last, "@") || strings.HasPrefix(last, "%") {
		for _, g := range e.groupNames(cmd.Context()) {
			add(last[:1] + g)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	call[signer.Listed](cmd.Context(), e, signer.AdminList, signer.ListRequest{}, func(f signer.Frame) error {
		var v signer.NodeView
		if json.Unmarshal(f.Item, &v) == nil {
			add(v.Node)
		}
		return nil
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeGroup completes the group that is named before any nodes.
func completeGroup(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return completeNodes(cmd, args, toComplete)
	}
	e := &env{}
	e.socket, _ = cmd.Flags().GetString("socket")
	return e.groupNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
}

// groupNames are the groups that there are; none where no daemon answers.
func (e *env) groupNames(ctx context.Context) (names []string) {
	call[int](ctx, e, signer.AdminGroups, struct{}{}, func(f signer.Frame) error {
		var g signer.GroupView
		if json.Unmarshal(f.Item, &g) == nil {
			names = append(names, g.Group)
		}
		return nil
	})
	return names
}

func (e *env) enableCommand() *cobra.Command {
	var which choice
	var sure yes
	var ek, level string
	var asJSON bool
	req := signer.EnableRequest{}
	c := &cobra.Command{
		Use:   "enable -i NODES",
		Short: "Let nodes enrol, once each, until the window closes",
		Long: `enable opens a grant for each node: within the window, one TPM may prove itself and get
one certificate for one key. Enabling again may extend a window, never shorten it: disable
closes it. A node that has a certificate already may use the grant for a new key of the same
TPM. What --dns and --ip say takes the place of what was on record, and goes into the next certificate, which a node
with a certificate then gets at its next boot or renewal.

A node renews its certificate by itself, and uses no grant for it, until disable. --life and
--refresh-at stay on record for it.

With --password the names are EST clients, which are no nodes: each gets a password, printed
once, that is good for one certificate for one key, wherever that is.

Levels: pinned, the TPM's EK is recorded with --ek; vendor, a certificate of its EK leads to a
root in ek-roots/ of the state directory, so that it is a genuine TPM, but whose?; tofu, the
first TPM seen in the window, which is trust on first use and proves no genuine TPM.

With --approve, a TPM that is not on record waits for muster certs approve; so it does with later
grants, until one is used or disable. With --learn, EKs are noted and nothing is issued; --learned
later shows the EK that was noted for each node and the level that it proved, asks, and pins it.`,
		Example: `  muster certs enable -i 'n[0-99]'
  muster certs enable -i n7 --level pinned --ek 7c1d…90ab     (on the node: muster-agent ek)
  muster certs enable -i 'n[0-99]' --approve
  muster certs enable -i host9 --password --dns host9.example.org`,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := which.with(args)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("life") && req.Life == 0 {
				return fail(exitUsage, "--life 30d", "a certificate must live longer than that")
			}
			if ek != "" {
				fingerprint, err := readEK(ek)
				if err != nil {
					return err
				}
				req.EK = fingerprint
			}
			if (ek != "" || req.Learned) && !cmd.Flags().Changed("level") {
				level = string(wire.Pinned)
			}
			req.IDs, req.All, req.Selector, req.Level = which.ids, which.all, which.selector, wire.Level(level)
			if req.Learned {
				if req.Expect, err = e.candidates(cmd.Context(), signer.ListRequest{IDs: req.IDs, Selector: req.Selector, Whole: true}, learned); err != nil {
					return err
				}
				if err := sure.askOf(cmd, "Pin the TPMs of", req.Expect); err != nil {
					return err
				}
			}
			done, err := e.change(cmd.Context(), signer.AdminEnable, req, "enabling")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			e.sayEnabled(done, req)
			return nil
		},
	}
	which.flags(c, true)
	sure.flag(c)
	f := c.Flags()
	req.For = time.Hour
	f.Var((*window)(&req.For), "for", "how long the window stays open: 90m, 12h, 2d, 1d12h; at most 30d")
	f.StringVar(&level, "level", "", "ask for at least this `level`: tofu, vendor or pinned (default tofu, or what an open grant asks for)")
	f.StringVar(&ek, "ek", "", "pin this EK: its SHA-256, or a `file` with it, its public key or its certificate; means --level pinned")
	f.StringSliceVar(&req.DNS, "dns", nil, "DNS `names` for the certificate")
	f.StringSliceVar(&req.IP, "ip", nil, "IP `addresses` for the certificate")
	f.BoolVar(&req.Password, "password", false, "let EST clients enrol, by a one-time password that is printed")
	f.BoolVar(&req.Create, "create", false, "nodes that the inventory does not have, too (without an inventory that is the default)")
	f.Var((*window)(&req.Life), "life", "how long the next certificates live: 12h, 30d; as on record, else 90d; never past the CA's end")
	f.Var((*percent)(&req.RefreshAt), "refresh-at", "renew when this `part` of a certificate's life is left: 25%; as on record, else 33%")
	f.BoolVar(&req.Approve, "approve", false, "let a TPM that is not on record wait for muster certs approve")
	f.BoolVar(&req.Learn, "learn", false, "note the EKs of nodes that have none on record, and issue nothing")
	f.BoolVar(&req.Learned, "learned", false, "pin the EKs that --learn noted; means --level pinned")
	f.BoolVar(&req.TakeBack, "take-back", false, "with --ek: also a TPM that muster certs replace took out of the node")
	f.BoolVar(&req.Again, "again", false, "let revoked nodes enrol again: with another key, and the TPM that they had")
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	c.RegisterFlagCompletionFunc("level", cobra.FixedCompletions(levels, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// levels are those that --level takes.
var levels = []string{"tofu", "vendor", "pinned"}

func (e *env) sayEnabled(d *signer.Changed, req signer.EnableRequest) {
	who, may := nodes(d.Count), "may enrol"
	switch {
	case req.Password:
		who = strings.Replace(who, "node", "client", 1)
	case req.Learn:
		may = "may show their TPMs"
	case req.Approve:
		may = "may ask for approval"
	}
	if d.Until.IsZero() {
		fmt.Fprintf(e.out, "on record already, with a TPM:  %s\n", d.Nodes)
	} else {
		fmt.Fprintf(e.out, "%s %s until %s:  %s\n", who, may, d.Until.Local().Format("2006-01-02 15:04"), d.Nodes)
	}
	if req.Level != "" {
		fmt.Fprintf(e.out, "  %-9s at least %s\n", "level", req.Level)
	}
	e.sayLists(said{"new", d.New}, said{"opened", d.Opened}, said{"extended", d.Extended}, said{"kept", d.Kept}, said{"already", d.Unchanged})
	if d.Held != "" {
		fmt.Fprintf(e.out, "  %-9s still to be given to %s; muster certs disable ends that\n", "approval", d.Held)
	}
	e.sayPasswords(d.Passwords)
}

// sayPasswords shows what nobody can show again.
func (e *env) sayPasswords(all []signer.Credential) {
	if len(all) == 0 {
		return
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(table.Row{"NAME", "PASSWORD"})
	for _, c := range all {
		t.AppendRow(table.Row{c.Name, string(c.Password)})
	}
	e.printLines(t)
}

// window is a duration that may be in days.
type window time.Duration

func (w *window) Type() string { return "duration" }

func (w *window) String() string {
	const day = window(24 * time.Hour)
	switch {
	case *w == 0:
		return ""
	case *w >= day && *w%day == 0:
		return fmt.Sprintf("%dd", *w/day)
	}
	return strings.TrimSuffix(time.Duration(*w).String(), "0m0s")
}

func (w *window) Set(text string) error {
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		days, rest = "0", text
	}
	n, err := strconv.ParseUint(days, 10, 16)
	var d time.Duration
	if err == nil && (rest != "" || !ok) {
		d, err = time.ParseDuration(rest)
	}
	if err != nil || d < 0 {
		return errors.New("write it as 90m, 12h, 2d or 1d12h")
	}
	*w = window(time.Duration(n)*24*time.Hour + d)
	return nil
}

// percent is a whole number of percent.
type percent int

func (p *percent) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.Itoa(int(*p)) + "%"
}

func (p *percent) Type() string { return "percent" }

func (p *percent) Set(text string) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a part in percent", text)
	}
	*p = percent(n)
	return nil
}

func nodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

func (e *env) disableCommand() *cobra.Command {
	var which choice
	var sure yes
	var asJSON bool
	c := &cobra.Command{
		Use:   "disable -i NODES",
		Short: "Close grants, and renew no more; certificates already given live on",
		Long: `disable closes grants. Certificates already given are good until they expire, and are not renewed
any more: enable a node again before that if it is to keep one.`,
		Example: `  muster certs disable -i 'n[0-99]'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			if len(which.ids) == 0 && (which.all || which.selector != "") {
				if err := sure.ask(cmd, "Disable "+which.String()+"? Their certificates are not renewed any more."); err != nil {
					return err
				}
			}
			done, err := e.change(cmd.Context(), signer.AdminDisable, signer.DisableRequest{IDs: which.ids, All: which.all, Selector: which.selector}, "disabling")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			fmt.Fprintf(e.out, "%s disabled:  %s\n", nodes(done.Count), done.Nodes)
			if done.Unchanged != "" {
				fmt.Fprintf(e.out, "  already   %s\n", done.Unchanged)
			}
			if done.Unrenewed != "" {
				fmt.Fprintf(e.out, "  not renewed any more, with a certificate that is good yet  %s\n", done.Unrenewed)
			}
			return nil
		},
	}
	which.flags(c, true)
	sure.flag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print what changed as JSON")
	return c
}

// change runs a change of many nodes, with a progress bar where somebody watches.
func (e *env) change(ctx context.Context, path string, req any, doing string) (*signer.Changed, error) {
	var tracker *progress.Tracker
	stop := func() {}
	done, err := call[signer.Changed](ctx, e, path, req, func(f signer.Frame) error {
		if tracker == nil && isTerminal(e.err) {
			tracker, stop = e.progress(doing, f.Total)
		}
		if tracker != nil {
			tracker.SetValue(int64(f.Done))
		}
		return nil
	})
	stop()
	return done, err
}

func (e *env) progress(doing string, total int) (*progress.Tracker, func()) {
	w := progress.NewWriter()
	w.SetOutputWriter(e.err)
	w.SetAutoStop(false)
	w.SetUpdateFrequency(100 * time.Millisecond)
	tracker := &progress.Tracker{Message: doing, Total: int64(total), RemoveOnCompletion: true}
	w.AppendTracker(tracker)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Render()
	}()
	return tracker, func() {
		tracker.MarkAsDone()
		w.Stop()
		<-ended
	}
}

// readEK takes an EK's fingerprint, or finds it in a file: a line of `muster-agent ek`, or a PEM
// public key or certificate.
func readEK(arg string) (string, error) {
	// Of what muster-agent ek prints the first line is the one that enrolment uses.
	if fields := strings.Fields(arg); len(fields) > 0 && isSHA256(fields[0]) {
		return strings.ToLower(fields[0]), nil
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return "", fail(exitUsage, "on the node: muster-agent ek", "--ek %q is neither a SHA-256 in hex nor a file", arg)
	}
	if block, _ := pem.Decode(b); block != nil {
		return ekFromPEM(arg, block)
	}
	if fields := strings.Fields(string(b)); len(fields) > 0 && isSHA256(fields[0]) {
		return strings.ToLower(fields[0]), nil
	}
	return "", fail(exitUsage, "on the node: muster-agent ek > FILE", "--ek %s: no EK in this file", arg)
}

func ekFromPEM(path string, block *pem.Block) (string, error) {
	spki := block.Bytes
	if block.Type == "CERTIFICATE" {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fail(exitUsage, "", "--ek %s: %v", path, err)
		}
		spki = cert.RawSubjectPublicKeyInfo
	}
	if _, err := x509.ParsePKIXPublicKey(spki); err != nil {
		return "", fail(exitUsage, "", "--ek %s: a PEM %q is neither a public key nor a certificate", path, block.Type)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

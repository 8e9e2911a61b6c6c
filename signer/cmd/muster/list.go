package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"muster/signer"
	"muster/signer/nodeset"
)

const certsSchema = "muster.certs/v1"

// listing is `certs list --json`, of rows, and `certs show --json`, of wholes.
type listing struct {
	Schema string `json:"schema"`
	Nodes  any    `json:"nodes"`
}

// row is one node for programs. Each field is always there; null stands for what the node has not.
type row struct {
	Node        string       `json:"node"`
	State       signer.State `json:"state"`
	Level       *string      `json:"level"`
	Serial      *string      `json:"serial"`
	EK          *string      `json:"ek"`
	Key         *string      `json:"key"`
	Issued      *string      `json:"issued"`
	Expires     *string      `json:"expires"`
	WindowUntil *string      `json:"window_until"`
	Class       string       `json:"class"`
}

// whole is a row with what only `certs show` tells.
type whole struct {
	row
	Pinned   bool     `json:"pinned"`
	DNS      []string `json:"dns"`
	IP       []string `json:"ip"`
	MAC      []string `json:"mac"`
	UUID     *string  `json:"uuid"`
	Groups   []string `json:"groups"`
	Cert     *string  `json:"cert"`
	Replaces *string  `json:"replaces"`
	RenewAt  *string  `json:"renew_at"`
	Life     int64    `json:"life"`       // of the next certificate, in seconds
	Refresh  int      `json:"refresh_at"` // percent

	Pending *signer.Candidate `json:"pending"`
	Learned *signer.Candidate `json:"learned"`
}

func rowOf(v signer.NodeView) row {
	return row{
		v.Node, v.State, orNull(string(v.Level)), orNull(v.Serial), orNull(v.EK), orNull(v.Key),
		orNull(stamp(v.Issued)), orNull(stamp(v.Expires)), orNull(stamp(v.WindowUntil)), v.Class,
	}
}

func wholeOf(v signer.NodeView) whole {
	i := itemOf(v)
	return whole{rowOf(v), v.Pinned, i.DNS, i.IP, i.MAC, i.UUID, i.Groups, orNull(v.Cert), orNull(v.Old),
		orNull(stamp(v.RenewAt)), int64(v.Life.Seconds()), v.RefreshAt, v.Pending, v.Learned}
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// each is f of every node; never nil, which JSON would show as null.
func each[T any](nodes []signer.NodeView, f func(signer.NodeView) T) []T {
	all := make([]T, 0, len(nodes))
	for _, v := range nodes {
		all = append(all, f(v))
	}
	return all
}

var formats = []string{"table", "wide", "json", "jsonl", "yaml", "csv", "nodeset", "name"}

func (e *env) listCommand() *cobra.Command {
	var which choice
	var state, format string
	var asJSON, check bool
	limits := thresholds{warnBefore, critBefore}
	c := &cobra.Command{
		Use:   "list [-i NODES]",
		Short: "Every node's state and certificate",
		Long: `list shows what is on record for every node, or for some.

With --check it is a plugin for Nagios, Icinga and the like: one line with performance
data, and exit status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Certificates of revoked nodes
are not looked at; those of disabled ones are a warning before they expire.`,
		Example: `  muster certs list
  muster certs list --state open -o nodeset
  muster certs list --expiring 30d -o nodeset
  muster certs list --check
  muster certs list --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			flags := cmd.Flags()
			err := which.with(args)
			switch {
			case check && err != nil:
				return e.verdict(checkUnknown, err.Error())
			case check && (flags.Changed("state") || flags.Changed("output") || asJSON):
				return e.verdict(checkUnknown, "--check goes with -i, --selector, --expiring and --critical alone")
			case check:
				return e.check(cmd.Context(), which, limits)
			case err != nil:
				return err
			}
			if flags.Changed("critical") {
				return fail(exitUsage, "muster certs list --check --critical 7d", "--critical is for --check")
			}
			if asJSON {
				format = "json"
			}
			if !slices.Contains(formats, format) {
				return fail(exitUsage, "muster certs list -o table", "-o %s is none of %s", format, strings.Join(formats, ", "))
			}
			if state != "" && !slices.Contains(stateNames(), state) {
				return fail(exitUsage, "muster certs list, which shows them all", "--state %s is none of %s", state, strings.Join(stateNames(), ", "))
			}
			nodes, damaged, err := e.records(cmd.Context(), signer.ListRequest{IDs: which.ids, Selector: which.selector, State: signer.State(state)})
			if err != nil {
				return err
			}
			if flags.Changed("expiring") {
				nodes = expiring(nodes, limits.warning, time.Now())
			}
			if state == string(signer.StatePending) && (format == "table" || format == "wide") {
				e.printPending(nodes)
				return damaged
			}
			return errors.Join(e.printNodes(nodes, format, certsShape), damaged)
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if slices.Contains(e.args, "--check") {
			return e.verdict(checkUnknown, err.Error())
		}
		return c.Parent().FlagErrorFunc()(c, err)
	})
	which.flags(c, false)
	f := c.Flags()
	f.StringVar(&state, "state", "", "only nodes in this `state`: "+strings.Join(stateNames(), ", "))
	f.StringVarP(&format, "output", "o", "table", "`format`: "+strings.Join(formats, ", "))
	f.BoolVar(&asJSON, "json", false, "the same as -o json")
	f.Var((*window)(&limits.warning), "expiring", "only nodes whose certificate is over or has less than this left: 30d, 12h; with --check what is a warning")
	f.BoolVar(&check, "check", false, "judge for monitoring: one line, and status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN")
	f.Var((*window)(&limits.critical), "critical", "with --check: less than this left is critical")
	c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (e *env) showCommand() *cobra.Command {
	var which choice
	var asJSON bool
	c := &cobra.Command{
		Use:     "show -i NODES",
		Short:   "All that is on record for nodes, certificates included",
		Example: `  muster certs show -i n0`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			if len(which.ids) == 0 && which.selector == "" {
				return fail(exitUsage, "muster certs show -i n0", "say which nodes")
			}
			nodes, damaged, err := e.records(cmd.Context(), signer.ListRequest{IDs: which.ids, Selector: which.selector, Whole: true})
			if err != nil {
				return err
			}
			if asJSON {
				return errors.Join(e.printJSON(listing{certsSchema, each(nodes, wholeOf)}), damaged)
			}
			for _, v := range nodes {
				e.printNode(v)
			}
			return damaged
		},
	}
	which.flags(c, false)
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// records asks for the nodes' records. Those that cannot be read are in damaged, to be told when the
// others have been.
func (e *env) records(ctx context.Context, req signer.ListRequest) (nodes []signer.NodeView, damaged, err error) {
	done, err := call[signer.Listed](ctx, e, signer.AdminList, req, func(f signer.Frame) error {
		var v signer.NodeView
		err := json.Unmarshal(f.Item, &v)
		nodes = append(nodes, v)
		return err
	})
	if err == nil && done.Damaged != "" {
		damaged = fail(exitPartly, "these nodes are refused until the store is restored; look at the disk", "damaged records: %s", done.Damaged)
	}
	return nodes, damaged, err
}

// shape is how nodes are listed: with their certificates, or from the inventory.
type shape struct {
	schema string
	row    func(signer.NodeView) any // for JSON and YAML
	header []string                  // for CSV
	cells  func(signer.NodeView) []string
	table  func(e *env, nodes []signer.NodeView, wide bool)
}

var certsShape = shape{
	schema: certsSchema,
	row:    func(v signer.NodeView) any { return rowOf(v) },
	header: []string{"node", "state", "level", "serial", "ek", "key", "issued", "expires", "window_until", "class"},
	cells: func(v signer.NodeView) []string {
		return []string{v.Node, string(v.State), string(v.Level), v.Serial, v.EK, v.Key, stamp(v.Issued), stamp(v.Expires), stamp(v.WindowUntil), v.Class}
	},
	table: (*env).printTable,
}

func (e *env) printNodes(nodes []signer.NodeView, format string, as shape) error {
	nodes = inOrder(nodes)
	switch format {
	case "json":
		return e.printJSON(listing{as.schema, each(nodes, as.row)})
	case "jsonl":
		enc := json.NewEncoder(e.out)
		for _, v := range nodes {
			if err := enc.Encode(as.row(v)); err != nil {
				return err
			}
		}
		return nil
	case "yaml":
		return e.printYAML(listing{as.schema, each(nodes, as.row)})
	}
	for i := range nodes { // in a certificate that is not on record its maker wrote what he liked
		nodes[i].Node = printable(nodes[i].Node)
	}
	switch format {
	case "csv":
		return e.printCSV(nodes, as)
	case "name":
		for _, v := range nodes {
			fmt.Fprintln(e.out, v.Node)
		}
		return nil
	case "nodeset":
		_, err := fmt.Fprintln(e.out, foldNodes(nodes))
		return err
	}
	if len(nodes) == 0 {
		fmt.Fprintln(e.err, "no nodes")
		return nil
	}
	as.table(e, nodes, format == "wide")
	return nil
}

func (e *env) printTable(nodes []signer.NodeView, wide bool) {
	header := table.Row{"NODE", "STATE", "LEVEL", "SERIAL", "EXPIRES", "CLOSES", "TPM (EK)"}
	if wide {
		header = append(header, "KEY", "ISSUED", "CLASS")
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(header)
	now := time.Now()
	counts := map[signer.State]int{}
	for _, v := range nodes {
		counts[v.State]++
		row := table.Row{v.Node, v.State, dash(string(v.Level)), short(v.Serial, wide), expires(v, now), in(v.WindowUntil, now), short(v.EK, wide)}
		if wide {
			row = append(row, dash(v.Key), at(v.Issued), v.Class)
		}
		t.AppendRow(row)
	}
	e.printLines(t)
	if isTerminal(e.out) {
		fmt.Fprintln(e.out, summary(len(nodes), counts))
	}
}

func (e *env) printLines(t table.Writer) {
	for line := range strings.Lines(t.Render() + "\n") {
		fmt.Fprintln(e.out, strings.TrimRight(line, " \n"))
	}
}

// plain is a table that reads well and pipes well: columns apart by two blanks, no lines.
var plain = table.Style{
	Name:    "plain",
	Box:     table.BoxStyle{PaddingRight: "  "},
	Options: table.Options{},
}

func summary(n int, counts map[signer.State]int) string {
	var parts []string
	for _, s := range signer.States {
		if counts[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	return nodes(n) + ": " + strings.Join(parts, ", ")
}

func (e *env) printNode(v signer.NodeView) {
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(e.out, "%-10s %s\n", what, printable(value))
		}
	}
	line("node", v.Node)
	if !v.IsNode() {
		line("class", v.Class)
	}
	line("state", string(v.State))
	line("level", string(v.Level))
	ek := v.EK
	if v.Pinned {
		ek += " (pinned)"
	}
	for what, c := range map[string]*signer.Candidate{" (waits for approval)": v.Pending, " (learned)": v.Learned} {
		if c != nil && c.EK == v.EK {
			ek += what
		}
	}
	line("EK", ek)
	line("window", strings.Trim(at(v.WindowUntil), "-"))
	line("dns", strings.Join(v.DNS, ", "))
	line("ip", strings.Join(v.IP, ", "))
	line("MAC", strings.Join(v.MAC, ", "))
	line("UUID", v.UUID)
	line("groups", strings.Join(v.Groups, ", "))
	line("serial", v.Serial)
	line("key", v.Key)
	line("issued", strings.Trim(at(v.Issued), "-"))
	if v.Ended {
		line("ended", at(v.Expires)+", with its CA")
	} else {
		line("expires", strings.Trim(at(v.Expires), "-"))
	}
	line("life", (*window)(&v.Life).String())
	if v.IsNode() { // a client renews when it likes
		line("refresh at", (*percent)(&v.RefreshAt).String()+" left")
	}
	line("renewal", strings.Trim(at(v.RenewAt), "-"))
	line("replaces", v.Old)
	fmt.Fprint(e.out, v.Cert)
}

func (e *env) printCSV(nodes []signer.NodeView, as shape) error {
	w := csv.NewWriter(e.out)
	w.Write(as.header)
	for _, v := range nodes {
		w.Write(as.cells(v))
	}
	w.Flush()
	return w.Error()
}

func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printYAML goes through JSON, so that field names and order of both are the same.
func (e *env) printYAML(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b, &node); err != nil {
		return err
	}
	blockStyle(&node)
	enc := yaml.NewEncoder(e.out)
	enc.SetIndent(2)
	return enc.Encode(&node)
}

func blockStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, c := range n.Content {
		blockStyle(c)
	}
}

func foldNodes(nodes []signer.NodeView) string {
	set, err := setOf(nodes)
	if err != nil {
		return err.Error() // a name of the record is one that nodeset took
	}
	return set.String()
}

// inOrder sorts as people count: n2 before n10.
func inOrder(nodes []signer.NodeView) []signer.NodeView {
	set, err := setOf(nodes)
	if err != nil {
		return nodes
	}
	byName := make(map[string][]signer.NodeView, len(nodes)) // several of those that are not on record
	for _, v := range nodes {
		byName[v.Node] = append(byName[v.Node], v)
	}
	sorted := make([]signer.NodeView, 0, len(nodes))
	for name := range set.All() {
		sorted = append(sorted, byName[name]...)
	}
	return sorted
}

func setOf(nodes []signer.NodeView) (nodeset.Set, error) {
	names := make([]string, 0, len(nodes))
	for _, v := range nodes {
		names = append(names, v.Node)
	}
	return nodeset.Of(names...)
}

func stateNames() []string {
	var names []string
	for _, s := range signer.States {
		names = append(names, string(s))
	}
	return names
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func short(hex string, wide bool) string {
	if !wide && len(hex) > 8 {
		return hex[:8]
	}
	return dash(hex)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func at(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// expires is when a certificate does, or that it ended with its CA.
func expires(v signer.NodeView, now time.Time) string {
	if v.Ended {
		return "ended"
	}
	return in(v.Expires, now)
}

// in says how far away a moment is.
func in(t, now time.Time) string {
	left := t.Sub(now).Round(time.Second)
	if left > time.Minute {
		left = left.Round(time.Minute)
	}
	switch {
	case t.IsZero():
		return "-"
	case left < 0:
		return at(t)
	case left < time.Minute:
		return fmt.Sprintf("in %ds", int(left.Seconds()))
	case left < time.Hour:
		return fmt.Sprintf("in %dm", int(left.Minutes()))
	case left < 48*time.Hour:
		return fmt.Sprintf("in %dh %02dm", int(left.Hours()), int(left.Minutes())%60)
	default:
		return fmt.Sprintf("in %dd", int(left.Round(time.Hour).Hours()/24))
	}
}

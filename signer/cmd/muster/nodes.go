package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"muster/signer"
	"muster/signer/inventory"
	"muster/signer/nodeset"
)

func (e *env) nodesCommand() *cobra.Command {
	return group("nodes", "The inventory: which nodes there are, and how to tell them apart",
		e.nodesListCommand(), e.importCommand(), e.groupCommand(), e.removeCommand())
}

// nodesShape is how nodes are listed from the inventory's side. What `muster nodes import` takes is called as
// there.
var nodesShape = shape{
	schema: "muster.nodes/v1",
	row:    func(v signer.NodeView) any { return itemOf(v) },
	header: []string{"node", "state", "mac", "uuid", "ek", "groups", "dns", "ip"},
	cells: func(v signer.NodeView) []string {
		return []string{v.Node, string(v.State), blanks(v.MAC), v.UUID, pinnedEK(v), blanks(v.Groups), blanks(v.DNS), blanks(v.IP)}
	},
	table: (*env).printInventory,
}

// item is one node of the inventory for programs, each field always there.
type item struct {
	Node   string       `json:"node"`
	State  signer.State `json:"state"`
	MAC    []string     `json:"mac"`
	UUID   *string      `json:"uuid"`
	EK     *string      `json:"ek"`
	Groups []string     `json:"groups"`
	DNS    []string     `json:"dns"`
	IP     []string     `json:"ip"`
}

func itemOf(v signer.NodeView) item {
	return item{
		v.Node, v.State, append([]string{}, v.MAC...), orNull(v.UUID), orNull(pinnedEK(v)),
		append([]string{}, v.Groups...), append([]string{}, v.DNS...), append([]string{}, v.IP...),
	}
}

// pinnedEK is the EK that the administrator recorded. One that was taken on first use is none of the
// inventory's: to import it would be to vouch for it.
func pinnedEK(v signer.NodeView) string {
	if v.Pinned {
		return v.EK
	}
	return ""
}

func blanks(values []string) string { return strings.Join(values, " ") }

func (e *env) nodesListCommand() *cobra.Command {
	var which choice
	var format string
	var asJSON bool
	c := &cobra.Command{
		Use:   "list [-i NODES]",
		Short: "Every node and what the inventory has of it",
		Long: `list prints what nodes import and nodes group have put on record. Its CSV and JSON can be imported
again. The EK is the one that you recorded; one that was taken on first use stands in muster certs list.`,
		Example: `  muster nodes list -i @rack1
  muster nodes list -o csv > nodes.csv`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			if asJSON {
				format = "json"
			}
			if !slices.Contains(formats, format) {
				return fail(exitUsage, "", "-o %s is none of %s", format, strings.Join(formats, ", "))
			}
			nodes, damaged, err := e.records(cmd.Context(), signer.ListRequest{IDs: which.ids, Selector: which.selector, Whole: true})
			if err != nil {
				return err
			}
			nodes = slices.DeleteFunc(nodes, func(v signer.NodeView) bool { return !v.IsNode() })
			return errors.Join(e.printNodes(nodes, format, nodesShape), damaged)
		},
	}
	which.flags(c, false)
	f := c.Flags()
	f.StringVarP(&format, "output", "o", "table", "`format`: "+strings.Join(formats, ", "))
	f.BoolVar(&asJSON, "json", false, "the same as -o json")
	c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (e *env) printInventory(nodes []signer.NodeView, wide bool) {
	header := table.Row{"NODE", "STATE", "MAC", "IP", "GROUPS", "TPM (EK)"}
	if wide {
		header = append(header, "UUID", "DNS")
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(header)
	for _, v := range nodes {
		row := table.Row{v.Node, v.State, dash(blanks(v.MAC)), dash(blanks(v.IP)), dash(blanks(v.Groups)), short(pinnedEK(v), wide)}
		if wide {
			row = append(row, dash(v.UUID), dash(blanks(v.DNS)))
		}
		t.AppendRow(row)
	}
	e.printLines(t)
}

func (e *env) importCommand() *cobra.Command {
	var format string
	var asJSON bool
	req := signer.ImportRequest{}
	formatNames := make([]string, 0, len(inventory.Formats))
	for _, f := range inventory.Formats {
		formatNames = append(formatNames, string(f))
	}
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Take node names, MACs, EKs and groups from a file",
		Long: `import makes the record say what a file says: CSV or JSON with the fields name, mac, uuid, ek,
groups, dns and ip; /etc/hosts; ClusterShell's groups (groups.d/*.yaml, or lines of "group: nodes").
The file's name tells which, or --format. FILE - is standard input.

Nodes that are not known yet are made; they may enrol once they are enabled. Of a known node,
what the file has a field for is replaced, the rest stays. An ek pins the TPM, as enable --ek does,
and is never changed by an import. A groups file names all nodes of its groups. One fault in the
file, and nothing is changed.

After the first import, enable takes no name that is not on record, unless with --create.`,
		Example: `  muster nodes import nodes.csv --dry-run
  muster nodes import /etc/hosts -i 'n[0-99]'
  muster nodes import /etc/clustershell/groups.d/cluster.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fail(exitUsage, "muster nodes import nodes.csv", "name one file, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if req.Format, err = formatOf(args[0], format); err != nil {
				return err
			}
			req.File = args[0]
			if req.Data, err = readInventory(cmd.InOrStdin(), args[0]); err != nil {
				return err
			}
			done, err := e.change(cmd.Context(), signer.AdminImport, req, "importing")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			verb := "imported"
			if req.DryRun {
				verb = "would be imported"
			}
			fmt.Fprintf(e.out, "%s %s from %s:  %s\n", nodes(done.Count), verb, printable(args[0]), done.Nodes)
			e.sayLists(
				said{"new", done.New}, said{"changed", done.Altered}, said{"unchanged", done.Unchanged},
			)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "", "`format` of the file: "+strings.Join(formatNames, ", "))
	f.StringArrayVarP(&req.IDs, "ids", "i", nil, "import these `nodes` of the file only, as 'n[0-99]'; may be given again")
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would be changed, and change nothing")
	f.BoolVar(&asJSON, "json", false, "print what changed as JSON")
	c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formatNames, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func formatOf(file, asked string) (inventory.Format, error) {
	format := inventory.Format(asked)
	if format == "" {
		format = inventory.FormatOf(file)
	}
	if !slices.Contains(inventory.Formats, format) {
		what := fmt.Sprintf("--format %s is none of csv, json, hosts, groups", asked)
		if asked == "" {
			what = fmt.Sprintf("the name %q does not say how the file is written", file)
		}
		return "", fail(exitUsage, "muster nodes import "+quoted(file)+" --format csv, json, hosts or groups", "%s", what)
	}
	return format, nil
}

func readInventory(stdin io.Reader, file string) ([]byte, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fail(exitUsage, "", "%v", err)
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, signer.MaxImport+1))
	if err != nil {
		return nil, fail(exitFailed, "", "%v", err)
	}
	if len(data) > signer.MaxImport {
		return nil, fail(exitUsage, "take it apart", "%s has more than %d MiB", file, signer.MaxImport>>20)
	}
	return data, nil
}

// said is one line of what a change did.
type said struct{ what, nodes string }

func (e *env) sayLists(lines ...said) {
	for _, line := range lines {
		if line.nodes != "" {
			fmt.Fprintf(e.out, "  %-9s %s\n", line.what, line.nodes)
		}
	}
}

const groupsSchema = "muster.groups/v1"

func (e *env) groupCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "group",
		Short: "Groups of nodes, for @GROUP in -i",
		Long: `group lists the groups, or changes which nodes belong to one. A group is there as long as a node
belongs to it; -i takes it as @GROUP or %GROUP.`,
		Example: `  muster nodes group
  muster nodes group add gpu -i 'n[8-15]'
  muster nodes group remove gpu -i n9`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return onlySubcommands(cmd, args)
			}
			groups := []signer.GroupView{}
			_, err := call[int](cmd.Context(), e, signer.AdminGroups, struct{}{}, func(f signer.Frame) error {
				var g signer.GroupView
				err := json.Unmarshal(f.Item, &g)
				groups = append(groups, g)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(struct {
					Schema string             `json:"schema"`
					Groups []signer.GroupView `json:"groups"`
				}{groupsSchema, groups})
			}
			e.printGroups(groups)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	c.AddCommand(e.memberCommand("add", "Put nodes into a group", "added to", false), e.memberCommand("remove", "Take nodes out of a group", "taken out of", true))
	return c
}

func (e *env) printGroups(groups []signer.GroupView) {
	if len(groups) == 0 {
		fmt.Fprintln(e.err, "no groups")
		return
	}
	t := table.NewWriter()
	t.SetStyle(plain)
	t.AppendHeader(table.Row{"GROUP", "COUNT", "NODES"})
	for _, g := range groups {
		t.AppendRow(table.Row{g.Group, g.Count, g.Nodes})
	}
	e.printLines(t)
}

func (e *env) memberCommand(use, about, verb string, leave bool) *cobra.Command {
	var which choice
	var asJSON bool
	c := &cobra.Command{
		Use:     use + " GROUP -i NODES",
		Short:   about,
		Example: "  muster nodes group " + use + " gpu -i 'n[8-15]'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fail(exitUsage, cmd.CommandPath()+" gpu -i 'n[8-15]'", "say which group")
			}
			if err := which.with(args[1:]); err != nil {
				return err
			}
			req := signer.GroupRequest{Group: strings.TrimLeft(args[0], "@%"), Leave: leave, IDs: which.ids, All: which.all, Selector: which.selector}
			done, err := e.change(cmd.Context(), signer.AdminGroup, req, "changing")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			moved, err := nodeset.Of()
			if done.Altered != "" {
				moved, err = nodeset.Parse(done.Altered)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s %s %s:  %s\n", nodes(moved.Len()), verb, req.Group, dash(done.Altered))
			e.sayLists(said{"unchanged", done.Unchanged})
			return nil
		},
	}
	which.flags(c, true)
	c.Flags().BoolVar(&asJSON, "json", false, "print what changed as JSON")
	c.ValidArgsFunction = completeGroup
	return c
}

func (e *env) removeCommand() *cobra.Command {
	var which choice
	var sure yes
	var asJSON bool
	c := &cobra.Command{
		Use:   "remove -i NODES",
		Short: "Revoke nodes and forget them, so that name and board are free",
		Long: `remove ends the certificates of nodes, with the reason cessationOfOperation, and takes the nodes off the
record: another board may have the name, and the board, its MACs and its TPM another name. The keys
that the nodes had are barred for ever; a TPM makes a new one by itself.`,
		Example: `  muster nodes remove -i n7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			if err := which.some(); err != nil {
				return err
			}
			if err := sure.ask(cmd, "Revoke and forget "+which.String()+"? This cannot be undone."); err != nil {
				return err
			}
			req := signer.RemoveRequest{IDs: which.ids, All: which.all, Selector: which.selector}
			done, err := e.change(cmd.Context(), signer.AdminRemove, req, "removing")
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(done)
			}
			fmt.Fprintf(e.out, "%s removed:  %s\n", nodes(done.Count), done.Nodes)
			return nil
		},
	}
	which.flags(c, true)
	sure.flag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print what changed as JSON")
	return c
}

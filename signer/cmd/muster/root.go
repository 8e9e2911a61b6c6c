package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"muster/internal/journal"
	"muster/signer"
)

// Exit statuses.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNone        = 4
	exitUnreachable = 5
	exitPolicy      = 6
	exitInterrupted = 130 // as a shell has it for SIGINT
)

// failure is an error with its exit status and the way out.
type failure struct {
	status int
	msg    string
	hint   string
	event  journal.Event // for the journal; most have none
}

func (f *failure) Error() string { return f.msg }

func fail(status int, hint, format string, args ...any) error {
	return &failure{status: status, msg: fmt.Sprintf(format, args...), hint: hint}
}

// asEvent makes err one for the journal, unless it is that already.
func asEvent(event journal.Event, err error) error {
	if err == nil {
		return nil
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{status: exitFailed, msg: err.Error()}
	}
	if f.event == "" {
		f.event = event
	}
	return f
}

// env is what every command shares.
type env struct {
	args     []string
	out, err io.Writer
	socket   string
	patience time.Duration // with a daemon that does not answer; 0: mutePatience
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out := &output{Writer: stdout}
	e := &env{args: args, out: out, err: stderr}
	root := e.command()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if out.err != nil {
		err = fail(exitFailed, "", "what was to be printed is cut short: %v", out.err)
	}
	return report(stderr, err)
}

// output remembers the first failure to write, so that what is written to a full disk is never
// taken for whole.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

func (e *env) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "muster",
		Short: "Certificates for cluster nodes, whose keys never leave the nodes' TPMs",
		Long: `muster is the head of a cluster: it signs a certificate, once, for each node that
the administrator enabled and that proves itself with its TPM.

  muster init                          make a cluster
  muster serve                         be the signer
  muster certs enable -i 'n[0-99]'     let these nodes enrol; then power them on

Exit status: 0 done, 1 failed, 2 usage or configuration, 3 partly done, 4 nothing matched,
5 head or store unreachable, 6 refused by policy, 130 interrupted.`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: configured,
		Args:              cobra.ArbitraryArgs,
		RunE:              onlySubcommands,
	}
	root.SetVersionTemplate("muster {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if args := c.Flags().Args(); c.HasSubCommands() && len(args) > 0 {
			return onlySubcommands(c, args) // a flag of a command that is spelt wrong
		}
		return fail(exitUsage, c.CommandPath()+" --help", "%v", err)
	})
	root.PersistentFlags().StringVar(&e.socket, "socket", "/run/muster-head/admin.sock", "`path` of the daemon's admin socket")
	root.PersistentFlags().String("config", "", "configuration `file` (default /etc/muster/signer.toml, if it is there)")
	root.AddCommand(e.initCommand(), e.serveCommand(), e.certsCommand(), e.nodesCommand(), e.whyCommand(), e.logCommand(), e.caCommand(), e.versionCommand(),
		e.statusCommand(), e.clockCommand(), e.backupCommand(), e.restoreCommand())
	return root
}

func (e *env) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintf(e.out, "muster %s\n", version) },
	}
}

// quoted makes a path fit to be pasted into a shell.
func quoted(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// report prints what went wrong, and returns the exit status.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	var quiet silent
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{status: exitFailed, msg: err.Error()}
	}
	if f.event != "" && journal.Enabled(w) {
		slog.New(journal.Handler(w, slog.HandlerOptions{})).Error(f.msg, "event", f.event, "hint", f.hint, "status", f.status)
		journal.Flush()
		return f.status
	}
	fmt.Fprintf(w, "muster: %s\n", printableLines(f.msg))
	if f.hint != "" {
		fmt.Fprintf(w, "hint: %s\n", printableLines(f.hint))
	}
	return f.status
}

// fromHead turns the daemon's error into a failure.
func fromHead(e *signer.AdminError) error {
	status := map[signer.ErrorKind]int{
		signer.KindUsage: exitUsage, signer.KindNone: exitNone, signer.KindStore: exitUnreachable, signer.KindPolicy: exitPolicy,
		signer.KindPartly: exitPartly,
	}[e.Kind]
	if status == 0 {
		status = exitFailed
	}
	return &failure{status: status, msg: e.Message, hint: e.Hint}
}

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: onlySubcommands}
	c.AddCommand(subs...)
	return c
}

func onlySubcommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	hint := c.CommandPath() + " --help"
	if meant := c.SuggestionsFor(args[0]); len(meant) == 1 {
		hint = c.CommandPath() + " " + meant[0]
	}
	return fail(exitUsage, hint, "unknown command %q", c.CommandPath()+" "+args[0])
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fail(exitUsage, c.CommandPath()+" --help", "%s takes flags only, not %q", strings.TrimPrefix(c.CommandPath(), "muster "), args[0])
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	if o, ok := w.(*output); ok {
		w = o.Writer
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	return term.IsTerminal(int(f.Fd())) // not so /dev/null, though it is a character device
}

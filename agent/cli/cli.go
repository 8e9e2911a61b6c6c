// Package cli is muster-agent's command line. It is apart from the program because the boot image's /init
// answers to the name of muster-agent as well.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"muster/agent"
	"muster/internal/journal"
)

// Program is muster-agent.
type Program struct {
	Version        string
	Built          time.Time // when the source was committed: it runs later than that; zero: not known
	Stdout, Stderr io.Writer
}

// Run runs a command line, without the program's name, and returns the exit status.
func (p *Program) Run(ctx context.Context, args []string) int {
	if err := p.run(ctx, args); err != nil {
		return p.failed(err)
	}
	return 0
}

// command is one of the words that may come first.
type command struct {
	name, args, help string
	flags            func(*flag.FlagSet, *invocation)
	run              func(context.Context, *Program, *invocation) error
}

// invocation is what the command line said.
type invocation struct {
	agent.Config
	json, key, newKey bool
	args              []string
}

func commands() []command {
	none := func(*flag.FlagSet, *invocation) {}
	return []command{
		{"run", "", "get or confirm the certificate, and install its files", runFlags, runRun},
		{"renew", "", "renew the certificate when it is due", renewFlags, runRenew},
		{"status", "", "what this node holds, without a network", statusFlags, runStatus},
		{"cert", "", "print the certificate in the TPM, PEM", none, runCert},
		{"ek", "", "print the endorsement keys' SHA-256 and kind", none, runEK},
		{"get", "URL", "fetch a URL over mTLS with the key in the TPM", none, runGet},
		{"forget", "", "erase certificate and pinned CA; the key stays", forgetFlags, runForget},
		{"doctor", "", "examine everything, change nothing", doctorFlags, runDoctor},
		{"version", "", "print the version", none, runVersion},
	}
}

func (p *Program) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usage("", "no command")
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		if len(args) == 1 {
			p.help()
			return nil
		}
		args = []string{args[1], "--help"} // of that command
	case "--version", "-version":
		args[0] = "version"
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return p.invoke(ctx, c, args[1:])
		}
	}
	return usage("", "no command %q", args[0])
}

func (p *Program) invoke(ctx context.Context, c command, args []string) error {
	in := &invocation{}
	fs := flag.NewFlagSet("muster-agent "+c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&in.TPM, "tpm", "", "the TPM: `SPEC` is device:PATH, swtpm:path=SOCKET or swtpm:host=HOST,port=PORT")
	fs.StringVar(&in.Root, "root", "", "`DIR` that /etc/muster and /run/muster are in")
	fs.StringVar(&in.File, "config", "", "configuration `FILE` (default "+agent.DefaultFile+")")
	c.flags(fs, in)
	in.Built = p.Built
	in.Log = p.log()
	err := in.parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		p.commandHelp(c, fs)
		return nil
	}
	if err != nil {
		return usage(c.name, "%s: %v", c.name, err)
	}
	if want := len(strings.Fields(c.args)); len(in.args) != want {
		return usage(c.name, "usage is: muster-agent %s", strings.TrimSpace(c.name+" [options] "+c.args))
	}
	return c.run(ctx, p, in)
}

// parse takes options before and after the arguments.
func (in *invocation) parse(fs *flag.FlagSet, args []string) error {
	for {
		if err := fs.Parse(args); err != nil {
			return err
		}
		if fs.NArg() == 0 {
			return nil
		}
		in.args = append(in.args, fs.Arg(0))
		args = fs.Args()[1:]
	}
}

func (p *Program) log() *slog.Logger {
	return slog.New(journal.Handler(p.Stderr, slog.HandlerOptions{ReplaceAttr: withoutTime}))
}

// withoutTime leaves the time to the journal, which knows it better than a node whose clock may be
// in 1970.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

func runFlags(fs *flag.FlagSet, in *invocation) {
	doctorFlags(fs, in)
	fs.StringVar(&in.Wait, "wait", "", "how `LONG` to wait for a head, for being enabled and for approval (default 10m)")
	fs.StringVar(&in.Key, "key", "", "`ALGORITHM` of a new key: p256 (default), p384, rsa2048")
	fs.StringVar(&in.Install, "install", "", "`PROFILES` to install (default pem)")
	fs.StringVar(&in.Clock, "clock", "", "`MODE`: an unsynchronised clock is set, or trust (the head's for this run), or off (left alone)")
}

// doctorFlags say what run would be told, too.
func doctorFlags(fs *flag.FlagSet, in *invocation) {
	fs.StringVar(&in.Head, "head", "", "head, https://HOST[:8443]; several `URLS` with commas are tried in random order")
	fs.StringVar(&in.CA, "ca", "", "the `CA` to trust: sha256:HEX or a PEM file, several with commas; or tofu")
	fs.StringVar(&in.Node, "node", "", "the node's `NAME` (default: the hostname)")
}

func renewFlags(fs *flag.FlagSet, in *invocation) {
	runFlags(fs, in)
	fs.BoolVar(&in.newKey, "new-key", false, "at once, with another key in the TPM")
}

func statusFlags(fs *flag.FlagSet, in *invocation) { fs.BoolVar(&in.json, "json", false, "as JSON") }

func forgetFlags(fs *flag.FlagSet, in *invocation) {
	fs.BoolVar(&in.key, "key", false, "evict the key too; the head must enable the node again")
}

func runRun(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	line, err := a.Run(ctx)
	return p.say(line, err)
}

func runRenew(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	line, err := a.Renew(ctx, in.newKey)
	return p.say(line, err)
}

func runStatus(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	s, err := a.Status(ctx)
	if err != nil {
		return err
	}
	if in.json {
		return json.NewEncoder(p.Stdout).Encode(s)
	}
	s.WriteText(p.Stdout)
	return nil
}

func runCert(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	text, err := a.Certificate(ctx)
	if err != nil {
		return err
	}
	_, err = p.Stdout.Write(text)
	return err
}

func runEK(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	return a.EKs(ctx, p.Stdout)
}

func runGet(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	out := &lineEnd{w: p.Stdout, done: true}
	err = a.Get(ctx, in.args[0], out)
	if !out.done && terminal(p.Stdout) { // who pipes gets the body's bytes and no other
		fmt.Fprintln(p.Stdout)
	}
	var o *agent.Outcome
	if errors.As(err, &o) && o.Hint == "" {
		o.Hint = "the server is the right one and says no: look at the URL, and at its log"
	}
	return err
}

// lineEnd notes whether what was written ends with a whole line.
type lineEnd struct {
	w    io.Writer
	done bool
}

func (l *lineEnd) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	if n > 0 {
		l.done = b[n-1] == '\n'
	}
	return n, err
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func runForget(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	line, err := a.Forget(ctx, in.key)
	return p.say(line, err)
}

func runDoctor(ctx context.Context, p *Program, in *invocation) error {
	a, err := agent.New(in.Config)
	if err != nil {
		return err
	}
	return a.Doctor(ctx, p.Stdout)
}

func runVersion(_ context.Context, p *Program, _ *invocation) error {
	return p.say("muster-agent "+p.Version, nil)
}

// CommitTime reads the Unix seconds that a build was given, "0" by one that does not know them.
func CommitTime(seconds string) time.Time {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

func (p *Program) say(line string, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(p.Stdout, line)
	}
	return err
}

// failed says what went wrong, and what to do about it.
func (p *Program) failed(err error) int {
	status, text := agent.ExitStatus(err), agent.Describe(err)
	if event := agent.Event(status); event != "" && journal.Enabled(p.Stderr) {
		message, hint, _ := strings.Cut(strings.TrimSpace(text), "\nhint: ")
		p.log().Error(message, "event", event, "status", status, "hint", hint)
		journal.Flush()
		return status
	}
	fmt.Fprint(p.Stderr, "muster-agent: ", text)
	return status
}

// usage is a command line that makes no sense, of a command or, with "", before any.
func usage(command, format string, args ...any) error {
	hint := strings.Join(strings.Fields("muster-agent "+command+" --help"), " ")
	return &agent.Outcome{Status: agent.StatusConfig, Message: fmt.Sprintf(format, args...), Hint: hint}
}

func (p *Program) help() {
	fmt.Fprint(p.Stdout, "Usage: muster-agent COMMAND [options]\n\nA certificate for this node, with its key in the TPM.\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(p.Stdout, "  %-12s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprint(p.Stdout, `
'muster-agent COMMAND --help' lists the options. Those of run may also stand on the kernel command line
(muster.head=…) or in /etc/muster/agent.toml (head = "…"), but for --root and --config; flags win, then the file.

First boot:
  on the head    muster certs enable -i n0
  on the node    muster-agent run --head https://HEAD:8443 --ca sha256:…   ('muster ca show' on the head)

Exit status: 0 done, 1 the answer is no (get, doctor) or there is no certificate yet (cert, get),
69 no usable TPM, 75 try again, 77 refused or revoked, 78 configuration or usage.
`)
}

func (p *Program) commandHelp(c command, fs *flag.FlagSet) {
	fmt.Fprintf(p.Stdout, "Usage: muster-agent %s [options] %s\n\n%s\n\nOptions:\n", c.name, c.args, c.help)
	fs.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		fmt.Fprintf(p.Stdout, "  --%-20s %s\n", strings.TrimSpace(f.Name+" "+arg), text)
	})
}

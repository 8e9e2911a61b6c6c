package muster_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"muster/internal/testtpm"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata/script")

// TestScripts runs testdata/script: what an operator types and sees. Beside testscript's own verbs
// there are
//
//	head                 make a cluster, and serve it: sets $HEAD $PIN $SOCKET $DIR $PUBLIC
//	head serve DIR       serve what `muster init` made in DIR
//	head stop|kill|start end the daemon as systemctl does, or as a power cut does; run it again
//	head look            run it again, where it may be that it signs nothing
//	tpm NAME [KIND...]   start a TPM: blank, p256 or manufactured; tcp for tpm2-tools. Sets $NAME, for --tpm, and
//	                     $NAME_dir, which has its maker's certificates; makes NAME/etc/muster/agent.toml, for --root,
//	                     with the TPM, the name and the head
//	powercycle NAME      pull the plug: TPM and /run
//	muster ARG...        exec muster ARG... --socket $SOCKET
//	status N CMD ARG...  run `muster` as above, `exec` or any program, which must end with status N
//	masked               in the last output, put x for the digits of hashes, X for passwords, 0 for the digits
//	                     of times, and names for paths and ports; leave out the agent's lines about each attempt
//	keep                 note everything that the head has on record
//	unchanged            the record is what it was at keep
//	beside NAME keep     note everything in a tcp TPM that is not Muster's: objects, NV, hierarchies, the lockout counter
//	beside NAME same     it is what it was at keep, and nothing stays loaded
func TestScripts(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "swtpm")
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		UpdateScripts:      *update,
		RequireUniqueNames: true,
		Deadline:           time.Now().Add(10 * time.Minute), // of all scripts: a program that should have ended is killed then
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("TZ", "UTC")
			env.Values[stageKey{}] = &stage{t: env.T().(testing.TB), work: env.WorkDir, tpms: map[string]*testtpm.TPM{}, held: map[string]string{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"head": on((*stage).headVerb), "tpm": on((*stage).tpmVerb), "powercycle": on((*stage).powercycleVerb),
			"muster": on((*stage).musterVerb), "status": on((*stage).statusVerb), "masked": on((*stage).maskedVerb),
			"keep": on((*stage).keepVerb), "unchanged": on((*stage).unchangedVerb), "beside": on((*stage).besideVerb),
		},
	})
}

// stage is what the verbs of one script share.
type stage struct {
	t    testing.TB
	work string
	head *head
	tpms map[string]*testtpm.TPM
	kept string
	held map[string]string // by TPM: what is not ours
}

type stageKey struct{}

func on(verb func(*stage, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this verb takes no !; write: status N ...")
		}
		verb(ts.Value(stageKey{}).(*stage), ts, args)
	}
}

func (s *stage) headVerb(ts *testscript.TestScript, args []string) {
	switch strings.Join(args[:min(len(args), 1)], "") {
	case "":
		s.head = newHead(s.t)
	case "serve":
		s.head = &head{
			t: s.t, dir: ts.MkAbs(args[1]), host: "127.0.0.1", port: freePorts(s.t, "127.0.0.1"),
			socket: filepath.Join(s.shortDir(), "admin"), muster: filepath.Join(bin, "muster"),
		}
		s.head.start()
		s.t.Cleanup(s.head.kill)
		var ca struct{ Pin string }
		s.head.json(&ca, "ca", "show", "--json")
		s.head.pin = ca.Pin
	case "stop":
		ts.Check(s.head.serve.Process.Signal(syscall.SIGTERM))
		stopped := s.head.serve
		s.head.await()
		if got := stopped.ProcessState.ExitCode(); got != 0 {
			ts.Fatalf("muster serve ended with status %d on SIGTERM\n%s", got, s.head.log)
		}
	case "kill":
		s.head.kill()
	case "start":
		s.head.start()
	case "look":
		s.head.serveOn()
	default:
		ts.Fatalf("usage: head [serve DIR|stop|kill|start|look]")
	}
	for name, value := range map[string]string{
		"HEAD": s.head.url(), "PIN": s.head.pin, "SOCKET": s.head.socket, "DIR": s.head.dir, "PUBLIC": s.head.public(""),
	} {
		ts.Setenv(name, value)
	}
}

// shortDir is for sockets, whose path has at most 107 bytes.
func (s *stage) shortDir() string {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *stage) tpmVerb(ts *testscript.TestScript, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: tpm NAME [p256|manufactured|tcp]...")
	}
	kinds := map[string]testtpm.Option{"p256": testtpm.P256Certificate(), "manufactured": testtpm.Manufactured(), "tcp": testtpm.TCP()}
	var options []testtpm.Option
	for _, kind := range args[1:] {
		if kinds[kind] == nil {
			ts.Fatalf("no kind of TPM: %s", kind)
		}
		options = append(options, kinds[kind])
	}
	name := args[0]
	tpm := testtpm.Start(s.t, options...)
	s.tpms[name] = tpm
	ts.Setenv(name, tpm.Spec())
	ts.Setenv(name+"_dir", tpm.Dir())
	config := fmt.Sprintf("node = %q\ntpm = %q\n", name, tpm.Spec())
	if s.head != nil {
		config += fmt.Sprintf("head = %q\nca = %q\n", s.head.url(), s.head.pin)
	}
	dir := ts.MkAbs(name + "/etc/muster")
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "agent.toml"), []byte(config), 0o644))
}

func (s *stage) powercycleVerb(ts *testscript.TestScript, args []string) {
	if len(args) != 1 || s.tpms[args[0]] == nil {
		ts.Fatalf("usage: powercycle NAME, after: tpm NAME")
	}
	ts.Check(s.tpms[args[0]].PowerCycle())
	ts.Check(os.RemoveAll(ts.MkAbs(args[0] + "/run")))
}

func (s *stage) musterVerb(ts *testscript.TestScript, args []string) {
	s.statusVerb(ts, append([]string{"0", "muster"}, args...))
}

func (s *stage) statusVerb(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status N CMD ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	switch args = args[1:]; args[0] {
	case "exec":
		args = args[1:]
	case "muster":
		if s.head == nil {
			ts.Fatalf("no head yet; write: exec muster")
		}
		args = append(args, "--socket", s.head.socket)
	}
	err = ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%s: %v", args[0], err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, not %d", got, want)
	}
}

// masks make two runs of the same script look alike. Widths stay, so that tables stay tables.
var masks = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b(?:[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16}|[0-9a-f]{8})\b`), "x"},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?`), "0"},
	{regexp.MustCompile(`\b\d\d:\d\d(?::\d\d)?\b`), "0"},
}

var (
	anyDigit    = regexp.MustCompile(`[0-9a-f]`)
	fractions   = regexp.MustCompile(`(\d\d:\d\d:\d\d)\.\d+`)
	monthDay    = regexp.MustCompile(`\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d+\b`)
	ports       = regexp.MustCompile(`\b(127\.0\.0\.1|localhost):\d+\b`)
	journalHead = regexp.MustCompile(`"head":"[^"]+","seq"`)
	passwords   = regexp.MustCompile(`\b[A-Z2-7]{26}\b`)
	process     = regexp.MustCompile(`\buid \d+ pid \d+`)
	machine     = regexp.MustCompile(`(signs in|firmware|0000-00-00 00:00,) (?:not synchronised; mode trust|synchronised|[0-9.]+(?:ms|s)?)`)
	daysLeft    = regexp.MustCompile(`\bdays=89\.\d\d;`)
	attempts    = regexp.MustCompile(`(?m)^level=INFO msg="no answer yet" .*
`)
	pemBody = regexp.MustCompile(`(-----BEGIN [A-Z ]+-----)(\\n|\n)(?:[A-Za-z0-9+/=]+(?:\\n|\n))+`)
)

func (s *stage) mask(text string) string {
	text = pemBody.ReplaceAllString(text, "$1$2...$2")
	for name, tpm := range s.tpms {
		text = strings.ReplaceAll(text, tpm.Spec(), "$"+name)
	}
	if s.head != nil {
		text = strings.ReplaceAll(text, s.head.dir, "$DIR")
		text = strings.ReplaceAll(text, s.head.socket, "$SOCKET")
	}
	text = strings.ReplaceAll(text, s.work, "$WORK")
	text = journalHead.ReplaceAllString(text, `"head":"HOST","seq"`)
	text = fractions.ReplaceAllString(text, "$1")
	text = passwords.ReplaceAllString(text, strings.Repeat("X", 26))
	text = process.ReplaceAllString(text, "uid 0 pid 0")
	for _, m := range masks {
		text = m.what.ReplaceAllStringFunc(text, func(found string) string {
			return anyDigit.ReplaceAllString(found, m.by)
		})
	}
	text = monthDay.ReplaceAllString(text, "Mmm 0")
	text = machine.ReplaceAllString(text, "$1 ...")
	text = daysLeft.ReplaceAllString(text, "days=89.00;")
	text = attempts.ReplaceAllString(text, "")
	return ports.ReplaceAllString(text, "$1:PORT")
}

func (s *stage) maskedVerb(ts *testscript.TestScript, _ []string) {
	stdout, stderr := s.mask(ts.ReadFile("stdout")), s.mask(ts.ReadFile("stderr"))
	fmt.Fprint(ts.Stdout(), stdout)
	fmt.Fprint(ts.Stderr(), stderr)
}

func (s *stage) record() string {
	s.t.Helper()
	return s.head.must("log", "--json") + s.head.must("certs", "list", "--json")
}

func (s *stage) keepVerb(*testscript.TestScript, []string) { s.kept = s.record() }

func (s *stage) unchangedVerb(ts *testscript.TestScript, _ []string) {
	if s.kept == "" {
		ts.Fatalf("nothing was kept")
	}
	if now := s.record(); now != s.kept {
		ts.Fatalf("the record changed from\n%s\nto\n%s", s.kept, now)
	}
}

// A block is a fenced one of a document, which is to be run.
type block struct {
	line int
	text string
}

// runBlocks are a document's blocks with the info string "sh run".
func runBlocks(document string) []block { return blocksOf(document, "sh run") }

func blocksOf(document, info string) []block {
	var found []block
	var open *block
	for i, line := range strings.Split(document, "\n") {
		fence := strings.TrimSpace(line)
		switch {
		case open == nil && fence == "```"+info:
			open = &block{line: i + 1}
		case open != nil && fence == "```":
			found, open = append(found, *open), nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	return found
}

// runInOneShell runs blocks as somebody would who pastes them one after the other into one shell,
// and goes on only while all is well.
func runInOneShell(dir string, env []string, blocks []block) (string, error) {
	var script strings.Builder
	for _, b := range blocks {
		fmt.Fprintf(&script, "echo '# the block at line %d'\n%s", b.line, b.text)
	}
	cmd := exec.Command("bash", "-e", "-o", "pipefail", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // of a daemon that a failed block left behind, with our pipe
	var out logBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(time.Minute, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer late.Stop()
	err := cmd.Wait()
	if syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) == nil && err == nil {
		err = errors.New("the blocks leave a process behind")
	}
	return out.String(), err
}

// TestDocuments runs what README.md and docs show: what a document tells its readers to type works.
func TestDocuments(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, path := range append(paths, "README.md") {
		document, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		blocks := runBlocks(string(document))
		if len(blocks) == 0 {
			continue
		}
		ran++
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "doc") // not t.TempDir: sockets are made in it
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			port := freePorts(t, "127.0.0.1")
			env := []string{
				"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"),
				"MUSTER_TRY=" + dir, "MUSTER_PORT=" + strconv.Itoa(port), "MUSTER_PUBLIC_PORT=" + strconv.Itoa(port+1),
			}
			if strings.Contains(string(document), "TPM2TOOLS_TCTI names") {
				env = append(env, "TPM2TOOLS_TCTI="+enrolled(t))
			}
			if out, err := runInOneShell(dir, env, blocks); err != nil {
				t.Errorf("%s: %v\n%s", path, err, out)
			}
		})
	}
	if ran == 0 {
		t.Error("no document has a block that is to be run, so this test shows nothing")
	}
}

// enrolled is the TPM of a node that has enrolled, in the spelling of tpm2-tools.
func enrolled(t *testing.T) string {
	testtpm.Need(t, "tpm2_nvread")
	h := newHead(t)
	n := newNode(t, h, "n0", testtpm.TCP())
	h.must("certs", "enable", "-i", "n0")
	n.mustBoot()
	return n.spec
}

// TestBlocksFail: a block that fails, or leaves something running, does not go unnoticed.
func TestBlocksFail(t *testing.T) {
	t.Parallel()
	document := func(lines ...string) []block {
		return runBlocks("text\n```sh\nexit 1\n```\n```sh run\n" + strings.Join(lines, "\n") + "\n```\n```sh run\ntrue\n```\n")
	}
	for name, c := range map[string]struct {
		blocks []block
		good   bool
	}{
		"good":     {document("a=1", `test "$a" = 1`), true},
		"false":    {document("false"), false},
		"pipe":     {document("false | cat"), false},
		"no such":  {document("muster-of-no-such-name"), false},
		"lingerer": {document("sleep 60 >/dev/null 2>&1 &"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(c.blocks) != 2 || c.blocks[0].line != 5 {
				t.Fatalf("blocks: %+v", c.blocks)
			}
			if out, err := runInOneShell(t.TempDir(), nil, c.blocks); (err == nil) != c.good {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Command bench measures muster and muster-agent against the limits of PERF.md, section 7. It is a
// program of its own, never shipped.
//
//	go run ./internal/bench -muster bin/muster -agent bin/muster-agent [-quick] [-run REGEXP] [-dir DIR]
//
// It starts the real head on loopback, in a temporary directory, plays nodes with software keys
// (package standin), and prints one line a figure on standard output:
//
//	bench NAME VALUE UNIT floor VALUE ratio R limit L ok|SHORT
//
// The unit "pairs" is the server's CPU time for one request, divided by that of one P-256 sign + verify
// at the same moment: on a shared machine neither wall time nor CPU time is stable, their ratio is. The server's
// CPU is read from /proc before and after; beside the run a process of its own times the pair every
// 20 ms, on each processor in turn. Figures are medians of interleaved rounds. The floor is a
// server that does only what nobody can avoid (floor.go), under the same load in the same round; "-"
// where there is none. That of storm-p99 is the work that the processors did meanwhile, divided by
// their number: head and generator share the machine, and what others took nobody could have had.
//
// Groups, for -run, and their figures:
//
//	start  start-10, start-100k          from exec to the first answer, with so many nodes on record
//	enrol  enrol-c64, enrol-c64-x25519,  an attested durable enrolment, both legs on one fresh connection, so
//	       enrol-c1                      many at a time, with Go's default key exchange or the named one
//	       self-c64                      GET /v1/self over mTLS, fresh connection: a node that comes back
//	       written-c64                   bytes that an enrolment causes to be written (/proc/PID/io)
//	       growth-100k                   CPU with 100,000 nodes on record against ten
//	       rss-idle, rss-c64, rss-100k   memory: a second after the start; the peaks of a round, of all
//	storm  storm-lost, storm-p99,        1,000 nodes at the same instant: without a certificate at the first
//	       rss-c1000                     try; time from the instant to the certificate; memory
//	sync   sync-c1, sync-c64, sync-c1000 fsync and fdatasync calls for an enrolment (needs strace)
//	agent  agent-size                    the program without symbols
//	       agent-first-boot,             TPM commands that the chip sees in muster-agent run: enrolment by
//	       agent-first-boot-managed,     raw device and through the kernel's resource manager, and with a
//	       agent-second-boot             certificate in NV (needs swtpm); notes have them by kind
//	       agent-first-boot-own,         the agent's own CPU time, outside chip, network and head; the floor
//	       agent-second-boot-own         is the same program printing its version
//
// Options:
//
//	-muster FILE   the head's program (bin/muster)
//	-agent FILE    the node's program (bin/muster-agent)
//	-quick         fewer rounds: about a minute instead of five
//	-run REGEXP    only the groups that match
//	-dir DIR       where the state directories go; its disk is measured too
//	-v             say on standard error what each round gave
//
// Exit status: 0 all figures within their limits; 1 one falls SHORT; 2 it could not be measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is one of three programs: the bench, or one of the two children that it starts of itself.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var err error
	short := false
	switch {
	case len(args) == 1 && args[0] == roleFloor:
		err = serveFloor(stdin, stdout)
	case len(args) == 1 && args[0] == roleClock:
		err = servePairs(stdin, stdout)
	default:
		cfg, parseErr := parse(args, stderr)
		if parseErr != nil {
			return 2
		}
		short, err = measure(ctx, cfg, stdout, stderr)
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	case short:
		return 1
	}
	return 0
}

// config is what is asked for. The counts bound the time that the bench takes.
type config struct {
	muster, agent, dir string
	groups             *regexp.Regexp
	verbose            bool

	rounds  int // of the group enrol
	load    int // enrolments of one measurement at c=64
	single  int // and at c=1
	starts  int
	storms  int
	records int // of the big store
}

func parse(args []string, stderr io.Writer) (config, error) {
	cfg := config{rounds: 7, load: 1024, single: 300, starts: 7, storms: 5, records: 100_000}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&cfg.muster, "muster", "bin/muster", "the head's program")
	f.StringVar(&cfg.agent, "agent", "bin/muster-agent", "the node's program")
	f.StringVar(&cfg.dir, "dir", "", "where the state directories go")
	f.BoolVar(&cfg.verbose, "v", false, "say what each round gave")
	quick := f.Bool("quick", false, "about a minute")
	groups := f.String("run", "", "only the groups that match")
	if err := f.Parse(args); err != nil {
		return cfg, err
	}
	if *quick {
		cfg.rounds, cfg.load, cfg.single, cfg.starts, cfg.storms = 3, 256, 80, 3, 1
	}
	var err error
	if cfg.groups, err = regexp.Compile(*groups); err == nil {
		cfg.muster, err = filepath.Abs(cfg.muster)
	}
	if err == nil {
		cfg.agent, err = filepath.Abs(cfg.agent)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
	}
	return cfg, err
}

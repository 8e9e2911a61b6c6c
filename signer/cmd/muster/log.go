package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/signer"
	"muster/signer/store"
)

func (e *env) logCommand() *cobra.Command {
	var which choice
	var since, until moment
	var asJSON bool
	req := signer.LogRequest{}
	c := &cobra.Command{
		Use:   "log [-i NODES]",
		Short: "The journal: every grant, certificate and refusal, in order",
		Long: `log prints this head's journal. Each entry carries the hash of the one before it, so that an
entry cannot be changed or taken out unseen: muster log verify looks.`,
		Example: `  muster log -i n0
  muster log --since 1h --kind issue,refuse --json
  muster log --follow`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := which.with(args); err != nil {
				return err
			}
			req.IDs, req.Selector, req.Since, req.Until = which.ids, which.selector, time.Time(since), time.Time(until)
			if req.Follow && !req.Until.IsZero() {
				return fail(exitUsage, "leave one of them out", "--follow has no end, and --until is one")
			}
			n, err := call[int](cmd.Context(), e, signer.AdminLog, req, func(f signer.Frame) error {
				if asJSON {
					_, err := fmt.Fprintf(e.out, "%s\n", f.Item)
					return err
				}
				var entry store.Entry
				if err := json.Unmarshal(f.Item, &entry); err != nil {
					return err
				}
				e.printEntry(entry)
				return nil
			})
			if req.Follow && cmd.Context().Err() != nil {
				return nil // that is how one ends it
			}
			switch {
			case err != nil || *n > 0:
				return err
			case len(which.ids) > 0 && req.Since.IsZero() && req.Until.IsZero() && len(req.Kinds) == 0:
				return fail(exitNone, "muster certs list shows the names", "no entries about %s", strings.Join(which.ids, ","))
			}
			fmt.Fprintln(e.err, "no entries")
			return nil
		},
	}
	which.flags(c, false)
	f := c.Flags()
	f.Var(&since, "since", "only what is younger: 90m, 12h, 2d, or from 2026-05-17, 2026-05-17T08:00")
	f.Var(&until, "until", "only what is older")
	f.StringSliceVar(&req.Kinds, "kind", nil, "only these `kinds`: enable, issue, active, refuse, …")
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on with what comes, until interrupted")
	f.BoolVar(&asJSON, "json", false, "print each entry as a line of JSON")
	c.AddCommand(e.logVerifyCommand())
	return c
}

// moment is a time, or how long it is ago.
type moment time.Time

func (m *moment) Type() string { return "time" }

func (m *moment) String() string {
	if time.Time(*m).IsZero() {
		return ""
	}
	return time.Time(*m).Format(time.RFC3339)
}

func (m *moment) Set(text string) error {
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04", "2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			*m = moment(t)
			return nil
		}
	}
	var ago window
	if err := ago.Set(text); err != nil || ago < 0 {
		return fmt.Errorf("%q is neither a time as 2026-05-17T08:00 nor how long ago, as 90m, 12h, 2d", text)
	}
	*m = moment(time.Now().Add(-time.Duration(ago)))
	return nil
}

func (e *env) printEntry(entry store.Entry) {
	var fields []string
	for _, k := range slices.Sorted(maps.Keys(entry.Fields)) {
		fields = append(fields, printable(k)+"="+field(entry.Fields[k]))
	}
	fmt.Fprintf(e.out, "%6d  %s  %-10s %-12s %s\n", entry.Seq, at(entry.Time), printable(entry.Kind), dash(printable(entry.Node)), strings.Join(fields, " "))
}

func (e *env) logVerifyCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Check the journal's chain of hashes",
		Long: `verify reads a journal and checks that each entry follows from the one before it. It names
the first that does not, and ends with status 1. Without FILE it reads the daemon's journal, and with --dir
that of a head that is stopped. FILE is what muster log --json wrote, all of it or any stretch without a gap;
- is standard input.

Compare the last hash, which it prints, with one that you keep elsewhere: whoever can write the
store can make a whole new chain.`,
		Example: `  muster log verify
  muster log --json > journal.jsonl && muster log verify journal.jsonl
  muster log verify --dir /var/lib/muster`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && dir != "" {
				return fail(exitUsage, "muster log verify --help", "verify takes one journal at a time")
			}
			var chain store.Chain
			var err error
			switch {
			case dir != "":
				chain, err = verifyStore(cmd, dir)
			case len(args) == 1:
				chain, err = verifyFile(args[0])
			default:
				chain, err = e.verifyDaemon(cmd)
			}
			if errors.Is(err, store.ErrBroken) {
				return fail(exitFailed, "it was changed by hand or by a failing disk; muster log shows what stands before that", "%v", err)
			}
			if err != nil {
				return err
			}
			if chain.Seq == 0 {
				return fail(exitNone, "", "there are no entries")
			}
			fmt.Fprintf(e.out, "the journal is sound up to entry %d, %s\n", chain.Seq, chain.Hash)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "state `directory` of a head that is stopped")
	return c
}

// verified is store.Verify, which also says where the chain ends.
func verified(entries iter.Seq2[store.Entry, error]) (last store.Chain, err error) {
	err = store.Verify(func(yield func(store.Entry, error) bool) {
		for e, err := range entries {
			if !yield(e, err) {
				return
			}
			last = store.Chain{Head: e.Head, Seq: e.Seq, Hash: e.Hash}
		}
	})
	return last, err
}

func verifyStore(cmd *cobra.Command, dir string) (store.Chain, error) {
	st, err := openStore(dir)
	if err != nil {
		return store.Chain{}, err
	}
	defer st.Close()
	return verified(st.Journal(cmd.Context(), 1))
}

func verifyFile(path string) (store.Chain, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return store.Chain{}, fail(exitUsage, "muster log --json > FILE", "%v", err)
		}
		defer f.Close()
		in = f
	}
	var bad error
	chain, err := verified(func(yield func(store.Entry, error) bool) {
		lines := bufio.NewReader(in)
		for n := 1; ; n++ {
			text, err := lines.ReadBytes('\n')
			if len(text) == 0 && err == io.EOF {
				return
			}
			if err != nil && err != io.EOF {
				bad = err
				return
			}
			var e store.Entry
			if err := json.Unmarshal(text, &e); err != nil || e.Seq == 0 {
				bad = fail(exitFailed, "muster log --json > FILE", "%s:%d: not an entry of a journal", path, n)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	})
	return chain, errors.Join(err, bad)
}

// verifyDaemon asks for the whole journal, and checks it here.
func (e *env) verifyDaemon(cmd *cobra.Command) (store.Chain, error) {
	var failed error
	chain, err := verified(func(yield func(store.Entry, error) bool) {
		_, failed = call[int](cmd.Context(), e, signer.AdminLog, signer.LogRequest{}, func(f signer.Frame) error {
			var entry store.Entry
			if err := json.Unmarshal(f.Item, &entry); err != nil {
				return err
			}
			if !yield(entry, nil) {
				return errStop
			}
			return nil
		})
	})
	if errors.Is(failed, errStop) {
		failed = nil
	}
	return chain, errors.Join(err, failed)
}

var errStop = errors.New("seen enough")

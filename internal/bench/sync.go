package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// sync counts the calls that wait for the disk, with strace: what is counted is what the kernel was
// asked, not what the head says of itself. The traced head stops at these calls alone
// (--seccomp-bpf) and is measured in nothing else. Being a little slower, its syncs gather
// more enrolments than they would; figures near a limit deserve a second look.
func (b *bench) sync(ctx context.Context) error {
	dir := filepath.Join(b.tmp, "sync")
	if err := initCluster(ctx, b.muster, dir); err != nil {
		return err
	}
	trace := filepath.Join(b.tmp, "trace")
	// -D: strace is the grandchild, and the process that we started becomes the head.
	h, err := startHead(ctx, b.muster, dir, "strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync", "-o", trace)
	if err != nil {
		return err
	}
	defer h.stop()
	for _, l := range []struct {
		name  string
		c, n  int
		limit float64
	}{
		{"sync-c1", 1, b.single, 1}, {"sync-c64", 64, b.config.load, 0.5}, {"sync-c1000", 1000, crowd, 0.25},
	} {
		nodes, err := b.enabled(ctx, h, l.n)
		if err != nil {
			return err
		}
		before, err := syncs(trace)
		if err != nil {
			return err
		}
		if err := load(ctx, l.c, nodes, func(n *node) error { return n.enrol(h.addr, nil) }); err != nil {
			return err
		}
		after, err := syncs(trace)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.log, "  %s: %d calls for %d enrolments\n", l.name, after-before, l.n)
		b.report.Add(l.name, float64(after-before)/float64(l.n), "calls", 0, l.limit)
	}
	return nil
}

// syncs counts the calls in a trace. A call that others interrupt has two lines, of which one has the
// bracket.
func syncs(trace string) (int, error) {
	b, err := os.ReadFile(trace)
	return bytes.Count(b, []byte("sync(")), err
}

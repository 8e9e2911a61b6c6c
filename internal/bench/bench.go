package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"muster/internal/bench/figure"
)

// bench is one run.
type bench struct {
	config
	tmp     string
	clock   *pairClock
	report  *figure.Report
	log     io.Writer
	crowd   int // nodes made so far: each gets a name and an address of its own
	prepare map[string]string
}

// measure runs the groups that were asked for.
func measure(ctx context.Context, cfg config, out, log io.Writer) (short bool, err error) {
	tmp, err := os.MkdirTemp(cfg.dir, "mb") // short: a socket's path has at most 107 bytes
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(tmp)
	clock, err := startPairs(ctx)
	if err != nil {
		return false, err
	}
	defer clock.stop()
	b := &bench{config: cfg, tmp: tmp, clock: clock, report: &figure.Report{Out: out}, log: log, prepare: map[string]string{}}
	if !cfg.verbose {
		b.log = io.Discard
	}
	for _, group := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"start", b.start}, {"enrol", b.enrol}, {"storm", b.storm}, {"sync", b.sync}, {"agent", b.boots},
	} {
		if !cfg.groups.MatchString(group.name) {
			continue
		}
		if err := group.run(ctx); err != nil {
			return false, fmt.Errorf("%s: %w", group.name, err)
		}
	}
	return b.report.Short, nil
}

// few is the state directory of a cluster with ten enrolled nodes.
func (b *bench) few(ctx context.Context) (string, error) {
	return b.prepared("few", func(dir string) error { return b.settle(ctx, dir, 10) })
}

// fresh is a running head of such a cluster, a new one.
func (b *bench) fresh(ctx context.Context) (*head, error) {
	dir, err := os.MkdirTemp(b.tmp, "f")
	if err != nil {
		return nil, err
	}
	if err := b.settle(ctx, dir, 10); err != nil {
		return nil, err
	}
	return startHead(ctx, b.muster, dir)
}

// many is a state directory with a hundred thousand.
func (b *bench) many(ctx context.Context) (string, error) {
	return b.prepared("many", func(dir string) error {
		if err := b.settle(ctx, dir, 1); err != nil {
			return err
		}
		return multiply(ctx, dir, b.records)
	})
}

// prepared makes a state directory once.
func (b *bench) prepared(name string, fill func(dir string) error) (string, error) {
	if dir, ok := b.prepare[name]; ok {
		return dir, nil
	}
	dir := filepath.Join(b.tmp, name)
	if err := fill(dir); err != nil {
		return "", fmt.Errorf("prepare %s: %w", name, err)
	}
	b.prepare[name] = dir
	return dir, nil
}

// settle makes a cluster and enrols n nodes.
func (b *bench) settle(ctx context.Context, dir string, n int) error {
	if err := initCluster(ctx, b.muster, dir); err != nil {
		return err
	}
	h, err := startHead(ctx, b.muster, dir)
	if err != nil {
		return err
	}
	defer h.stop()
	nodes, err := b.enabled(ctx, h, n)
	if err != nil {
		return err
	}
	if err := load(ctx, 1, nodes, func(n *node) error { return n.enrol(h.addr, nil) }); err != nil {
		return err
	}
	return load(ctx, 1, nodes, func(n *node) error { return n.self(h.addr) })
}

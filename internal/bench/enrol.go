package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"muster/internal/bench/figure"
)

// enrol measures CPU, bytes and memory under a steady load.
func (b *bench) enrol(ctx context.Context) error {
	many, err := b.many(ctx)
	if err != nil {
		return err
	}
	r := &rounds{bench: b, got: figure.Series{}}
	if r.big, err = startHead(ctx, b.muster, many); err != nil {
		return err
	}
	defer r.big.stop()
	if r.floor, err = startFloor(ctx); err != nil {
		return err
	}
	defer r.floor.stop()
	if err := r.warm(ctx); err != nil {
		return err
	}
	for range b.rounds {
		if err := r.round(ctx); err != nil {
			return err
		}
	}
	if err := r.memory("rss-100k", r.big.pid()); err != nil {
		return err
	}
	r.figures()
	return nil
}

// rounds is what the loads run against, and what they gave.
type rounds struct {
	*bench
	small *head // new in each round: its records are few, and its memory has seen one round
	big   *head
	floor *floorServer
	got   figure.Series
}

// round does each load once, the floor's beside the head's, so that they meet the same machine.
func (r *rounds) round(ctx context.Context) (err error) {
	if r.small, err = r.fresh(ctx); err != nil {
		return err
	}
	defer r.small.stop()
	time.Sleep(time.Second)
	idle, err := resident(r.small.pid())
	if err != nil {
		return err
	}
	r.got.Add("rss-idle", idle)
	nodes, err := r.both(ctx, "c64", 64, r.load, nil)
	if err != nil {
		return err
	}
	// The other head is next, while the machine is as it was.
	if err := r.grown(ctx); err != nil {
		return err
	}
	if err := r.returning(ctx, nodes); err != nil {
		return err
	}
	if err := r.memory("rss-c64", r.small.pid()); err != nil {
		return err
	}
	if _, err := r.both(ctx, "c64-x25519", 64, r.load, []tls.CurveID{tls.X25519}); err != nil {
		return err
	}
	_, err = r.both(ctx, "c1", 1, r.single, nil)
	return err
}

// both measures enrolments at the floor and at the head. It returns the nodes of the head.
func (r *rounds) both(ctx context.Context, name string, c, n int, kx []tls.CurveID) ([]*node, error) {
	nodes, err := r.made(n)
	if err != nil {
		return nil, err
	}
	err = r.take(ctx, "floor-"+name, r.floor.pid(), c, nodes, func(n *node) error { return n.enrol(r.floor.addr, kx) })
	if err != nil {
		return nil, err
	}
	if nodes, err = r.enabled(ctx, r.small, n); err != nil {
		return nil, err
	}
	return nodes, r.take(ctx, name, r.small.pid(), c, nodes, func(n *node) error { return n.enrol(r.small.addr, kx) })
}

// returning measures nodes that come back. Their first use of a certificate is written down; it is not
// the one measured.
func (r *rounds) returning(ctx context.Context, nodes []*node) error {
	self := func(n *node) error { return n.self(r.small.addr) }
	if err := load(ctx, 64, nodes, self); err != nil {
		return err
	}
	err := r.take(ctx, "floor-self", r.floor.pid(), 64, nodes, func(n *node) error { return n.self(r.floor.addr) })
	if err != nil {
		return err
	}
	return r.take(ctx, "self", r.small.pid(), 64, nodes, self)
}

// warm makes the big head touch its store, which its opening has dropped from the cache.
func (r *rounds) warm(ctx context.Context) error {
	nodes, err := r.enabled(ctx, r.big, r.load)
	if err != nil {
		return err
	}
	return load(ctx, 64, nodes, func(n *node) error { return n.enrol(r.big.addr, nil) })
}

// grown measures the head with many records, next to the one with few.
func (r *rounds) grown(ctx context.Context) error {
	nodes, err := r.enabled(ctx, r.big, r.load)
	if err != nil {
		return err
	}
	err = r.take(ctx, "c64-many", r.big.pid(), 64, nodes, func(n *node) error { return n.enrol(r.big.addr, nil) })
	if err != nil {
		return err
	}
	last := func(name string) float64 { s := r.got[name]; return s[len(s)-1] }
	r.got.Add("growth", last("c64-many")/last("c64"))
	return nil
}

// take measures one load.
func (r *rounds) take(ctx context.Context, name string, pid, c int, nodes []*node, do func(*node) error) error {
	s, err := r.costs(ctx, pid, c, nodes, do)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.got.Add(name, s.pairs())
	r.got.Add(name+" bytes", s.bytes)
	fmt.Fprintf(r.log, "  %-16s %5.2f pairs of %v; %4.0f/s, %.0f bytes each\n",
		name, s.pairs(), s.pair.Round(time.Microsecond), float64(len(nodes))/s.wall.Seconds(), s.bytes)
	return nil
}

func (r *rounds) memory(name string, pid int) error {
	mib, err := peak(pid)
	if err != nil {
		return err
	}
	file, err := mapped(pid)
	if err != nil {
		return err
	}
	r.got.Add(name, mib)
	fmt.Fprintf(r.log, "  %-16s %.1f MiB at most; of its store %.1f MiB now\n", name, mib, file)
	return nil
}

func (r *rounds) figures() {
	g := r.got
	r.report.Add("enrol-c64", g.Median("c64"), "pairs", g.Median("floor-c64"), 7)
	r.report.Add("enrol-c64-x25519", g.Median("c64-x25519"), "pairs", g.Median("floor-c64-x25519"), 6)
	r.report.Add("enrol-c1", g.Median("c1"), "pairs", g.Median("floor-c1"), 10)
	r.report.Add("self-c64", g.Median("self"), "pairs", g.Median("floor-self"), 5)
	r.report.Add("written-c64", g.Median("c64 bytes")/1024, "KiB", 0, 6)
	r.report.Add("growth-100k", g.Median("growth"), "x", 1, 1.10)
	r.report.Add("rss-idle", g.Median("rss-idle"), "MiB", 0, 25)
	r.report.Add("rss-c64", g.Median("rss-c64"), "MiB", 0, 45)
	r.report.Add("rss-100k", g.Median("rss-100k"), "MiB", 0, 150)
}

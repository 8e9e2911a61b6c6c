package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// load does one thing for each node, c at a time.
func load(ctx context.Context, c int, nodes []*node, do func(*node) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c)
	for _, n := range nodes {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(n)
		})
	}
	return group.Wait()
}

// sample is what a load cost the server.
type sample struct {
	each  time.Duration // server CPU for one node
	pair  time.Duration
	bytes float64 // written to disk for one node
	wall  time.Duration
}

func (s sample) pairs() float64 { return float64(s.each) / float64(s.pair) }

// costs measures a load on the server pid.
func (b *bench) costs(ctx context.Context, pid, c int, nodes []*node, do func(*node) error) (s sample, err error) {
	from, err := b.mark(pid)
	if err != nil {
		return s, err
	}
	if err := load(ctx, c, nodes, do); err != nil {
		return s, err
	}
	to, err := b.mark(pid)
	if err != nil {
		return s, err
	}
	if s.pair, err = cost(from.pairs, to.pairs); err != nil {
		return s, err
	}
	s.each = (to.cpu - from.cpu) / time.Duration(len(nodes))
	s.bytes = (to.bytes - from.bytes) / float64(len(nodes))
	s.wall = to.at.Sub(from.at)
	return s, nil
}

// mark is a moment's counters.
type mark struct {
	at    time.Time
	cpu   time.Duration
	bytes float64
	pairs tally
}

func (b *bench) mark(pid int) (m mark, err error) {
	m.at = time.Now()
	if m.pairs, err = b.clock.tally(); err != nil {
		return m, err
	}
	if m.bytes, err = written(pid); err != nil {
		return m, err
	}
	m.cpu, err = cpu(pid)
	return m, err
}

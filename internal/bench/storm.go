package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"muster/internal/bench/figure"
)

const crowd = 1000

// storm lets a thousand nodes come at once, to a new head each time. A request is lost unless it ends
// in a certificate, at the first try.
func (b *bench) storm(ctx context.Context) error {
	got := figure.Series{}
	lost := 0
	for range b.storms {
		h, err := b.fresh(ctx)
		if err != nil {
			return err
		}
		n, err := b.burst(ctx, h, got)
		h.stop()
		if err != nil {
			return err
		}
		lost += n
	}
	floor := got.Median("floor")
	b.report.Add("storm-lost", float64(lost), "requests", 0, 0)
	b.report.Add("storm-p99", got.Median("p99"), "ms", floor, 1.5*floor)
	b.report.Add("rss-c1000", got.Median("rss"), "MiB", 0, 90)
	return nil
}

func (b *bench) burst(ctx context.Context, h *head, got figure.Series) (lost int, err error) {
	nodes, err := b.enabled(ctx, h, crowd)
	if err != nil {
		return 0, err
	}
	runtime.GC() // not while it storms
	from, err := b.mark(h.pid())
	if err != nil {
		return 0, err
	}
	own := ownCPU()
	busy, err := machineCPU()
	if err != nil {
		return 0, err
	}
	times, first := together(nodes, func(n *node) error { return n.enrol(h.addr, nil) })
	to, err := b.mark(h.pid())
	if err != nil {
		return 0, err
	}
	own = ownCPU() - own
	all, err := machineCPU()
	if err != nil {
		return 0, err
	}
	mib, err := peak(h.pid())
	if err != nil {
		return 0, err
	}
	got.Add("rss", mib)
	lost = crowd - len(times)
	if first != nil {
		fmt.Fprintf(b.log, "  storm: %d lost, one by: %v\n", lost, first)
	}
	if len(times) == 0 {
		return lost, first
	}
	p99 := times[len(times)*99/100]
	floor := (all - busy) / time.Duration(runtime.NumCPU())
	got.Add("p99", 1000*p99.Seconds())
	got.Add("floor", 1000*floor.Seconds())
	fmt.Fprintf(b.log, "  storm: p50 %v, p99 %v; CPU of the head %v, of the generator %v, of all %v\n", times[len(times)/2], p99, to.cpu-from.cpu, own, all-busy)
	return lost, nil
}

// together does one thing for all nodes at once. It returns how long those took that succeeded, sorted,
// and one of the errors.
func together(nodes []*node, do func(*node) error) (times []time.Duration, first error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	gate := make(chan struct{})
	var began time.Time
	for _, n := range nodes {
		wg.Go(func() {
			<-gate
			err := do(n)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				first = err
				return
			}
			times = append(times, took)
		})
	}
	began = time.Now()
	close(gate)
	wg.Wait()
	slices.Sort(times)
	return times, first
}

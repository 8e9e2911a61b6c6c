package main

import (
	"context"
	"fmt"

	"muster/internal/bench/figure"
)

// start measures the time from exec to the first answer.
func (b *bench) start(ctx context.Context) error {
	few, err := b.few(ctx)
	if err != nil {
		return err
	}
	many, err := b.many(ctx)
	if err != nil {
		return err
	}
	got := figure.Series{}
	for range b.starts {
		for name, dir := range map[string]string{"few": few, "many": many} {
			h, err := startHead(ctx, b.muster, dir)
			if err != nil {
				return err
			}
			h.stop()
			got.Add(name, 1000*h.took.Seconds())
			fmt.Fprintf(b.log, "  start %s %v\n", name, h.took)
		}
	}
	b.report.Add("start-10", got.Median("few"), "ms", 0, 60)
	b.report.Add("start-100k", got.Median("many"), "ms", 0, 200)
	return nil
}

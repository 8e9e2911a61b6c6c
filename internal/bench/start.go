package main

import (
	"context"
	"fmt"
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
	got := series{}
	for range b.starts {
		for name, dir := range map[string]string{"few": few, "many": many} {
			h, err := startHead(ctx, b.muster, dir)
			if err != nil {
				return err
			}
			h.stop()
			got.add(name, 1000*h.took.Seconds())
			fmt.Fprintf(b.log, "  start %s %v\n", name, h.took)
		}
	}
	b.report.add(figure{"start-10", got.median("few"), "ms", 0, 60})
	b.report.add(figure{"start-100k", got.median("many"), "ms", 0, 200})
	return nil
}

package main

import (
	"fmt"
	"io"
	"slices"
)

// figure is one measured value. Smaller is better, always.
type figure struct {
	name  string
	value float64
	unit  string
	floor float64 // 0: none was measured
	limit float64
}

func (f figure) String() string {
	floor, ratio := "-", "-"
	if f.floor > 0 {
		floor, ratio = fmt.Sprintf("%.2f", f.floor), fmt.Sprintf("%.2f", f.value/f.floor)
	}
	verdict := "ok"
	if f.short() {
		verdict = "SHORT"
	}
	return fmt.Sprintf("bench %s %.2f %s floor %s ratio %s limit %.2f %s", f.name, f.value, f.unit, floor, ratio, f.limit, verdict)
}

func (f figure) short() bool { return !(f.value <= f.limit) } // NaN is short

// report prints figures as they come.
type report struct {
	out   io.Writer
	short bool
}

func (r *report) add(f figure) {
	r.short = r.short || f.short()
	fmt.Fprintln(r.out, f)
}

// series collects what the rounds gave, by name.
type series map[string][]float64

func (s series) add(name string, v float64) { s[name] = append(s[name], v) }

// median is NaN where nothing was collected.
func (s series) median(name string) float64 { return median(s[name]) }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		var zero float64
		return zero / zero
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

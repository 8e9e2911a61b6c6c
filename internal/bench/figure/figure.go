// Package figure prints what was measured beside its floor and its limit, a line each, for people and
// programs.
package figure

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
	floor float64
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

// Report prints figures as they come.
type Report struct {
	Out   io.Writer
	Short bool // one fell short of its limit
}

// Add prints a figure; floor is 0 where none was measured.
func (r *Report) Add(name string, value float64, unit string, floor, limit float64) {
	f := figure{name, value, unit, floor, limit}
	r.Short = r.Short || f.short()
	fmt.Fprintln(r.Out, f)
}

// Note prints what a figure is made of.
func (r *Report) Note(name, format string, args ...any) {
	fmt.Fprintf(r.Out, "note %s %s\n", name, fmt.Sprintf(format, args...))
}

// Series collects what the rounds gave, by name.
type Series map[string][]float64

// Add collects one value.
func (s Series) Add(name string, v float64) { s[name] = append(s[name], v) }

// Median is NaN where nothing was collected.
func (s Series) Median(name string) float64 { return Median(s[name]) }

// Median is NaN of no values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		var zero float64
		return zero / zero
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

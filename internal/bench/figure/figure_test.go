package figure

import (
	"math"
	"testing"
)

// TestFigureLine pins the line's form, which other programs read.
func TestFigureLine(t *testing.T) {
	for want, f := range map[string]figure{
		"bench a 6.00 pairs floor 3.00 ratio 2.00 limit 7.00 ok":         {"a", 6, "pairs", 3, 7},
		"bench b 7.01 pairs floor - ratio - limit 7.00 SHORT":            {"b", 7.01, "pairs", 0, 7},
		"bench c 0.00 requests floor - ratio - limit 0.00 ok":            {"c", 0, "requests", 0, 0},
		"bench nothing NaN pairs floor - ratio - limit 7.00 SHORT":       {"nothing", Median(nil), "pairs", 0, 7},
		"bench d 1000.00 ms floor 800.00 ratio 1.25 limit 1200.00 ok":    {"d", 1000, "ms", 800, 1200},
		"bench e 1201.00 ms floor 800.00 ratio 1.50 limit 1200.00 SHORT": {"e", 1201, "ms", 800, 1200},
	} {
		if got := f.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{5}, 5}} {
		if got := Median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

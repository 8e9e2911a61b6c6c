package selector

import (
	"errors"
	"strings"
	"testing"
)

var node = map[string][]string{
	"node[name]": {"n7"}, "node[mac]": {"aa:bb:cc:00:00:07", "aa:bb:cc:00:00:17"}, "node[ip]": {"10.0.0.7"},
	"status[state]": {"active"}, "status[expires]": {"2026-08-30T12:00:00Z"}, "%": {"gpu", "rack1"},
}

func TestMatch(t *testing.T) {
	for expr, want := range map[string]bool{
		"node[name] == n7":                     true,
		"N[NAME]==N7":                          true,
		`n[name] == "n7"`:                      true,
		"n[name] != n7":                        false,
		"n[mac] == AA:BB:CC:00:00:17":          true,
		"n[mac] != aa:bb:cc:00:00:17":          false, // one of them is equal
		"n[uuid] == x":                         false,
		"n[uuid] != x":                         true, // it has none
		"s[expires] < 2026-09-01":              true,
		"s[expires] < 2026-08-30":              false,
		"s[expires] >= '2026-08-30T12:00:00Z'": true,
		"%gpu":                                 true,
		"@gpu and %rack2":                      false,
		"%gpu or %rack2 and %rack2":            true, // and binds tighter
		"(%gpu or %rack2) and %rack2":          false,
		"not %rack2 and s[state] == active":    true,
		"not (%gpu and s[state]==active)":      false,
		"not not %gpu":                         true,
		"not status[state] == open and (n[ip] == 10.0.0.7 or %x)": true,
	} {
		e, err := Parse(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := e.Match(func(f string) []string { return node[f] }); got != want {
			t.Errorf("%s: got %v", expr, got)
		}
	}
}

// TestCompare: a name is a name, whatever number it looks like.
func TestCompare(t *testing.T) {
	all := []string{"10", "010", "1e1", "nan", "inf", "0x0a", "n7", "N7"}
	for expr, want := range map[string]string{
		"n[name] == 10":   "10",
		"n[name] != 10":   "010 1e1 nan inf 0x0a n7 N7",
		"n[name] < 5":     "10 010 1e1 0x0a",
		"n[name] > 5":     "nan inf n7 N7",
		"n[name] == nan":  "nan",
		"n[name] <= n7":   "10 010 1e1 inf 0x0a n7 N7",
		"n[name] == n7":   "n7 N7",
		"n[name] >= 'n7'": "nan n7 N7",
	} {
		e, err := Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range all {
			if e.Match(func(string) []string { return []string{name} }) {
				got = append(got, name)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %s, want %s", expr, s, want)
		}
	}
}

func TestParseError(t *testing.T) {
	for expr, want := range map[string]string{
		"":                             "column 1: \"\" is no operand",
		"n[name]":                      "column 8: one of ==",
		"n[name] = n7":                 "column 9: one of ==",
		"n[name] ==":                   "column 11: a value is missing",
		"n[name] == )":                 "column 12: a value is missing",
		"n[name] == 'n7":               "column 12: the quotes",
		"n[name] == '":                 "column 12: the quotes",
		"(n[name] == n7":               "column 15: a closing parenthesis",
		"n[name] == n7 n8":             "column 15: \"n8\", where",
		"%gpu)":                        "column 5: \")\", where",
		"%":                            "column 1: \"%\" is no operand",
		"hardware[ram] > 3":            "column 1: \"hardware[ram]\" is no operand",
		"not":                          "column 4: \"\" is no operand",
		strings.Repeat("(", 100):       "too deep",
		strings.Repeat("not ", 100):    "too deep",
		strings.Repeat("n", maxExpr+1): "more than",
	} {
		e, err := Parse(expr)
		var bad *Error
		if e != nil || !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: got %v, %v, want %s", expr, e, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, expr := range []string{"(%gpu or n[name] != 'n 7') and not s[expires] <= 2027-01-01", "n[name]==", "'"} {
		f.Add(expr)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		e, err := Parse(expr)
		if (e == nil) == (err == nil) {
			t.Fatalf("got %v and %v", e, err)
		}
		if err != nil {
			return
		}
		again, err := Parse("not (" + expr + ")")
		if err != nil {
			return // too long or too deep now
		}
		values := func(f string) []string { return node[f] }
		if e.Match(values) == again.Match(values) {
			t.Errorf("%q and its opposite are both %v", expr, e.Match(values))
		}
	})
}

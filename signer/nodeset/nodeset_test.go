package nodeset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		expr, fold string
		size       int
	}{
		{"", "", 0},
		{" \t", "", 0},
		{"n1", "n1", 1},
		{"login", "login", 1},
		{"n[0-99],gpu[1-4]", "gpu[1-4],n[0-99]", 104},
		{"n1,n01", "n[1,01]", 2},
		{"n[1-2],n[01-02]", "n[1-2,01-02]", 4},
		{"n[08-12]", "n[08-12]", 5},
		{"n[8-12]", "n[8-12]", 5},
		{"n[08,10-100]", "n[08,10-99,100]", 92},
		{"n[1-5/2]", "n[1,3,5]", 3},
		{"n[7-11/2]", "n[7,9,11]", 3},
		{"n[0-9999999999999999999/9999999999999999999]", "n[0,9999999999999999999]", 2},
		{"n[0-9]!n[3-5]", "n[0-2,6-9]", 7},
		{"n[0-9]&n[8-12]", "n[8-9]", 2},
		{"n[1-3]^n[3-5]", "n[1-2,4-5]", 4},
		{"n1&n2,n3", "n3", 1},
		{"n1,n2!n2,n2", "n[1-2]", 2},
		{"a,b&b", "b", 1},
		{"a!a", "", 0},
		{"a^a,b", "b", 1},
		{"r[1-2]n[1-3]", "r[1-2]n[1-3]", 6},
		{"r[1-2]n[1-3]!r1n2", "r2n[1-3],r1n[1,3]", 5},
		{"n[1-3]-ib0", "n[1-3]-ib0", 3},
		{"n1[2-3]", "n[12-13]", 2},
		{"n1[8-12]", "n[18-112]", 95},
		{"n[1-3]0", "n[10,20,30]", 3},
		{"[1-3]", "[1-3]", 3},
		{" n1 , n[ 2 - 3 , 5 ] ", "n[1-3,5]", 4},
		{"Node1,node1", "Node1,node1", 2},
		{"n12345678901234567890,n12345678901234567891", "n12345678901234567890,n12345678901234567891", 2},
	} {
		set, err := Parse(test.expr)
		if err != nil {
			t.Errorf("%q: %v", test.expr, err)
			continue
		}
		if set.String() != test.fold || set.Len() != test.size {
			t.Errorf("%q: got %s (%d), want %s (%d)", test.expr, set, set.Len(), test.fold, test.size)
		}
	}
}

func TestParseError(t *testing.T) {
	long := strings.Repeat("x", maxName)
	for _, test := range []struct {
		expr   string
		offset int
		msg    string
	}{
		{"n[3-1]", 2, "range goes down: 3-1"},
		{"n[8-012]", 2, "padding length mismatch: 8-012"},
		{"n[0-00]", 2, "padding length mismatch: 0-00"},
		{"n0[8-12]", 2, "padding length mismatch: 08-012"},
		{"n[", 1, "bracket is not closed"},
		{"n[1", 1, "bracket is not closed"},
		{"n[1-", 1, "bracket is not closed"},
		{"n[]", 2, "a number is missing here"},
		{"n[1,]", 4, "a number is missing here"},
		{"n[1-]", 4, "a number is missing here"},
		{"n[a-c]", 2, "'a' in a bracket, which holds numbers, ranges and commas"},
		{"n[-5-3]", 2, "'-' in a bracket, which holds numbers, ranges and commas"},
		{"n[1-2-3]", 5, "'-' in a bracket, which holds numbers, ranges and commas"},
		{"n[1é]", 3, "'é' in a bracket, which holds numbers, ranges and commas"},
		{"n[1-5/0]", 6, "a step of at least 1 is expected"},
		{"n[1-5/]", 6, "a step of at least 1 is expected"},
		{"n[1/2]", 4, "a step without a range"},
		{"n[1-5/2]0", 5, "a step in a bracket before digits"},
		{"n[1-12345678901234567890]", 2, "number of more than 19 digits"},
		{"n1]", 2, "closing bracket without an opening one"},
		{"n[1]]", 4, "closing bracket without an opening one"},
		{"n[1][2]", 4, "no text between two brackets"},
		{"n[1]3[2]", 5, "no text between two brackets"},
		{",n1", 0, "a node name is missing here"},
		{"n1,", 3, "a node name is missing here"},
		{"n1,,n2", 3, "a node name is missing here"},
		{"n1 & ", 5, "a node name is missing here"},
		{"n1 n2", 2, "blank in a node name (a comma separates nodes)"},
		{"n [1-2]", 1, "blank in a node name (a comma separates nodes)"},
		{"n1/x", 2, "character '/' cannot be in a node name"},
		{"nœud1", 1, "character 'œ' cannot be in a node name"},
		{"n\x00", 1, `character '\x00' cannot be in a node name`},
		{"n*", 1, "wildcard in a node name (only * alone is known, for all nodes)"},
		{long + "y", 0, "node name of more than 253 bytes"},
		{"a," + long[:maxName-1] + "[9-10]", 2, "node name of more than 253 bytes"},
		{"@gpu", 0, "groups: not known to this head"},
		{"n1,%gpu", 3, "groups: not known to this head"},
		{"n1!*", 3, "groups: not known to this head"},
	} {
		set, err := Parse(test.expr)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: got %s and error %v, want %s", test.expr, set, err, test.msg)
			continue
		}
		if e.Offset != test.offset || e.Msg != test.msg || e.Expr != test.expr {
			t.Errorf("%q: got %d: %s, want %d: %s", test.expr, e.Offset, e.Msg, test.offset, test.msg)
		}
		if set.Len() != 0 || set.families != nil {
			t.Errorf("%q: set %s beside an error", test.expr, set)
		}
	}
}

func TestLongestName(t *testing.T) {
	if _, err := Parse(strings.Repeat("x", maxName-1) + "[8-9]"); err != nil {
		t.Error(err)
	}
}

func TestErrorText(t *testing.T) {
	long := "n1," + strings.Repeat("abcdefghi,", 20)
	for _, test := range []struct{ expr, line, caret string }{
		{
			"n[3-1]",
			`nodeset "n[3-1]", column 3: range goes down: 3-1`,
			"n[3-1]\n  ^",
		}, {
			"é\x1b[2J", // an escape sequence must not reach a terminal
			`nodeset "é?[2J", column 1: character 'é' cannot be in a node name`,
			"é?[2J\n^",
		}, {
			"n1,\xff",
			`nodeset "n1,?", column 4: character '�' cannot be in a node name`,
			"n1,?\n   ^",
		}, {
			long + "x y," + long,
			`nodeset "...ghi,abcdefghi,abcdefghi,abcdefghi,abcdefghi,x y,n1,abcdefghi,abcdefghi,abcdefghi,abcde...", ` +
				`column 205: blank in a node name (a comma separates nodes)`,
			"",
		},
	} {
		_, err := Parse(test.expr)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: no error", test.expr)
			continue
		}
		if e.Error() != test.line && test.caret != "" {
			t.Errorf("%q: got line\n%s, want\n%s", test.expr, e, test.line)
		}
		if got := e.Caret(); got != test.caret && test.caret != "" {
			t.Errorf("%q: got\n%s, want\n%s", test.expr, got, test.caret)
		}
		picture, caret, _ := strings.Cut(e.Caret(), "\n")
		if test.caret == "" && (len(picture) > 90 || picture[len(caret)-1] != ' ') {
			t.Errorf("%q: caret not under the blank, or too long:\n%s", test.expr, e.Caret())
		}
	}
}

func TestLimit(t *testing.T) {
	for _, test := range []struct {
		expr   string
		max    int
		offset int // of the error, -1 for none
	}{
		{"n[1-131072]", 0, -1},
		{"n[1-131073]", 0, 2},
		{"n[0-9999999999999999999]", 0, 2},
		{"r[1-9999]n[1-9999]", 0, 0},
		{"a[1-9]b[1-9]c[1-9]d[1-9]e[1-9]f[1-9]", 0, 0},
		{"n[1-131072],n[1-131072]", 0, -1},
		{"n[1-131072],n0", 0, 12},
		{"n[1-4],m[1-4]", 8, -1},
		{"n[1-4],m[1-4],o", 8, 14},
		{"n[1-4],m[1-4],o!o", 8, -1},
		{"n[1-8],m[1-8],o,p,q!q", 8, 14},
		{"n[1-9],n[1-8]", 8, 2},
		{"n[1-5,5-9]", 8, 2},
		{"n[1-16/2]", 8, -1},
		{"n[1-16/2,1-3/2]", 8, 9},
		{"n[1-17/2]", 8, 2},
		{"n1[1-16/2]", 8, -1},
	} {
		_, err := Parser{Max: test.max}.Parse(test.expr)
		var e *Error
		switch {
		case test.offset < 0 && err != nil:
			t.Errorf("%s, at most %d: %v", test.expr, test.max, err)
		case test.offset >= 0 && !errors.Is(err, ErrTooMany):
			t.Errorf("%s, at most %d: got %v, want ErrTooMany", test.expr, test.max, err)
		case errors.As(err, &e) && e.Offset != test.offset:
			t.Errorf("%s, at most %d: offset %d, want %d", test.expr, test.max, e.Offset, test.offset)
		}
	}
	_, err := Parse("n[1-2/")
	if errors.Is(err, ErrTooMany) {
		t.Errorf("%v is ErrTooMany", err)
	}
}

func TestGroups(t *testing.T) {
	unknown := errors.New("no such group")
	groups := map[string]string{
		"*": "n[0-9]", "gpu": "n[1-4]", "src:gpu": "n5", "r1": "r1n[1-2]", "r2": "r2n[1-3],m1", "none": "",
		"src:*": "n6", "big": "n[1-11]",
	}
	p := Parser{Max: 10, Group: func(name string) (Set, error) {
		expr, ok := groups[name]
		if !ok {
			return Set{}, unknown
		}
		return Parser{}.Parse(expr)
	}}
	for expr, want := range map[string]string{
		"@gpu": "n[1-4]", "%gpu": "n[1-4]", "*": "n[0-9]", "@*": "n[0-9]", "%*": "n[0-9]",
		"@src:gpu": "n5", "@src:*": "n6", "@none": "", "*!@gpu": "n[0,5-9]", "n[4-6]&@gpu": "n4",
		"@r[1-2]": "m1,r2n[1-3],r1n[1-2]", " m0 , @r2 ^ m1": "m0,r2n[1-3]", "*&@none": "",
	} {
		set, err := p.Parse(expr)
		if err != nil || set.String() != want {
			t.Errorf("%s: got %s, %v, want %s", expr, set, err, want)
		}
	}
	for expr, want := range map[string]string{
		"n1,@cpu": "column 4: no such group",
		"@":       "column 2: a group name is missing here",
		"@,n1":    "column 2: a group name is missing here",
		"*n":      "column 2: an operator is missing here",
		"@@src":   "column 2: character '@' cannot be in a node name",
		"@big":    "column 1: more than 10 nodes",
	} {
		if _, err := p.Parse(expr); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", expr, err, want)
		}
	}
	if _, err := p.Parse("@cpu"); !errors.Is(err, unknown) {
		t.Errorf("%v does not wrap the error of Group", err)
	}
}

func TestAlias(t *testing.T) {
	unknown := errors.New("no such address")
	p := Parser{Max: 10, Alias: func(text string) (Set, bool, error) {
		switch text {
		case "10.0.0.1", "fd00::1":
			s, err := Parse("n1")
			return s, true, err
		case "many":
			s, err := Parse("n[1-11]")
			return s, true, err
		case "10.0.0.9":
			return Set{}, false, unknown
		}
		return Set{}, false, nil
	}}
	for expr, want := range map[string]string{
		"10.0.0.1":              "n1",
		" fd00::1 ,n[2-3]":      "n[1-3]",
		"n[1-5]!10.0.0.1":       "n[2-5]",
		"n[1-5]&fd00::1":        "n1",
		"n1^10.0.0.1,x":         "x",
		"10.0.0.1,10.0.0.1,a.b": "a.b,n1",
		"n[1,3],10.0.0.2":       "10.0.0.2,n[1,3]",
		"many!n[2-11]!10.0.0.1": "",
	} {
		got, err := p.Parse(expr)
		if err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v, want %s", expr, got, err, want)
		}
	}
	for expr, want := range map[string]error{"n1,10.0.0.9": unknown, "many": ErrTooMany, "many,m": ErrTooMany} {
		var bad *Error
		if _, err := p.Parse(expr); !errors.Is(err, want) || !errors.As(err, &bad) {
			t.Errorf("%s: got %v, want %v", expr, err, want)
		}
	}
	if _, err := p.Parse("fd00::2"); err == nil {
		t.Error("an address that Alias does not know was taken")
	}
}

func TestAll(t *testing.T) {
	set, err := Parse("r[9-10]n[1-2],b,n[01,1,10,9]")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"b", "n1", "n9", "n01", "n10", "r9n1", "r9n2", "r10n1", "r10n2"}
	if got := slices.Collect(set.All()); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name := range set.All() { // must stop when told to
		if name == "r9n1" {
			break
		}
	}
}

func TestContains(t *testing.T) {
	set, err := Parse("r[1-3]n[1-3]!r2n2,n[8-12,01],login,n12345678901234567890")
	if err != nil {
		t.Fatal(err)
	}
	for name := range set.All() {
		if !set.Contains(name) {
			t.Errorf("%s is not in %s", name, set)
		}
	}
	for _, name := range []string{"", "r2n2", "r4n1", "r1n", "r1n1x", "n7", "n13", "n08", "n1", "n001", "Login", "n%s", "r%sn%s", "n12345678901234567891"} {
		if set.Contains(name) {
			t.Errorf("%q is in %s", name, set)
		}
	}
	if (Set{}).Contains("n1") {
		t.Error("the empty set contains n1")
	}
}

func TestOf(t *testing.T) {
	set, err := Of("n3", "r2n1", "N1", "n1", "n2", "r1n1", "n1", "n010")
	if want := "N1,n[1-3,010],r[1-2]n1"; err != nil || set.String() != want || set.Len() != 7 {
		t.Errorf("got %s (%d), %v, want %s (7)", set, set.Len(), err, want)
	}
	for name, offset := range map[string]int{"": 0, "n[1-2]": 1, "n1,n2": 2, "@gpu": 0, strings.Repeat("9", 254): 253} {
		set, err := Of("n1", name)
		var e *Error
		if !errors.As(err, &e) || e.Offset != offset || e.Expr != name || set.Len() != 0 {
			t.Errorf("%q: got %s, %v, want an error at %d", name, set, err, offset)
		}
	}
}

// Blocks in several dimensions must come from the names alone, not from the way to them.
func TestOfEqualsParse(t *testing.T) {
	set, err := Parse("r[1-40]n[1-40]!r[3-30/3]n[5-35/5],r7n[1-99]^r[5-9]n[9-10]")
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Collect(set.All())
	slices.Sort(names)
	again, err := Of(names...)
	if err != nil || again.String() != set.String() {
		t.Errorf("got %s, %v, want %s", again, err, set)
	}
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, expr string) {
		set, err := Parser{Max: 1000}.Parse(expr)
		var e *Error
		if errors.As(err, &e) {
			if set.Len() != 0 || set.families != nil || e.Offset < 0 || e.Offset > len(expr) {
				t.Fatalf("%q: set %s, offset %d of %d beside an error", expr, set, e.Offset, len(expr))
			}
			if lines := strings.Count(e.Error(), "\n") + strings.Count(e.Caret(), "\n"); lines != 1 {
				t.Fatalf("%q: error and caret have %d line ends, want 1", expr, lines)
			}
			return
		}
		again, err := Parser{Max: 1000}.Parse(set.String())
		if err != nil {
			t.Fatalf("%q: %v", expr, err)
		}
		names := slices.Collect(set.All())
		of, err := Of(names...)
		if err != nil || of.String() != set.String() || again.String() != set.String() {
			t.Fatalf("%q: %s, but parsed again %s, and of its names %s, %v", expr, set, again, of, err)
		}
		if !slices.Equal(slices.Collect(again.All()), names) || len(names) != set.Len() {
			t.Fatalf("%q: %d nodes %q, but parsed again %d", expr, set.Len(), names, again.Len())
		}
		for _, name := range names {
			if checkAt, msg := checkName(name); msg != "" || !set.Contains(name) {
				t.Fatalf("%q: %q in All, but not in the set, or at %d %s", expr, name, checkAt, msg)
			}
		}
	})
}

func names(format string) []string {
	var names []string
	for i := range 100_000 {
		names = append(names, fmt.Sprintf(format, i/320, i%320))
	}
	return names
}

func BenchmarkParse(b *testing.B) {
	irregular := "r[0-312]n[0-319]"
	for i := range 300 {
		irregular += fmt.Sprintf("!r%dn%d", i, i*7%320)
	}
	for what, expr := range map[string]string{
		"range":     "n[1-100000]",
		"grid":      "r[1-250]n[1-400]",
		"list":      strings.Join(names("n%[1]d%03[2]d"), ","),
		"names":     strings.Join(names("n%da%d"), ","),
		"irregular": irregular,
	} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				set, err := Parse(expr)
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for range set.All() {
					n++
				}
				if n != set.Len() {
					b.Fatal(n)
				}
			}
		})
	}
}

func BenchmarkFold(b *testing.B) {
	for what, names := range map[string][]string{
		"list": names("n%[1]d%03[2]d"), "grid": names("r%dn%d"), "holes": names("r%dn%d")[7:],
	} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				set, err := Of(names...)
				if err != nil || set.String() == "" {
					b.Fatal(err)
				}
			}
		})
	}
}

package agent

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseCmdline(t *testing.T) {
	set := func(name, value string) word { return word{name, value, true} }
	for line, want := range map[string][]word{
		"":                       nil,
		" \n":                    nil,
		"quiet":                  {{name: "quiet"}},
		"a=1 b=2\n":              {set("a", "1"), set("b", "2")},
		"a=":                     {set("a", "")},
		`a="x y" b`:              {set("a", "x y"), {name: "b"}},
		`"a=x y" b`:              {set("a", "x y"), {name: "b"}},
		`a=x"y z"w b`:            {set("a", `x"y z"w`), {name: "b"}},
		`a=b=c`:                  {set("a", "b=c")},
		`=x`:                     {{name: "=x"}},
		`"`:                      {{name: ""}},
		`a="`:                    {set("a", "")},
		`a="x y`:                 {set("a", "x y")},
		`"a b" c`:                {{name: "a b"}, {name: "c"}},
		"a=1\tb\va\x0c":          {set("a", "1"), {name: "b"}, {name: "a"}},
		"root=/dev/ram0 -- 3":    {set("root", "/dev/ram0"), {name: "--"}, {name: "3"}},
		"x=https://h:8443,https": {set("x", "https://h:8443,https")},
	} {
		if got := parseCmdline(line); !reflect.DeepEqual(got, want) {
			t.Errorf("%q\n got %v\nwant %v", line, got, want)
		}
	}
}

func TestMusterWords(t *testing.T) {
	got := musterWords(`quiet muster.head=https://h muster.key_slots=1,2 muster.node="n 0" musterx.a=1 muster.ca`)
	want := []word{{"head", "https://h", true}, {"key-slots", "1,2", true}, {"node", "n 0", true}, {"ca", "", false}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func FuzzCmdline(f *testing.F) {
	for _, s := range []string{
		"", `"`, `""`, `a="`, `"a=`, `a=x"y z"w b`, "BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet",
		`muster.head=https://h:8443 muster.ca=sha256:00 muster.node="n0"`, "a=\xff\x00", "\xa0a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words := parseCmdline(line)
		for _, w := range words {
			// What no spelling can express does not come back.
			if strings.Contains(w.name+w.value, `"`) || strings.ContainsAny(w.name, cmdlineSpace+"=") || w.name == "" {
				return
			}
		}
		if again := parseCmdline(formatCmdline(words)); !reflect.DeepEqual(again, words) {
			t.Fatalf("%q\nfirst  %v\nsecond %v", line, words, again)
		}
	})
}

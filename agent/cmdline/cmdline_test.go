package cmdline

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	set := func(name, value string) Word { return Word{name, value, true} }
	for line, want := range map[string][]Word{
		"":                       nil,
		" \n":                    nil,
		"quiet":                  {{Name: "quiet"}},
		"a=1 b=2\n":              {set("a", "1"), set("b", "2")},
		"a=":                     {set("a", "")},
		`a="x y" b`:              {set("a", "x y"), {Name: "b"}},
		`"a=x y" b`:              {set("a", "x y"), {Name: "b"}},
		`a=x"y z"w b`:            {set("a", `x"y z"w`), {Name: "b"}},
		`a=b=c`:                  {set("a", "b=c")},
		`=x`:                     {{Name: "=x"}},
		`"`:                      {{Name: ""}},
		`a="`:                    {set("a", "")},
		`a="x y`:                 {set("a", "x y")},
		`"a b" c`:                {{Name: "a b"}, {Name: "c"}},
		"a=1\tb\va\x0c":          {set("a", "1"), {Name: "b"}, {Name: "a"}},
		"root=/dev/ram0 -- 3":    {set("root", "/dev/ram0"), {Name: "--"}, {Name: "3"}},
		"x=https://h:8443,https": {set("x", "https://h:8443,https")},
	} {
		if got := Parse(line); !reflect.DeepEqual(got, want) {
			t.Errorf("%q\n got %v\nwant %v", line, got, want)
		}
	}
}

// TestStages: each stage obeys what is meant for it, and nothing else.
func TestStages(t *testing.T) {
	const line = `quiet muster.head=https://h muster.key_slots=1,2 rd.muster.node=early muster.node="n 0" musterx.a=1 muster.ca ` +
		`muster.root=/dev/sda1 muster.image_sha256=00 rd.muster.fail=halt muster.fail=reboot rd.muster=0`
	both := []Word{{"head", "https://h", true}, {"key-slots", "1,2", true}, {"node", "n 0", true}, {"ca", "", false}}
	if got := Agent(line, System); !reflect.DeepEqual(got, both) {
		t.Errorf("system: %v", got)
	}
	if got := Agent(line, Initramfs); !reflect.DeepEqual(got, append(both, Word{"node", "early", true})) {
		t.Errorf("initramfs: %v", got)
	}
	want := map[string]string{"root": "/dev/sda1", "image-sha256": "00", "fail": "halt"}
	if got := Handover(line); !reflect.DeepEqual(got, want) {
		t.Errorf("handover: %v", got)
	}
}

// TestUnknown: a word that nobody knows is named as it was written, with what may have been meant.
func TestUnknown(t *testing.T) {
	const line = "quiet muster.haed=x rd.muster.fial=halt muster.key_slotz=1 muster.x musterx.a muster.shell=1 muster.zzzzzz muster.node=n0 rd.muster=0"
	settings := []string{"head", "node", "key-slots"}
	want := []string{"muster.haed (muster.head?)", "rd.muster.fial (rd.muster.fail?)", "muster.key_slotz (muster.key-slots?)", "muster.x", "muster.zzzzzz"}
	if got := Unknown(line, Initramfs, settings); !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if got := Unknown(line, System, settings); !reflect.DeepEqual(got, append(want[:1:1], want[2:]...)) {
		t.Errorf("system: %q", got)
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
		words := Parse(line)
		for _, w := range words {
			// What no spelling can express does not come back.
			if strings.Contains(w.Name+w.Value, `"`) || strings.ContainsAny(w.Name, space+"=") || w.Name == "" {
				return
			}
		}
		if again := Parse(Format(words)); !reflect.DeepEqual(again, words) {
			t.Fatalf("%q\nfirst  %v\nsecond %v", line, words, again)
		}
	})
}

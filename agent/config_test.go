package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/template"
)

// testConfig is a node without a name whose only sources are these two texts.
func testConfig(t testing.TB, cmdline, file string) Config {
	t.Helper()
	root := t.TempDir()
	line := filepath.Join(root, "cmdline")
	if err := os.WriteFile(line, []byte(cmdline+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if file != "" {
		path := filepath.Join(root, DefaultFile)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Config{
		Cmdline: line, Root: root, Sys: filepath.Join(root, "sys"),
		Now: func() time.Time { return day0 }, Synchronised: func() bool { return true },
		SetClock: func(time.Time) error { return errors.New("no clock here") },
		Hostname: func() (string, error) { return "(none)", nil },
	}
}

func TestDefaults(t *testing.T) {
	a, err := New(testConfig(t, "quiet ro", ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.heads) != 0 || a.ca.given() || a.name != "" || a.wait != DefaultWait || a.alg != template.P256 ||
		a.clock.mode != clockTrust || len(a.profiles) != 1 || a.forget {
		t.Errorf("%+v", a)
	}
}

func TestInitramfsSetsTheClock(t *testing.T) {
	c := testConfig(t, "", "head = 'https://h'")
	if err := os.WriteFile(filepath.Join(c.Root, "etc/initrd-release"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if a.clock.mode != clockSet {
		t.Errorf("mode %s", a.clock.mode)
	}
}

// TestDefaultPort: a head without a port is at the port of heads.
func TestDefaultPort(t *testing.T) {
	a, err := New(testConfig(t, "muster.head=https://h,https://[::1]/,https://h:443,https://h:", ""))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range a.heads {
		got = append(got, h.String())
	}
	if want := "https://h:8443 https://[::1]:8443 https://h:443 https://h:8443"; strings.Join(got, " ") != want {
		t.Errorf("%v", got)
	}
}

func TestPrecedence(t *testing.T) {
	const file = "node = 'file'\nwait = '2m'\nhead = ['https://a:1', 'https://b:2']\n"
	c := testConfig(t, `muster.node=line muster.wait=60 muster.key=p384 muster.node="later" muster.clock=off`, file)
	c.Node = "flag"
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if a.name != "flag" || a.wait != 2*time.Minute || a.alg != template.P384 || a.clock.mode != clockOff || len(a.heads) != 2 {
		t.Errorf("%+v", a)
	}
	c.Node, c.File = "", filepath.Join(c.Root, "empty")
	os.WriteFile(c.File, nil, 0o644)
	if a, err = New(c); err != nil || a.name != "later" || a.wait != time.Minute {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestUnknownWordsAreOneWarning(t *testing.T) {
	a, err := New(testConfig(t, "muster.haed=https://h muster.x quiet mustered=1", ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.warnings) != 1 || !strings.HasSuffix(a.warnings[0], "unknown muster.haed (muster.head?) muster.x") {
		t.Errorf("%q", a.warnings)
	}
}

// TestOverruled: the file wins, and says over what. What a person types wins without a word.
func TestOverruled(t *testing.T) {
	line := "muster.head=https://a:1 muster.ca=sha256:" + strings.Repeat("ab", 32)
	file := "head = 'https://b:1'\nca = 'sha256:" + strings.Repeat("cd", 32) + "'\n"
	c := testConfig(t, line, file)
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.warnings) != 2 || !strings.Contains(a.warnings[0]+a.warnings[1], "https://b:1 counts, not https://a:1 (kernel command line, muster.head)") {
		t.Errorf("%q", a.warnings)
	}
	for what, c := range map[string]Config{
		"the same twice": testConfig(t, line+" "+line, ""),
		"a flag":         func() Config { c := testConfig(t, line, ""); c.Head = "https://c:1"; return c }(),
	} {
		if a, err := New(c); err != nil || len(a.warnings) != 0 {
			t.Errorf("%s: %v, %v", what, a, err)
		}
	}
}

// TestBadValues: every one names its source and comes with a hint.
func TestBadValues(t *testing.T) {
	for _, c := range []struct {
		name, cmdline, file string
		flags               Options
		want                string
	}{
		{"head over http", "muster.head=http://h", "", Options{}, "kernel command line, muster.head"},
		{"head with a path", "muster.head=https://h/x", "", Options{}, "https://HOST:PORT"},
		{"head with a password", "muster.head=https://u:p@h", "", Options{}, "https://HOST:PORT"},
		{"head, second", "", "# x\n\nhead = ['https://h',\n 'h2']", Options{}, "agent.toml:3: head"},
		{"pin too short", "", "", Options{CA: "sha256:00"}, "--ca"},
		{"prefix twice", "muster.ca=sha256:sha256:" + strings.Repeat("0", 64), "", Options{}, "has sha256: twice"},
		{"pin not hex", "muster.ca=sha256:" + strings.Repeat("g", 64), "", Options{}, "64 hex digits"},
		{"tofu beside a pin", "muster.ca=tofu,sha256:" + strings.Repeat("0", 64), "", Options{}, "tofu stands alone"},
		{"no such file", "", "", Options{CA: "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		{"wait", "muster.wait=soon", "", Options{}, "muster.wait"},
		{"negative wait", "", "wait = '-1s'", Options{}, "agent.toml:1: wait"},
		{"node with a space", `muster.node="n 0"`, "", Options{}, "muster.node"},
		{"node with an escape", "", "node = \"n\\u001b[2J\"", Options{}, "agent.toml:1: node"},
		{"tpm", "", "", Options{TPM: "tpmrm0"}, "--tpm"},
		{"profile", "muster.install=pem,x", "", Options{}, `no profile "x"`},
		{"clock", "muster.clock=ntp", "", Options{}, "muster.clock"},
		{"key", "", "", Options{Key: "ed25519"}, "--key"},
		{"key slots", "", "key-slots = ['0x01800000', '0x81000002']", Options{}, "agent.toml:1: key-slots"},
		{"same slot twice", "muster.nv-slots=0x01800000,0x01800000", "", Options{}, "two different handles"},
		{"unknown key", "", "node = 'n0'\nheads = 'https://h'\n", Options{}, "agent.toml:2: heads"},
		{"unknown table", "", "node = 'n0'\n\n[head2]\nx = 1\n", Options{}, "agent.toml:3: head2"},
		{"forget in the file", "", "forget = '1'\n", Options{}, "agent.toml:1: forget"},
		{"not TOML", "", "node = n0\n", Options{}, "agent.toml:1"},
		{"a truth value", "", "node = true\n", Options{}, "agent.toml:1: node"},
		{"forget", "muster.forget=yes", "", Options{}, "muster.forget"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t, c.cmdline, c.file)
			config.Options = c.flags
			_, err := New(config)
			if err == nil {
				t.Fatal("accepted")
			}
			if ExitStatus(err) != StatusConfig || !strings.Contains(err.Error(), c.want) || !strings.Contains(Describe(err), "\nhint: ") {
				t.Errorf("status %d: %s", ExitStatus(err), Describe(err))
			}
		})
	}
}

func TestNamedFileMustExist(t *testing.T) {
	c := testConfig(t, "", "")
	c.File = filepath.Join(c.Root, "nowhere.toml")
	if _, err := New(c); ExitStatus(err) != StatusConfig {
		t.Errorf("got %v", err)
	}
}

func TestSlots(t *testing.T) {
	a, err := New(testConfig(t, "", "key-slots = [0x81000100, 0x81000101]\nnv-slots = '0x01800010,0x01800011'\n"))
	if err != nil {
		t.Fatal(err)
	}
	if a.slots.Keys != [2]uint32{0x81000100, 0x81000101} || a.slots.NV != [2]uint32{0x01800010, 0x01800011} {
		t.Errorf("%#x", a.slots)
	}
}

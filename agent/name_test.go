package agent

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"muster/internal/wire"
)

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"n0": "n0", "n0.cluster": "n0.cluster", "": "", "(none)": "", "localhost": "", "localhost.localdomain": "",
		"localhost6": "", "a b": "", "n\x1b": "", strings.Repeat("n", 254): "",
	} {
		if got := hostname(func() (string, error) { return name, nil }); got != want {
			t.Errorf("%q: got %q", name, got)
		}
	}
	if got := hostname(func() (string, error) { return "n0", errors.New("no") }); got != "" {
		t.Errorf("after an error: %q", got)
	}
}

func TestHints(t *testing.T) {
	sys := t.TempDir()
	for path, text := range map[string]string{
		"class/net/eth1/address":        "02:00:00:00:00:0A\n",
		"class/net/eth1/device/uevent":  "",
		"class/net/eth0/address":        "02:00:00:00:00:01\n",
		"class/net/eth0/device/uevent":  "",
		"class/net/ib0/address":         "80:00:00:48:fe:80:00:00:00:00:00:00:f4:52:14:03:00:7b:cb:a1\n",
		"class/net/ib0/device/uevent":   "",
		"class/net/dead/address":        "00:00:00:00:00:00\n",
		"class/net/dead/device/uevent":  "",
		"class/net/lo/address":          "00:00:00:00:00:00\n",
		"class/net/br0/address":         "02:00:00:00:00:01\n",
		"class/dmi/id/product_uuid":     "4C4C4544-0042-3510-8054-B4C04F435931\n",
		"class/dmi/id/product_serial":   "B5TCY1\n",
		"class/net/bonding_masters":     "bond0\n",
		"class/net/noaddr/device/dummy": "",
	} {
		write(t, filepath.Join(sys, path), text)
	}
	want := wire.Hints{
		MACs:   []string{"02:00:00:00:00:01", "02:00:00:00:00:0a", "80:00:00:48:fe:80:00:00:00:00:00:00:f4:52:14:03:00:7b:cb:a1"},
		UUID:   "4c4c4544-0042-3510-8054-b4c04f435931",
		Serial: "B5TCY1",
	}
	if got := hints(sys); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	write(t, filepath.Join(sys, "class/dmi/id/product_uuid"), "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n")
	write(t, filepath.Join(sys, "class/dmi/id/product_serial"), "a\x1bb\n")
	if got := hints(sys); got.UUID != "" || got.Serial != "" {
		t.Errorf("got %+v", got)
	}
	if got := hints(t.TempDir()); !reflect.DeepEqual(got, wire.Hints{}) {
		t.Errorf("without sysfs: %+v", got)
	}
}

// TestNoName: a node without a name is told that it has none, and how to get one.
func TestNoName(t *testing.T) {
	m := newMachine(t, newHead(t))
	m.config.Node = ""
	m.config.Hostname = func() (string, error) { return "(none)", nil }
	if text := m.fails(StatusTryAgain); !strings.HasPrefix(text, "this node has no name, ") || !strings.Contains(text, "\nhint: muster.node=NAME on the kernel command line") {
		t.Errorf("%s", text)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

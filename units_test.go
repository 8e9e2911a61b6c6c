package muster_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"muster/internal/testtpm"
)

// installed is what `make install-systemd` installs with PREFIX dir, and the two programs.
func installed(t *testing.T, destination, prefix string) {
	t.Helper()
	testtpm.Need(t, "make")
	cmd := exec.Command("make", "--no-print-directory", "-s", "install-systemd", "DESTDIR="+destination, "PREFIX="+prefix)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // of the make that runs this test
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make install-systemd: %v\n%s", err, out)
	}
	programs := filepath.Join(destination, prefix, "bin")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"muster", "muster-agent"} {
		b, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(programs, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// analyze is systemd-analyze over the units in dir.
func analyze(dir string, args ...string) (string, error) {
	cmd := exec.Command("systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// unitsIn is where our units are in a prefix; spoil, where given, is applied to one of them.
func unitsIn(t *testing.T, unit string, spoil func(string) string) (dir string, units []string) {
	t.Helper()
	prefix := t.TempDir()
	installed(t, "", prefix)
	dir = filepath.Join(prefix, "lib/systemd/system")
	if spoil != nil {
		path := filepath.Join(dir, unit)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		spoiled := spoil(string(b))
		if spoiled == string(b) {
			t.Fatalf("%s is not spoiled", unit)
		}
		if err := os.WriteFile(path, []byte(spoiled), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	units, err := filepath.Glob(dir + "/*")
	if err != nil || len(units) < 6 {
		t.Fatalf("units: %v, %v", units, err)
	}
	return dir, units
}

// TestUnitsVerify: systemd understands every line of every unit, and finds what they start.
func TestUnitsVerify(t *testing.T) {
	testtpm.Need(t, "systemd-analyze")
	for name, c := range map[string]struct {
		spoil func(string) string
		good  bool
	}{
		"as they are":          {nil, true},
		"control: unknown key": {func(s string) string { return strings.Replace(s, "UMask=", "UMaks=", 1) }, false},
		"control: bad value":   {func(s string) string { return strings.Replace(s, "RestartSec=3", "RestartSec=soon", 1) }, false},
		"control: no program":  {func(s string) string { return strings.Replace(s, "/bin/muster serve", "/bin/mustard serve", 1) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, units := unitsIn(t, "muster.service", c.spoil)
			out, err := analyze(dir, append([]string{"verify", "--recursive-errors=no", "--man=no"}, units...)...)
			if good := err == nil && out == ""; good != c.good {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestUnitsSecurity: each daemon has what it needs and little more, by systemd's own measure.
func TestUnitsSecurity(t *testing.T) {
	testtpm.Need(t, "systemd-analyze")
	careless := func(s string) string {
		return regexp.MustCompile(`(?m)^(CapabilityBoundingSet|SystemCallFilter|Protect\w+|Private\w+)=.*\n`).ReplaceAllString(s, "")
	}
	for name, c := range map[string]struct {
		unit  string
		spoil func(string) string
		most  float64
		good  bool
	}{
		"head":             {"muster.service", nil, 1.5, true},
		"node":             {"muster-agent.service", nil, 3, true},
		"renewal":          {"muster-agent-renew.service", nil, 3, true},
		"control: head":    {"muster.service", careless, 1.5, false},
		"control: node":    {"muster-agent.service", careless, 3, false},
		"control: renewal": {"muster-agent-renew.service", careless, 3, false},
		"control: a bit":   {"muster.service", func(s string) string { return strings.Replace(s, "User=muster\n", "", 1) }, 1.5, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := unitsIn(t, c.unit, c.spoil)
			threshold := strconv.Itoa(int(c.most * 10))
			out, err := analyze(dir, "security", "--offline=true", "--no-pager", "--threshold="+threshold, filepath.Join(dir, c.unit))
			exposure := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
			if exposure == nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s: %s", c.unit, exposure[1])
			if (err == nil) != c.good {
				t.Errorf("exposure %s, and at most %v is wanted\n%s", exposure[1], c.most, out)
			}
		})
	}
}

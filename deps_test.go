package muster_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// allowed is every module that a shipped program may link beside the standard library, with the
// reason. What is not here needs a reason first.
var allowed = map[string]map[string]string{
	"./agent/cmd/muster-agent": {
		"github.com/google/go-tpm":              "TPM commands",
		"github.com/hashicorp/go-retryablehttp": "retries that honour Retry-After",
		"github.com/hashicorp/go-cleanhttp":     "go-retryablehttp's transport",
		"github.com/BurntSushi/toml":            "agent.toml, with positions in its errors",
		"github.com/coreos/go-systemd/v22":      "fields and events in the journal",
		"golang.org/x/crypto":                   "cryptobyte, for the certificates of EKs",
		"golang.org/x/sys":                      "adjtimex and clock_settime",
		"muster":                                "",
	},
	"./signer/cmd/muster": {
		"github.com/google/go-tpm":             "TPM structures and MakeCredential, in software",
		"go.etcd.io/bbolt":                     "the embedded store",
		"filippo.io/age":                       "keys in a backup, for whom the administrator says",
		"filippo.io/hpke":                      "age's",
		"github.com/spf13/cobra":               "commands, help, completion",
		"github.com/spf13/pflag":               "cobra's flags",
		"github.com/inconshreveable/mousetrap": "cobra's, for Windows",
		"github.com/BurntSushi/toml":           "signer.toml",
		"github.com/jedib0t/go-pretty/v6":      "tables and progress",
		"github.com/mattn/go-runewidth":        "go-pretty's widths",
		"github.com/rivo/uniseg":               "go-pretty's widths",
		"github.com/coreos/go-systemd/v22":     "sd_notify, socket activation and the journal",
		"github.com/godbus/dbus/v5":            "whether the clock is synchronised, where a sandbox forbids to ask the kernel",
		"github.com/smallstep/pkcs7":           "the certs-only PKCS#7 of EST's answers",
		"github.com/youmark/pkcs8":             "the CA's key, encrypted as OpenSSL does",
		"golang.org/x/crypto":                  "OCSP's encoding; cryptobyte, for the certificates of EKs; pkcs8's PBKDF2 and scrypt",
		"go.yaml.in/yaml/v3":                   "-o yaml, and ClusterShell's groups.d",
		"golang.org/x/sys":                     "peer credentials, flock",
		"golang.org/x/sync":                    "errgroup",
		"golang.org/x/term":                    "whether somebody can answer; go-pretty's",
		"golang.org/x/text":                    "go-pretty's widths",
		"muster":                               "",
	},
}

// TestModules: each program links what it may, and nothing else.
func TestModules(t *testing.T) {
	for program, may := range allowed {
		linked := goList(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", program)
		seen := map[string]bool{}
		for _, module := range linked {
			seen[module] = true
			if _, ok := may[module]; !ok && module != "" {
				t.Errorf("%s links %s, and nobody gave a reason", program, module)
			}
		}
		for module := range may {
			if !seen[module] && module != "github.com/inconshreveable/mousetrap" {
				t.Errorf("%s no longer links %s: take it off the list", program, module)
			}
		}
	}
}

// TestTrustBoundary: the node's side and the head's do not import one another, and no shipped
// program has what is for tests.
func TestTrustBoundary(t *testing.T) {
	for program, never := range map[string][]string{
		"./agent/cmd/muster-agent": {"muster/signer", "muster/internal/testtpm", "muster/internal/standin", "muster/internal/bench", "testing", "go.etcd.io"},
		"./signer/cmd/muster":      {"muster/agent", "muster/internal/testtpm", "muster/internal/standin", "muster/internal/bench", "testing"},
		"./agent/...":              {"muster/signer"},
		"./signer/...":             {"muster/agent"},
	} {
		for _, pkg := range goList(t, "-deps", program) {
			for _, bad := range never {
				if pkg == bad || strings.HasPrefix(pkg, bad+"/") {
					t.Errorf("%s imports %s", program, pkg)
				}
			}
		}
	}
}

// maxAgent is the size that the stripped agent stays under: it is sent to every node at every boot.
const maxAgent = 8 << 20

func TestAgentSize(t *testing.T) {
	info, err := os.Stat(filepath.Join(bin, "muster-agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("muster-agent has %d bytes", info.Size())
	if info.Size() >= maxAgent {
		t.Errorf("muster-agent has %d bytes, %d or more", info.Size(), maxAgent)
	}
}

// TestReproducible: the same sources in another place give equal, static programs.
func TestReproducible(t *testing.T) {
	moved := t.TempDir()
	copySources(t, moved)
	for _, c := range []struct {
		flags []string
		equal bool
	}{{[]string{"-trimpath"}, true}, {nil, false}} {
		here, there := buildIn(t, ".", c.flags), buildIn(t, moved, c.flags)
		if bytes.Equal(here, there) != c.equal {
			t.Errorf("with %v, two builds are equal: %v", c.flags, !c.equal)
		}
		// A dynamic program names its interpreter.
		if bytes.Contains(here, []byte("ld-linux")) {
			t.Error("muster-agent is not static")
		}
	}
}

// buildIn builds muster-agent from the sources in dir.
func buildIn(t *testing.T, dir string, flags []string) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "muster-agent")
	// What git says of a checkout is no part of the comparison: the copy is none.
	args := append([]string{"build", "-buildvcs=false", "-ldflags", "-buildid=", "-o", program}, flags...)
	cmd := exec.Command("go", append(args, "./agent/cmd/muster-agent")...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copySources(t *testing.T, to string) {
	t.Helper()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"agent", "internal"} {
		if err := os.CopyFS(filepath.Join(to, dir), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

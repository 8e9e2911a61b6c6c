package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain runs where the recipe has to: in the module's directory.
func TestMain(m *testing.M) {
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// build runs the program.
func build(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	file := filepath.Join(t.TempDir(), "image"+suffix(args))
	if status := run(append([]string{"-o", file}, args...), &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, stderr.String())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func suffix(args []string) string {
	if slices.Contains(args, "-ca") {
		return ".cpio"
	}
	return ".cpio.xz"
}

// maxImage is what the image without kernel modules stays under: it is sent to every node at every boot.
const maxImage = 3 << 20

// TestImage: small, and the same each time.
func TestImage(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil && os.Getenv("CI") == "" {
		t.Skip("xz is not installed")
	}
	first := build(t, "-committed", "1700000000")
	t.Logf("%d bytes without kernel modules", len(first))
	if len(first) > maxImage {
		t.Errorf("%d bytes", len(first))
	}
	if again := build(t, "-committed", "1700000000"); !bytes.Equal(first, again) {
		t.Error("another image of the same source")
	}
	if other := build(t, "-committed", "1700000001"); bytes.Equal(first, other) {
		t.Error("the image does not know when it was committed")
	}
}

// TestNote: what an image leaves to the kernel command line is said.
func TestNote(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.cpio")
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "must: muster.head=https://HEAD:8443 muster.ca=PIN\n"},
		{[]string{"-head", "https://h"}, "must: muster.ca=PIN\n"},
		{[]string{"-head", "https://h", "-ca", "sha256:" + strings.Repeat("0", 64)}, ""},
	} {
		var stderr bytes.Buffer
		r := recipe{out: out}
		for i := 0; i < len(c.args); i += 2 {
			*map[string]*string{"-head": &r.head, "-ca": &r.ca}[c.args[i]] = c.args[i+1]
		}
		if err := r.check(&stderr); err != nil || !strings.HasSuffix(stderr.String(), c.want) || c.want == "" && stderr.Len() > 0 {
			t.Errorf("%v: %v, %q", c.args, err, stderr.String())
		}
	}
}

// TestFiles: what the image has beside /init, and that nothing more is in it.
func TestFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	ca, key := newCA(t)
	if err := os.WriteFile(file, []byte("text before\n"+key+ca), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "site file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := build(t, "-in", filepath.Dir(file), "-ca", "ca.pem", "-head", "https://head:8443", "-file", "/bin/sh:etc/site/../sh,site file:a/b/c")
	if bytes.Contains(image, []byte(strings.Split(key, "\n")[1])) {
		t.Error("a private key is in the image, which is for all to read")
	}
	dir := t.TempDir()
	c := exec.Command("cpio", "-idm", "--quiet")
	c.Dir, c.Stdin = dir, bytes.NewReader(image)
	if out, err := c.CombinedOutput(); err != nil && os.Geteuid() == 0 { // a device node needs root
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range map[string]string{
		"etc/muster/ca.pem": ca, "etc/muster/agent.toml": "head = \"https://head:8443\"\nca = \"/etc/muster/ca.pem\"\n",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	var names []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "console" {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	want := []string{"a/b/c", "bin/init", "bin/muster-agent", "etc/initrd-release", "etc/muster/agent.toml", "etc/muster/ca.pem", "etc/sh", "init", "sbin/modprobe"}
	if !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
}

// newCA makes a CA's certificate and key, PEM.
func newCA(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// TestUsage: what makes no sense is refused before anything is built.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "image.cpio")
	for _, args := range [][]string{
		{}, {"-o", out, "more"}, {"-o", filepath.Join(dir, "image.cpio.lz4")}, {"-o", out, "-ca", "sha256:00"},
		{"-o", out, "-head", "http://head"}, {"-o", out, "-file", "a"}, {"-o", out, "-what"},
		{"-o", out, "-ca", "nosuch"}, {"-o", out, "-ca", "tofu"}, {"-o", out, "-ca", dir}, {"-o", out, "-ca", "go.mod"},
		{"-o", out, "-ca", "sha256:sha256:00"}, {"-o", out, "-file", dir + ":etc"}, {"-o", out, "-file", "nosuch:etc/x"},
		{"-o", out, "-kernel", "6.1.0-56-amd64"}, {"-o", out, "-modules", "tpm"}, {"-o", out, "-firmware", dir},
		{"-o", out, "-kernel", dir, "-firmware", dir + "/none"},
		// What FILES must not replace.
		{"-o", out, "-file", "go.mod:/init"}, {"-o", out, "-file", "go.mod:bin/../inito"}, {"-o", out, "-file", "go.mod:../../etc/x"},
		{"-o", out, "-head", "https://h", "-file", "go.mod:etc/muster/agent.toml"}, {"-o", out, "-file", "go.mod:etc"},
		{"-o", out, "-file", "go.mod:a,go.sum:a"}, {"-o", out, "-file", "go.mod:a,go.sum:a/b"}, {"-o", out, "-file", "go.mod:bin/init/x"},
	} {
		var stderr bytes.Buffer
		text := func() string { return strings.TrimSpace(stderr.String()) }
		if status := run(args, &stderr); status != 2 || !strings.Contains(text(), "\nhint: ") || strings.Contains(text(), "mkinitramfs") {
			t.Errorf("%v: status %d: %s", args, status, stderr.String())
		}
	}
	var stderr bytes.Buffer
	if status := run([]string{"-o", out, "-kernel", dir}, &stderr); status != 1 || !strings.Contains(stderr.String(), "\nhint: ") {
		t.Errorf("a directory without modules: status %d: %s", status, stderr.String())
	}
	// The directory above.
	if err := os.MkdirAll(filepath.Join(dir, "above/6.1.0-56-amd64/kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	if status := run([]string{"-o", out, "-in", dir, "-kernel", "above"}, &stderr); status != 2 || !strings.Contains(stderr.String(), "6.1.0-56-amd64") {
		t.Errorf("status %d: %s", status, stderr.String())
	}
	if err := os.RemoveAll(filepath.Join(dir, "above")); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

// linked is every module that /init may link beside the standard library, with the reason.
var linked = map[string]string{
	"github.com/BurntSushi/toml":            "agent.toml",
	"github.com/coreos/go-systemd/v22":      "the log's handler: an image of a site's may have the journal",
	"github.com/dustin/go-humanize":         "uio's, of which nothing is called",
	"github.com/google/go-tpm":              "TPM commands",
	"github.com/hashicorp/go-cleanhttp":     "go-retryablehttp's transport",
	"github.com/hashicorp/go-retryablehttp": "retries that honour Retry-After",
	"github.com/insomniacslk/dhcp":          "DHCP, for u-root's dhclient too",
	"github.com/josharian/native":           "the byte order, for mdlayher/socket",
	"github.com/mdlayher/packet":            "raw sockets, for DHCP before there is an address",
	"github.com/mdlayher/socket":            "mdlayher/packet's",
	"github.com/pierrec/lz4/v4":             "uio's, of which nothing is called",
	"github.com/u-root/u-root":              "DHCP, mounts, loop devices, cpio, switch_root",
	"github.com/u-root/uio":                 "readers and byte orders of u-root's and dhcp's",
	"github.com/vishvananda/netlink":        "addresses, routes and links",
	"github.com/vishvananda/netns":          "netlink's",
	"golang.org/x/crypto":                   "cryptobyte, to read the certificates of TPM makers",
	"golang.org/x/net":                      "packet filters, for mdlayher/packet",
	"golang.org/x/sync":                     "mdlayher/socket's",
	"golang.org/x/sys":                      "system calls",
	"muster":                                "",
	"muster/initramfs":                      "",
}

func TestLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "nethttpomithttp2", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/init").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, module := range strings.Fields(string(out)) {
		if _, ok := linked[module]; !ok && !seen[module] {
			t.Errorf("/init links %s, and nobody gave a reason", module)
		}
		seen[module] = true
	}
	for module := range linked {
		if !seen[module] {
			t.Errorf("/init no longer links %s: take it off the list", module)
		}
	}
}

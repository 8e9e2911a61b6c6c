// Package initramfs_test tries the script that other systems' boot images share.
package initramfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stage is a place where boot.sh finds a kernel command line, a configuration and a console of the test's:
// they are mounted over the machine's own for one process.
type stage struct {
	*testing.T
	dir string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root, to mount")
		}
		t.Skip("needs root, to mount")
	}
	s := &stage{t, t.TempDir()}
	for _, dir := range []string{"etc/muster", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cmdline", "console", "kmsg"} {
		s.write(name, "")
	}
	return s
}

func (s *stage) write(name, text string) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o755); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) read(name string) string {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

const mounts = `
mount -t overlay overlay -o lowerdir=$0/usr:/usr /usr
mount -t overlay overlay -o lowerdir=$0/etc:/etc /etc
mount --bind $0/cmdline /proc/cmdline
mount --bind $0/console /dev/console
mount --bind $0/kmsg /dev/kmsg
exec sh boot.sh "$1"
`

// boot runs boot.sh with a command, and returns its exit status and what it says beside the console.
func (s *stage) boot(command string) (int, string) {
	s.Helper()
	c := exec.Command("unshare", "-m", "sh", "-euc", mounts, s.dir, command)
	out, err := c.CombinedOutput()
	if c.ProcessState == nil {
		s.Fatal(err)
	}
	return c.ProcessState.ExitCode(), string(out)
}

// TestWanted: a node that is not to have a certificate is left alone, and silently.
func TestWanted(t *testing.T) {
	for _, c := range []struct {
		line, config string
		want         int
	}{
		{"quiet root=/dev/sda1 ro", "", 1},
		{"quiet muster.head=https://h muster.ca=sha256:00", "", 0},
		{"rd.muster.head=https://h", "", 0},
		{`"muster.head=https://h"`, "", 0},
		{"muster.head=", "", 1},
		{"xmuster.head=https://h muster.headless=1", "", 1},
		{"muster.head=https://h rd.muster=0", "", 1},
		{"rd.muster=0 muster.head=https://h rd.muster=1", "", 0},
		{"muster.head=https://h rd.muster=no", "", 1},
		{"* ?", "head = \"https://h\"\n", 0},
		{"", "# head = none\nnode = \"n0\"\n  \"head\"= 'https://h'", 0},
		{"", "# head = none\nheads = 1\n", 1},
		{"rd.muster=off", "head=\"https://h\"", 1},
	} {
		s := newStage(t)
		s.write("cmdline", c.line+"\n")
		if c.config != "" {
			s.write("etc/muster/agent.toml", c.config)
		}
		status, out := s.boot("wanted")
		if said := out + s.read("console") + s.read("kmsg"); status != c.want || said != "" {
			t.Errorf("%q, %q: status %d, not %d, and %q", c.line, c.config, status, c.want, said)
		}
	}
}

// TestFailed: a node without a certificate goes on where nothing else was asked for, and the last line says
// what to do. Here it is the agent itself without a TPM.
func TestFailed(t *testing.T) {
	s := newStage(t)
	agent := filepath.Join(s.dir, "usr/bin/muster-agent")
	build := exec.Command("go", "build", "-o", agent, "muster/agent/cmd/muster-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const words = "muster.head=https://h muster.ca=sha256:0000000000000000000000000000000000000000000000000000000000000000 " +
		"muster.tpm=device:/dev/none muster.wait=0 muster.nonsense=1 "
	const warning = `muster: configuration \(what="kernel command line: unknown muster.nonsense"\)\n`
	for policy, sentence := range map[string]string{
		"":                     `going on without a certificate \(status 69\)`,
		"muster.fail=continue": `going on without a certificate \(status 69\)`,
		// The initramfs's own word wins wherever it stands, as in agent/cmdline.
		"rd.muster.fail=shell muster.fail=continue": `muster.fail=shell is none of continue, reboot and halt; going on ` +
			`without a certificate \(status 69\)`,
		"muster.fail=halt rd.muster.fail=shell": `muster.fail=shell is none of continue, reboot and halt; going on ` +
			`without a certificate \(status 69\)`,
	} {
		s.write("console", "")
		s.write("kmsg", "")
		s.write("cmdline", words+policy+"\n")
		status, out := s.boot("run")
		want := regexp.MustCompile(`^` + warning + `muster: no usable TPM: .*\nmuster: ` + sentence + `\nmuster: hint: enable the TPM .*\n$`)
		if status != 0 || out != "" || !want.MatchString(s.read("console")) {
			t.Errorf("%q: status %d, %q, and on the console\n%s", policy, status, out, s.read("console"))
		}
		if strings.ReplaceAll(s.read("kmsg"), "<7>", "") != s.read("console") {
			t.Errorf("the kernel's log has\n%s", s.read("kmsg"))
		}
	}
}

// TestAppend: the archive for an image that is there already has what it should and nothing that could take a
// directory's place, twice the same, and leaves the next archive where the kernel finds it.
func TestAppend(t *testing.T) {
	for _, program := range []string{"cpio", "gzip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	run := func(args ...string) string {
		t.Helper()
		text, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
		return string(text)
	}
	ca := filepath.Join(dir, "ca.pem")
	const certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	if err := os.WriteFile(ca, []byte(certificate), 0o644); err != nil {
		t.Fatal(err)
	}
	archive := func() []byte {
		t.Helper()
		run("dracut/append.sh", "-o", out, "--agent", "boot.sh", "--ca", ca, "--config", "go.mod")
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := archive()
	if len(first)%4 != 0 {
		t.Errorf("it has %d bytes, which is no multiple of 4", len(first))
	}
	if again := archive(); string(again) != string(first) {
		t.Error("it is another one the second time")
	}
	const want = `drwxr-xr-x etc/muster
-rw-r--r-- etc/muster/agent.toml
-rw-r--r-- etc/muster/ca.pem
-rwxr-xr-x usr/bin/muster-agent
-rwxr-xr-x usr/lib/dracut/hooks/cmdline/94-muster-net.sh
-rwxr-xr-x usr/lib/dracut/hooks/initqueue/timeout/20-muster-alone.sh
-rwxr-xr-x usr/lib/dracut/hooks/pre-mount/20-muster.sh
drwxr-xr-x usr/lib/muster
-rwxr-xr-x usr/lib/muster/boot
-rwxr-xr-x var/lib/dracut/hooks/cmdline/94-muster-net.sh
-rwxr-xr-x var/lib/dracut/hooks/initqueue/timeout/20-muster-alone.sh
-rwxr-xr-x var/lib/dracut/hooks/pre-mount/20-muster.sh
`
	if got := run("sh", "-c", "gzip -dcq "+out+" | cpio -itv --quiet | awk '{print $1, $NF}' | sort -k2"); got != want {
		t.Errorf("it has\n%s", got)
	}
}

// refuses runs a script that is to end with status 2, with what is amiss and what to do, and to make nothing.
func refuses(t *testing.T, out string, args ...string) {
	t.Helper()
	text, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), "\nhint: ") {
		t.Errorf("%q: %v\n%s", args, err, text)
	}
	if _, err := os.Stat(out); err == nil {
		t.Errorf("%q: there is a file", args)
	}
}

// TestAppendRefuses: what would make an archive that serves no node.
func TestAppendRefuses(t *testing.T) {
	dir := t.TempDir()
	out, key := filepath.Join(dir, "out"), filepath.Join(dir, "key.pem")
	const text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	if err := os.WriteFile(key, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{}, {"-o"}, {"--colour", "blue"}, {"-o", filepath.Join(dir, "none/out"), "--agent", "boot.sh"},
		{"-o", out, "--agent", ""}, {"-o", out, "--agent", "go.mod"}, {"-o", out, "--agent", "boot.sh", "--ca", "none.pem"},
		{"-o", out, "--agent", "boot.sh", "--ca", "go.mod"}, {"-o", out, "--agent", "boot.sh", "--ca", key},
		{"-o", out, "--agent", "boot.sh", "--config", "none.toml"},
	} {
		refuses(t, out, append([]string{"dracut/append.sh"}, args...)...)
	}
	help, err := exec.Command("dracut/append.sh", "-h").Output()
	if err != nil || !strings.Contains(string(help), "--ca FILE") || strings.Contains(string(help), "set -eu") {
		t.Errorf("%v\n%s", err, help)
	}
}

// TestUKIRefuses: what UEFI could not start.
func TestUKIRefuses(t *testing.T) {
	dir := t.TempDir()
	out, kernel := filepath.Join(dir, "out.efi"), filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(kernel, []byte("MZ"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{}, {"", "go.mod", "quiet", out, "go.mod"}, {"go.mod", "go.sum", "quiet", out, "go.mod"}, {"none", "go.sum", "quiet", out, "go.mod"},
		{kernel, "none.cpio", "quiet", out, "go.mod"}, {kernel, "go.sum", "quiet", out, "none.stub"}, {dir, "go.sum", "quiet", out, "go.mod"},
	} {
		refuses(t, out, append([]string{"./uki.sh"}, args...)...)
	}
}

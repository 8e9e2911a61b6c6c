// Package vm_test boots real kernels with Muster's boot image on machines that QEMU makes, with swtpm for a
// TPM and a real head: what a node's console shows, and where the boot ends.
package vm_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"muster/initramfs/vm"
)

var update = flag.Bool("update", false, "write the golden consoles anew")

// parts is what TestMain makes once: the programs, the image and the kernel.
var parts struct{ dir, muster, agent, image, kernel, modules string }

// needed are the programs without which no node boots here.
var needed = []string{"qemu-system-x86_64", "swtpm", "mksquashfs", "busybox", "cpio", "nginx", "apt-get"}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		for _, program := range needed {
			if _, err := exec.LookPath(program); err != nil {
				fmt.Fprintf(os.Stderr, "%s is not installed: the boot tests are left out\n", program)
				if os.Getenv("CI") != "" {
					return 1
				}
				return 0
			}
		}
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(parts.dir)
		return m.Run()
	}())
}

// prepare builds as the Makefile does, and unpacks Debian's kernel.
func prepare() (err error) {
	if parts.dir, err = os.MkdirTemp("", "vm"); err != nil {
		return err
	}
	parts.muster, parts.agent = filepath.Join(parts.dir, "muster"), filepath.Join(parts.dir, "muster-agent")
	parts.image = filepath.Join(parts.dir, "image.cpio.gz")
	if err := command("../..", ".ci/kernel", "cloud"); err != nil {
		return err
	}
	if parts.kernel, parts.modules, err = vm.Kernel("../../bin/vm/kernel/cloud"); err != nil {
		return err
	}
	if err := command("../..", "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version=test -X main.committed=1700000000", "-o", parts.dir+"/", "./signer/cmd/muster", "./agent/cmd/muster-agent"); err != nil {
		return err
	}
	return buildImage(parts.image)
}

// buildImage builds the boot image with drivers for the test kernel, and options more.
func buildImage(file string, more ...string) error {
	args := append([]string{"run", "./cmd/mkinitramfs", "-o", file, "-kernel", parts.modules, "-committed", "1700000000"}, more...)
	return command("..", "go", args...)
}

func command(dir, name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// bound is how long one boot may take, however busy the machine is.
const bound = 10 * time.Minute

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	return ctx
}

// rig is a head and one node.
type rig struct {
	*testing.T
	head *vm.Head
	node *vm.Machine
}

// newRig runs beside one other test: a processor for each machine.
func newRig(t *testing.T) *rig {
	t.Helper()
	t.Parallel()
	dir := shortDir(t)
	h, err := vm.NewHead(dir, parts.muster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Stop)
	return &rig{T: t, head: h, node: &vm.Machine{Dir: filepath.Join(dir, "node")}}
}

// shortDir is not t.TempDir: a socket's path has at most 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (r *rig) enable() {
	r.Helper()
	if _, err := r.head.Admin("certs", "enable", "-i", "n0"); err != nil {
		r.Fatal(err)
	}
}

// software is our image on Debian's kernel, with the head's words and more.
func (r *rig) software(more string) vm.Software {
	return vm.Software{
		Kernel: parts.kernel, Initrd: parts.image,
		Cmdline: "console=ttyS0 panic=-1 quiet loglevel=1 muster.node=n0 " + r.head.Words() + " " + more,
	}
}

// power switches the node on.
func (r *rig) power(ctx context.Context, more string) *vm.Boot {
	r.Helper()
	b, err := r.node.Power(ctx, r.software(more))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(b.Cut)
	return b
}

// boot is one boot up to its end, which the node makes itself.
func (r *rig) boot(more string) *vm.Boot {
	r.Helper()
	ctx := within(r.T)
	b := r.power(ctx, more)
	if err := b.Off(ctx); err != nil {
		r.Fatal(err)
	}
	return b
}

// is checks what the head has on record, and returns it.
func (r *rig) is(state string) vm.Node {
	r.Helper()
	n, err := r.head.Node("n0")
	if err != nil {
		r.Fatal(err)
	}
	if n.State != state {
		r.Errorf("n0 is %s on the head, not %s", n.State, state)
	}
	return n
}

// says checks that the console has a pattern.
func (r *rig) says(b *vm.Boot, pattern string) {
	r.Helper()
	if !regexp.MustCompile(pattern).MatchString(b.Text()) {
		r.Errorf("the console does not say %q:\n%s", pattern, b.Text())
	}
}

// golden compares Muster's lines on the console with a file, but for what differs each time.
func (r *rig) golden(name string, b *vm.Boot) {
	r.Helper()
	got := r.settled(strings.Join(b.Lines(), "\n") + "\n")
	file := filepath.Join("testdata", name+".console")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			r.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		r.Fatal(err)
	}
	if got != string(want) {
		r.Errorf("the console of %s:\n%s--- want:\n%s--- whole:\n%s", name, got, want, b.Text())
	}
}

func (r *rig) settled(text string) string {
	text = strings.ReplaceAll(text, fmt.Sprintf(":%d", r.head.Port), ":PORT")
	text = strings.ReplaceAll(text, r.head.Pin, "PIN")
	for pattern, with := range map[string]string{
		`certificate [0-9a-f]{8}…`:         "certificate SERIAL…",
		`sha256:[0-9a-f]{64}`:              "OTHER-PIN",
		`SHA-256 is [0-9a-f]{64}`:          "SHA-256 is HASH",
		`until \d{4}-\d\d-\d\d`:            "until DATE",
		`\d{4}-\d\d-\d\d \d\d:\d\d`:        "TIME",
		`after [0-9.]+ s \([0-9.]+ s of`:   "after LONG (LONG of",
		`was_off_by=-?[0-9hms]+`:           "was_off_by=LONG",
		`127\.0\.0\.1:\d+|10\.0\.2\.2:\d+`: "ADDRESS",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, with)
	}
	return text
}

package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"muster/initramfs/vm"
)

// TestURoot: an image of u-root's own init and commands, made as docs/boot.md says. Its shell runs the script that
// the hooks of other images share.
func TestURoot(t *testing.T) {
	needFull(t, "modprobe")
	r := newRig(t)
	r.node.Memory = 768
	d := newDocument(t, r.ca())
	source, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/u-root/u-root").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.TrimSpace(string(source)), filepath.Join(d.dir, "u-root")); err != nil {
		t.Fatal(err)
	}
	d.run("u-root")
	s := vm.Software{
		Kernel: parts.kernel, Initrd: filepath.Join(d.dir, "src/add.cpio"),
		Cmdline: quietly + "muster.node=n0 " + r.head.Words(),
	}
	r.enable()
	r.golden("hook", r.shell(s))
	first := r.is("active")

	r.says(r.shell(s), `muster: n0: certificate .* confirmed by`)
	if again := r.is("active"); again != first {
		t.Errorf("the second boot has another certificate: %+v, %+v", again, first)
	}

	r.node.TPM = "none"
	s.Cmdline += " muster.fail=reboot"
	r.golden("hook-reboot", r.off(s))
}

// shell boots up to u-root's shell, which its init starts when the uinit has ended.
func (r *rig) shell(s vm.Software) *vm.Boot {
	r.Helper()
	ctx := within(r.T)
	b, err := r.node.Power(ctx, s)
	if err != nil {
		r.Fatal(err)
	}
	defer b.Cut()
	if err := b.WaitFor(ctx, `> `); err != nil {
		r.Fatal(err)
	}
	return b
}

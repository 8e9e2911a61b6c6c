package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"muster/initramfs/vm"
)

// TestURoot: an image of u-root's own init and commands, made as docs/boot.md says.
func TestURoot(t *testing.T) {
	needFull(t, "modprobe", "cpio")
	r := newRig(t)
	r.node.Memory = 768
	image := r.uroot()
	r.enable()
	boot := func(words string) *vm.Boot {
		r.Helper()
		return r.off(vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "rd.muster.node=n0 " + r.head.Words() + words})
	}

	b := boot("")
	r.golden("hook", b)
	r.says(b, `root: /run/muster has ca.pem chain.pem node.crt node.key openssl.cnf status.json\n`)
	r.says(b, `root: run /run tmpfs`)
	first := r.is("active")

	r.says(boot(""), `muster: n0: certificate .* confirmed by`)
	if again := r.is("active"); again != first {
		t.Errorf("the second boot has another certificate: %+v, %+v", again, first)
	}

	r.node.TPM = "none"
	r.golden("hook-reboot", boot(" muster.fail=reboot"))
	b = boot(" rd.muster=0")
	r.says(b, `root: /run/muster has .*no such file or directory\n`) // as its ls says it
	if ours := b.Lines(); len(ours) > 0 {
		t.Errorf("Muster was not asked for, and says %q", ours)
	}
}

// nextShell is in the place of the shell that u-root's init starts after the uinit. What it has for output then is
// hung up: the uinit was the terminal's session.
const nextShell = `#!/bbin/gosh
{
	echo root: /run/muster has $(ls /run/muster)
	echo "root: $(grep ' /run ' /proc/mounts)"
} >/dev/console
poweroff
`

// uroot makes that image, with nextShell in it.
func (r *rig) uroot() (image string) {
	r.Helper()
	d := newDocument(r.T, r.ca())
	source, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/u-root/u-root").Output()
	if err != nil {
		r.Fatal(err)
	}
	if err := os.Symlink(strings.TrimSpace(string(source)), filepath.Join(d.dir, "u-root")); err != nil {
		r.Fatal(err)
	}
	d.run("u-root")
	image = filepath.Join(d.dir, "src/add.cpio")
	if err := os.MkdirAll(filepath.Join(d.dir, "next/bin"), 0o755); err != nil {
		r.Fatal(err)
	}
	d.write("next/bin/defaultsh", nextShell)
	r.tool("sh", "-ec", "cd "+d.dir+"/next && chmod 755 bin/defaultsh && echo bin/defaultsh | cpio -o -H newc -R 0:0 --quiet >>"+image)
	return image
}

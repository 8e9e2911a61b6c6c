package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// builder makes boot images with the tools of a system as if the test kernel, and where wanted Muster, were installed
// on it.
type builder struct {
	*testing.T
	root    string // of the system
	dir     string // in usr, etc and boot: what is installed beside what the system has
	release string // of the kernel
}

func newBuilder(t *testing.T, root string) *builder {
	t.Helper()
	b := &builder{t, root, shortDir(t), strings.TrimPrefix(filepath.Base(parts.kernel), "vmlinuz-")}
	for _, dir := range []string{"etc/muster", "usr/lib/modules", "boot", "modules", "work/usr", "work/etc", "work/boot", "work/modules"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// install installs Muster for boot images, and the CA's certificate with it.
func (b *builder) install(ca string) {
	b.Helper()
	installMuster(b.T, b.dir, "install-boot")
	b.write("etc/muster/ca.pem", ca)
}

func (b *builder) write(name, text string) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// installMuster does what a package's installation does, below a directory.
func installMuster(t *testing.T, root string, targets ...string) {
	t.Helper()
	for _, args := range [][]string{
		append([]string{"make", "-s", "-C", "../..", "DESTDIR=" + root, "PREFIX=/usr"}, targets...),
		{"install", "-D", "-m", "755", parts.agent, filepath.Join(root, "usr/bin/muster-agent")},
	} {
		if err := command(".", args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
}

// mounts puts what is installed into its place, for one process and its children; what they write is installed
// there, too. Depmod is what the kernel's package runs when it is installed.
const mounts = `
root=$0 dir=$1 kernel=$2 release=$3
over() { mount -t overlay overlay -o "lowerdir=$1,upperdir=$dir/$2,workdir=$dir/work/$2" "$root/$3"; }
over "$root/usr" usr usr
over "$root/etc" etc etc
over "$kernel/boot" boot boot
over "$kernel/lib/modules" modules usr/lib/modules
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
shift 3
chroot "$root" depmod "$release"
exec chroot "$root" "$@"
`

// command is a program on that system.
func (b *builder) command(name string, args ...string) *exec.Cmd {
	b.Helper()
	kernel, err := filepath.Abs("../../bin/vm/kernel/cloud")
	if err != nil {
		b.Fatal(err)
	}
	return exec.Command("unshare", append([]string{"-m", "sh", "-euc", mounts, b.root, b.dir, kernel, b.release, name}, args...)...)
}

// build runs a tool that writes the image /boot/image.
func (b *builder) build(name string, args ...string) string {
	b.Helper()
	if out, err := b.command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return filepath.Join(b.dir, "boot/image")
}

// dracut builds an image for any machine that has virtio, with some of dracut's modules.
func (b *builder) dracut(modules string) string {
	b.Helper()
	return b.build("dracut", "--force", "--quiet", "--no-hostonly", "--no-early-microcode", "--zstd",
		"--modules", "base udev-rules kernel-modules rootfs-block fs-lib "+modules, "--kver", b.release, "/boot/image")
}

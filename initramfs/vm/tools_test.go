package vm_test

import (
	"testing"

	"muster/initramfs/vm"
)

// TestInitramfsTools: the hook in an image that Debian's own tools build.
func TestInitramfsTools(t *testing.T) {
	needFull(t, "mkinitramfs")
	r := newRig(t)
	b := newBuilder(t, "/")
	b.install(r.ca())
	image := b.mkinitramfs()
	r.node.Disks = []string{r.tinyDisk()}
	r.enable()
	software := func(words string) vm.Software {
		return vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "root=/dev/vda muster.node=n0 " + words}
	}
	boot := func(words string) *vm.Boot {
		r.Helper()
		return r.off(software(words))
	}

	first := boot(r.head.Words())
	r.golden("hook", first)
	r.handedOver(first)
	r.says(first, `root: e\w+ is down\n`) // as a system on a local disk expects it
	r.is("active")

	r.node.TPM = "none"
	r.golden("hook-reboot", boot(r.head.Words()+" muster.fail=reboot"))
	r.golden("hook-halt", r.halted(software(r.head.Words()+" rd.muster.fail=halt")))
	r.silent(boot(""))
}

// halted boots up to the last line of a boot that halts.
func (r *rig) halted(s vm.Software) *vm.Boot {
	r.Helper()
	ctx := within(r.T)
	b, err := r.node.Power(ctx, s)
	if err != nil {
		r.Fatal(err)
	}
	defer b.Cut()
	if err := b.WaitFor(ctx, `muster: hint: .*\n`); err != nil {
		r.Fatal(err)
	}
	return b
}

// mkinitramfs builds an image with what Debian puts into one where it does not know the machine.
func (b *builder) mkinitramfs() string {
	b.Helper()
	return b.build("mkinitramfs", "-o", "/boot/image", b.release)
}

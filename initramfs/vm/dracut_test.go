package vm_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"muster/initramfs/vm"
)

// TestDracut: the module in an image that dracut builds with its own scripts, without systemd in it.
func TestDracut(t *testing.T) {
	needFull(t, "dracut", "dhclient", "arping")
	r := newRig(t)
	b := newBuilder(t, "/")
	b.install(r.ca())
	image := b.dracut("dash network-legacy muster")
	r.node.Disks = []string{r.tinyDisk()}
	r.enable()
	boot := func(words string) *vm.Boot {
		r.Helper()
		return r.off(vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "root=/dev/vda muster.node=n0 " + words})
	}

	first := boot(r.head.Words())
	r.golden("hook", first)
	r.handedOver(first)
	r.is("active")

	// With no link at all, what Muster alone wanted the network for goes on without.
	r.node.NICs = []string{}
	alone := boot(r.head.Words() + " rd.retry=6")
	r.golden("hook-alone", alone)
	r.handedOver(alone)

	r.node.NICs, r.node.TPM = nil, "none"
	r.golden("hook-reboot", boot(r.head.Words()+" rd.muster.fail=reboot"))

	// A host whose nodes know nothing of Muster.
	r.silent(boot(""))
	r.silent(boot(r.head.Words() + " rd.muster=0"))
}

// TestDracutAppended: our archive behind an image that knows nothing of Muster, with systemd and its networkd in it.
func TestDracutAppended(t *testing.T) {
	needFull(t, "dracut", "networkctl", "dbus-daemon", "cpio")
	r := newRig(t)
	b := newBuilder(t, "/")
	stock := b.dracut("systemd systemd-initrd dracut-systemd systemd-networkd network")
	b.write("ca.pem", r.ca())
	ours, image := filepath.Join(b.dir, "muster.cpio.gz"), filepath.Join(b.dir, "both")
	r.tool("../dracut/append.sh", "-o", ours, "--agent", parts.agent, "--ca", filepath.Join(b.dir, "ca.pem"))
	r.tool("sh", "-c", "cat "+stock+" "+ours+" >"+image)
	r.node.Disks = []string{r.tinyDisk()}
	r.node.More = []string{"-smp", "2"}
	r.node.NICs = []string{"ipv6=off"} // networkd calls a link up that has an address of either kind
	r.enable()
	s := vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "root=/dev/vda muster.node=n0 " + r.head.Words()}
	boot := r.off(s)
	r.golden("hook", boot)
	r.handedOver(boot)
	r.is("active")

	r.node.TPM = "none"
	s.Cmdline += " muster.fail=reboot"
	r.golden("hook-reboot", r.off(s))
}

// quietly leaves the console to Muster.
const quietly = "console=ttyS0 panic=-1 quiet loglevel=1 systemd.show_status=0 "

// ca is the certificate of the head's CA.
func (r *rig) ca() string {
	r.Helper()
	text, err := r.head.Admin("ca", "export")
	if err != nil {
		r.Fatal(err)
	}
	return text
}

// tinyInit is the init of a root that tells what the boot image leaves behind.
const tinyInit = `#!/bin/sh
echo "root: I am $$"
for link in /sys/class/net/e*; do
	[ -e $link ] || continue
	echo "root: ${link##*/} is $(cat $link/operstate)"
	ip link set ${link##*/} down # virtio_net may hang in a shutdown that finds it busy
done
echo root: /run/muster has $(ls /run/muster 2>/dev/null)
ls -l /run/muster/node.key 2>/dev/null | sed 's/^/root: /; s|/run/muster/||'
[ -e /run/systemd/network/zzzz-muster.network ] || echo "root: the network is none of Muster's"
poweroff -f
`

// tinyDisk is that root, as systemd wants a root to be.
func (r *rig) tinyDisk() string {
	r.Helper()
	tree := filepath.Join(shortDir(r.T), "tiny")
	if err := vm.Root(tree, tinyInit, nil); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/os-release"), []byte("ID=tiny\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	return r.ext4Of(tree, "16M")
}

// ext4Of is a disk with a tree's files.
func (r *rig) ext4Of(tree, size string) string {
	r.Helper()
	file := tree + ".img"
	r.tool("mke2fs", "-q", "-t", "ext4", "-d", tree, file, size)
	return file
}

// handedOver checks that the tiny root has found what the boot image has made.
func (r *rig) handedOver(b *vm.Boot) {
	r.Helper()
	r.says(b, `root: I am 1\n`)
	r.says(b, `root: /run/muster has ca.pem chain.pem node.crt node.key openssl.cnf status.json\n`)
	r.says(b, `root: -rw------- .* node.key\n`)
	r.says(b, `root: the network is none of Muster's\n`)
}

// silent checks that a boot that got to its root has neither said nor made anything of Muster's.
func (r *rig) silent(b *vm.Boot) {
	r.Helper()
	r.says(b, `root: I am 1\n`)
	if ours := regexp.MustCompile(`(?m)^muster: .*`).FindString(b.Text()); ours != "" {
		r.Errorf("Muster was not asked for, and says %q", ours)
	}
	r.says(b, `root: /run/muster has\n`)
}

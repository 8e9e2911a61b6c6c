package vm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"muster/initramfs/vm"
)

// TestDebianRoot: an image that dracut builds in the node's root, with systemd and NetworkManager in it as the RHEL
// family has it, brings the certificate; the system in the root confirms it, and curl uses the key in the TPM as any program does.
func TestDebianRoot(t *testing.T) {
	needFull(t, "mmdebstrap", "mke2fs")
	r := newRig(t)
	tree := r.debian("")
	b := newBuilder(t, tree)
	b.install(r.ca())
	image := b.dracut("bash systemd systemd-initrd dracut-systemd network-manager muster")
	r.node.Disks, r.node.Memory, r.node.More = []string{r.ext4Of(tree, "500M")}, 1024, []string{"-smp", "2"}
	r.enable()
	boot := r.off(vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "root=/dev/vda rw muster.node=n0 " + r.head.Words()})
	r.golden("hook", boot)
	r.says(boot, `root: before the unit there are ca.pem chain.pem node.crt node.key openssl.cnf status.json\n`)
	r.green(boot)
	r.says(boot, `root: agent: .*n0: certificate .* confirmed by`)
	r.is("active")
}

// TestDiskful: a node with a disk and a boot image that knows nothing of Muster. Its package is installed and its
// unit enabled, and it is booted; the second time the certificate comes from the TPM.
func TestDiskful(t *testing.T) {
	needFull(t, "mkinitramfs", "mmdebstrap", "mke2fs")
	r := newRig(t)
	image := newBuilder(t, "/").mkinitramfs()
	r.node.Disks, r.node.Memory, r.node.More = []string{r.ext4Of(r.debian(fmt.Sprintf("head = %q\n", r.head.URL())), "500M")}, 1024, []string{"-smp", "2"}
	r.enable()
	s := vm.Software{Kernel: parts.kernel, Initrd: image, Cmdline: quietly + "root=/dev/vda rw"}
	for _, said := range []string{`n0: enrolled at https`, `n0: certificate .* confirmed by`} {
		boot := r.off(s)
		r.says(boot, `root: before the unit there are\n`)
		r.green(boot)
		r.says(boot, "root: agent: .*"+said)
		r.is("active")
	}
}

// green checks what the root tells of its units, and that its curl was let in.
func (r *rig) green(b *vm.Boot) {
	r.Helper()
	r.says(b, `root: muster-agent.service is active\n`)
	r.says(b, `root: muster.target is active\n`)
	r.says(b, `root: failed units:\n`)
	r.says(b, `root: curl: .*"node": ?"n0"`)
}

// The root tells what it finds, and switches the node off.
const (
	beforeUnit = `[Unit]
Before=muster-agent.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo root: before the unit there are $(ls /run/muster 2>/dev/null) >/dev/console'
[Install]
WantedBy=muster-agent.service
`
	afterUnit = `[Unit]
After=muster.target tpm2-abrmd.service
[Service]
Type=oneshot
ExecStart=/bin/sh /etc/tell
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
`
	tell = `exec 2>&1 >/dev/console
for unit in muster-agent.service muster.target; do
	echo "root: $unit is $(systemctl is-active $unit)"
done
echo root: failed units: $(systemctl --failed --plain --no-legend)
journalctl -u muster-agent.service -o cat | sed 's/^/root: agent: /'
{
%s} 2>&1 | sed 's/^/root: curl: /'
sleep 1 # the serial line is slow
`
	network = "[Match]\nKind=!*\nType=ether\n[Network]\nDHCP=yes\n"
)

// slow are units that this system has no use for.
var slow = []string{"systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "ldconfig.service",
	"systemd-update-done.service", "systemd-firstboot.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "NetworkManager.service", "NetworkManager-wait-online.service"}

var debianTar = sync.OnceValue(func() error { return command("../..", ".ci/root") })

// debian is the tree of a Debian system, on which Muster is installed as its package would do it and enabled, with
// an agent.toml if that is not empty.
func (r *rig) debian(config string) string {
	r.Helper()
	if err := debianTar(); err != nil {
		r.Fatal(err)
	}
	tree := filepath.Join(shortDir(r.T), "root")
	if err := os.Mkdir(tree, 0o755); err != nil {
		r.Fatal(err)
	}
	r.tool("tar", "-xpf", "../../bin/vm/root/debian.tar", "--numeric-owner", "-C", tree)
	installMuster(r.T, tree, "install-systemd")
	curl := strings.ReplaceAll(documented(r.T, "TestDiskful", "Diskful nodes"), "https://10.54.0.1:8443", r.head.URL())
	files := map[string]string{
		"etc/hostname": "n0\n", "etc/machine-id": "uninitialized\n", "etc/fstab": "", "etc/tell": fmt.Sprintf(tell, curl),
		"etc/systemd/network/80-dhcp.network": network, "etc/muster/ca.pem": r.ca(),
		"etc/systemd/system/before.service": beforeUnit, "etc/systemd/system/after.service": afterUnit,
	}
	if config != "" {
		files["etc/muster/agent.toml"] = config
	}
	for name, text := range files {
		file := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			r.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	r.tool("systemctl", append([]string{"--quiet", "--root", tree, "mask"}, slow...)...)
	r.tool("systemctl", "--quiet", "--root", tree, "enable", "muster-agent.service", "before.service", "after.service", "systemd-networkd.service")
	return tree
}

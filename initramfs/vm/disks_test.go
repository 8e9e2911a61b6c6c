package vm_test

import (
	"path/filepath"
	"time"

	"muster/initramfs/vm"
)

// rootInit is the init of a root that is just large enough to say what it finds.
const rootInit = `#!/bin/sh
echo "root: I am $$"
echo "root: this year is $(date +%Y)"
echo root: /run/muster has $(ls /run/muster)
ls -l /run/muster/node.key 2>/dev/null | sed 's/^/root: /; s|/run/muster/||'
[ -c /dev/tpmrm0 ] && echo "root: there is /dev/tpmrm0"
echo x 2>/dev/null >/etc/written && echo "root: can write"
ip link set eth0 down # virtio_net may hang in a shutdown that finds it busy
poweroff -f
`

func thisYear() string { return time.Now().UTC().Format("2006") }

// tree makes the files of that root.
func (r *rig) tree() string {
	r.Helper()
	dir := filepath.Join(shortDir(r.T), "root")
	if err := vm.Root(dir, rootInit, nil); err != nil {
		r.Fatal(err)
	}
	return dir
}

// disk is that root as a squashfs.
func (r *rig) disk(name string) string {
	r.Helper()
	tree := r.tree()
	file := filepath.Join(filepath.Dir(tree), name+".squashfs")
	r.tool("mksquashfs", tree, file, "-quiet", "-no-progress", "-all-root")
	return file
}

// ext4 is that root as a disk that can be written.
func (r *rig) ext4(label string) string {
	r.Helper()
	tree := r.tree()
	file := filepath.Join(filepath.Dir(tree), "root.img")
	r.tool("mke2fs", "-q", "-t", "ext4", "-L", label, "-d", tree, file, "16M")
	return file
}

// cpio is that root as an archive.
func (r *rig) cpio() string {
	r.Helper()
	tree := r.tree()
	file := filepath.Join(filepath.Dir(tree), "root.cpio.gz")
	r.tool("sh", "-c", "cd "+tree+" && find . | cpio -o -H newc -R 0:0 --quiet | gzip >"+file)
	return file
}

func (r *rig) tool(name string, args ...string) {
	r.Helper()
	if err := command(".", name, args...); err != nil {
		r.Fatal(err)
	}
}

// off boots other software up to its end.
func (r *rig) off(s vm.Software) *vm.Boot {
	r.Helper()
	ctx := within(r.T)
	b, err := r.node.Power(ctx, s)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(b.Cut)
	if err := b.Off(ctx); err != nil {
		r.Fatal(err)
	}
	return b
}

package choose_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRealKernel: Debian's generic kernel finds the drivers of a machine's devices in our image and loads them,
// of those chosen no other; one that is damaged is named and keeps no other from loading.
func TestRealKernel(t *testing.T) {
	dir := kernel(t, "generic")
	root := unpack(t, mustChoose(t, open(t, dir), "tpm", "virtio", "server", "root"))
	build := exec.Command("go", "build", "-o", filepath.Join(root, "init"), "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	release := filepath.Base(dir)
	vmxnet3, err := filepath.Glob(filepath.Join(root, "lib/modules", release, "kernel/drivers/net/vmxnet3/vmxnet3.ko"))
	if err != nil || len(vmxnet3) != 1 {
		t.Fatal(vmxnet3, err)
	}
	write(t, vmxnet3[0], []byte("no module"))

	console := boot(t, filepath.Join(dir, "../../../boot/vmlinuz-"+release), root,
		"e1000e.copybreak=123 muster.load=fs-squashfs muster.load=xfs muster.load=fs-debugfs muster.load=btrfs",
		"virtio-net-pci", "e1000e", "vmxnet3", "nvme,serial=1,drive=none")
	var said []string
	for line := range strings.Lines(console) {
		if _, text, ok := strings.Cut(line, "init: "); ok {
			said = append(said, strings.TrimSpace(text))
		}
	}
	for _, want := range []string{
		"loaded virtio_pci", "loaded virtio_net", "loaded e1000e", "loaded nvme",
		"error module vmxnet3: it was not built for this kernel", "again 1",
		"load fs-squashfs <nil>", "load xfs <nil>", "load fs-debugfs <nil>", "load btrfs module btrfs: the image has no such module",
		"link virtio_net", "link e1000e", "filesystem squashfs", "filesystem xfs", "copybreak 123",
	} {
		if !slices.Contains(said, want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	for _, never := range []string{"loaded igb", "loaded mlx5_core", "loaded squashfs", "filesystem overlay"} {
		if slices.Contains(said, never) {
			t.Errorf("the console has %q", never)
		}
	}
	if t.Failed() {
		t.Log(console)
	}
}

// boot runs a virtual machine with these devices until it powers off, and returns what its console showed.
func boot(t *testing.T, vmlinuz, root, cmdline string, devices ...string) string {
	t.Helper()
	run(t, "qemu-system-x86_64", "--version")
	initrd := filepath.Join(t.TempDir(), "initrd")
	run(t, "sh", "-c", `cd "$0" && find . | cpio -o -H newc --quiet >"$1"`, root, initrd)
	disk := filepath.Join(t.TempDir(), "disk")
	write(t, disk, make([]byte, 1<<20))
	args := []string{
		"-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-nic", "none", "-kernel", vmlinuz, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet " + cmdline,
		"-drive", "if=none,id=none,format=raw,file=" + disk,
	}
	for _, d := range devices {
		args = append(args, "-device", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var console bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Run(); err != nil {
		t.Fatalf("qemu: %v\n%s", err, console.String())
	}
	return console.String()
}

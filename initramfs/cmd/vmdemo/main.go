// Vmdemo shows a node pass muster: a virtual machine with a software TPM boots from its network, enrols, loses
// its power, comes back with the certificate in its TPM and goes on into a root file system. On the left is the
// node's console; on the right what the head knows of it, whenever that changes. `make vm-demo` runs it; it
// leaves nothing behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"muster/initramfs/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	fs := flag.NewFlagSet("vmdemo", flag.ContinueOnError)
	bin := fs.String("bin", "", "`DIR` of the programs and, in vm/, of image and kernel")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	dir, err := os.MkdirTemp("", "muster")
	if err == nil {
		defer os.RemoveAll(dir)
		err = (&demo{bin: *bin, dir: dir, screen: newScreen(os.Stdout)}).run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm-demo:", err)
		return 1
	}
	return 0
}

// demo is one run.
type demo struct {
	bin, dir string
	screen   *screen
	head     *vm.Head
	server   *vm.NetBoot
	node     *vm.Machine
}

// bound is for one boot, however slow the machine.
const bound = 5 * time.Minute

// rootInit is the system that takes over: what is there of Muster's, and whether it works.
const rootInit = `#!/bin/sh
echo "root: the system on the disk is up; in /run/muster it finds" $(ls /run/muster)
echo "root: $ muster-agent status"
muster-agent status | sed 's/^/root: /'
echo "root: $ muster-agent get HEAD/v1/self"
echo "root: $(muster-agent get HEAD/v1/self)"
ip link set eth0 down
poweroff -f
`

func (d *demo) run(ctx context.Context) (err error) {
	d.screen.title("1. The head: a new cluster, and one node that may enrol.")
	if d.head, err = vm.NewHead(d.dir, filepath.Join(d.bin, "muster")); err != nil {
		return err
	}
	defer d.head.Stop()
	if err := d.enable(); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return err
	}
	defer d.server.Stop()

	d.screen.title("2. The node is switched on. It has nothing but a network card: iPXE fetches kernel and boot image.")
	// Without a root named the node would switch itself off; it does not get that far, or nobody sees it.
	const line = "enrolled at .*"
	enrolled := func(ctx context.Context, b *vm.Boot) error { return b.WaitFor(ctx, line+"\n") }
	if err := d.boot(ctx, "", regexp.MustCompile(line), enrolled); err != nil {
		return err
	}

	d.screen.title("3. Somebody pulls its plug. It is switched on again: certificate and key are in its TPM.")
	off := func(ctx context.Context, b *vm.Boot) error { return b.Off(ctx) }
	if err := d.boot(ctx, " muster.root=/dev/vda", nil, off); err != nil {
		return err
	}
	d.screen.title("What the head remembers of it:")
	log, err := d.head.Admin("log", "-i", "n0")
	d.screen.text(strings.TrimRight(log, "\n") + "\n")
	return err
}

func (d *demo) enable() error {
	d.screen.text("$ muster certs enable -i n0\n")
	text, err := d.head.Admin("certs", "enable", "-i", "n0")
	d.screen.text(text)
	return err
}

// words are for a serial console, and for a node that no name service knows.
const words = "console=ttyS0 panic=-1 quiet loglevel=1 muster.node=n0"

// prepare makes what the node boots from: the web server, and the disk with its root.
func (d *demo) prepare() error {
	script, err := os.ReadFile("ipxe/boot.ipxe")
	if err != nil {
		return err
	}
	kernel, _, err := vm.Kernel(filepath.Join(d.bin, "vm/kernel/cloud"))
	if err != nil {
		return err
	}
	disk, err := d.rootDisk()
	if err != nil {
		return err
	}
	d.server = &vm.NetBoot{Script: string(script), Kernel: kernel, Image: filepath.Join(d.bin, "vm/muster.cpio.gz"), Head: d.head}
	nic, err := d.server.Start()
	d.node = &vm.Machine{Dir: filepath.Join(d.dir, "node"), NICs: []string{nic}, Disks: []string{disk}, Memory: 768}
	return err
}

func (d *demo) rootDisk() (file string, err error) {
	root, file := filepath.Join(d.dir, "root"), filepath.Join(d.dir, "root.squashfs")
	init := strings.ReplaceAll(rootInit, "HEAD", d.head.URL())
	if err := vm.Root(root, init, map[string]string{"bin/muster-agent": filepath.Join(d.bin, "muster-agent")}); err != nil {
		return "", err
	}
	if out, err := exec.Command("mksquashfs", root, file, "-quiet", "-no-progress", "-all-root").CombinedOutput(); err != nil {
		return "", fmt.Errorf("mksquashfs: %v: %s", err, out)
	}
	return file, nil
}

// boot shows one boot, up to its last line of interest, until it has come far enough, and then cuts the power.
func (d *demo) boot(ctx context.Context, more string, last *regexp.Regexp, enough func(context.Context, *vm.Boot) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	d.server.Words = words + more
	shown := d.screen.begin(d.head)
	shown.last = last
	d.server.Asked = shown.asked
	b, err := d.node.Power(ctx, vm.Software{})
	if err != nil {
		return err
	}
	defer b.Cut()
	shown.boot = b
	done := make(chan error, 1)
	go func() { done <- enough(ctx, b) }()
	for {
		select {
		case err := <-done:
			shown.look()
			return err
		case <-time.After(50 * time.Millisecond):
			shown.look()
		}
	}
}

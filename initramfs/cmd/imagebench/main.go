// Imagebench measures the boot image: the bytes that PXE carries, and what a boot takes in a virtual machine.
// It prints figures as `make bench` does, which runs it, and is never shipped.
//
//	image-bare      the image without kernel modules, xz; the floor is a program of crypto/tls, net/http
//	                and go-tpm alone, built with the same flags
//	image-server    the image with the default modules for Debian's generic kernel, xz
//	vm-first-boot,  from the start of /init to the end of the boot, in a machine that QEMU emulates: there
//	vm-second-boot  everything takes a multiple of its time. The floor is the processor's part of it
//
// Exit status: 0 all figures within their limits; 1 one falls SHORT; 2 it could not be measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"muster/initramfs/vm"
	"muster/internal/bench/figure"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	fs := flag.NewFlagSet("imagebench", flag.ContinueOnError)
	bin := fs.String("bin", "", "`DIR` of the programs and, in vm/, of the kernels")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	tmp, err := os.MkdirTemp("", "ib")
	if err == nil {
		defer os.RemoveAll(tmp)
		b := &bench{bin: *bin, tmp: tmp, report: figure.Report{Out: os.Stdout}}
		err = errors.Join(b.sizes(), b.boots())
		if err == nil && b.report.Short {
			return 1
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "imagebench:", err)
		return 2
	}
	return 0
}

type bench struct {
	bin, tmp string
	report   figure.Report
}

// sizes measures images.
func (b *bench) sizes() error {
	bare, err := b.image("bare.cpio.xz")
	if err != nil {
		return err
	}
	floor, err := b.floor()
	if err != nil {
		return err
	}
	_, generic, err := vm.Kernel(filepath.Join(b.bin, "vm/kernel/generic"))
	if err != nil {
		return err
	}
	server, err := b.image("server.cpio.xz", "-kernel", generic)
	if err != nil {
		return err
	}
	b.report.Add("image-bare", bare, "MiB", floor, 3)
	b.report.Add("image-server", server, "MiB", bare, 9)
	return nil
}

// image builds one and returns its MiB.
func (b *bench) image(name string, more ...string) (float64, error) {
	file := filepath.Join(b.tmp, name)
	if err := command("go", append([]string{"run", "./cmd/mkinitramfs", "-o", file}, more...)...); err != nil {
		return 0, err
	}
	return mebibytes(file)
}

// floor is the bare program, packed as an image is.
func (b *bench) floor() (float64, error) {
	file := filepath.Join(b.tmp, "bare")
	// The flags of gobusybox, with which u-root's builder compiles.
	if err := command("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-gcflags=all=-l", "-ldflags=-s -w -buildid=",
		"-tags=nethttpomithttp2", "-o", file, "./cmd/imagebench/bare"); err != nil {
		return 0, err
	}
	if err := command("xz", "-9e", "--check=crc32", file); err != nil {
		return 0, err
	}
	return mebibytes(file + ".xz")
}

func mebibytes(file string) (float64, error) {
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / (1 << 20), nil
}

// bootRounds is how many machines boot twice.
const bootRounds = 3

// boots measures first and second boots.
func (b *bench) boots() error {
	kernel, modules, err := vm.Kernel(filepath.Join(b.bin, "vm/kernel/cloud"))
	if err != nil {
		return err
	}
	if _, err := b.image("boot.cpio.gz", "-kernel", modules); err != nil {
		return err
	}
	h, err := vm.NewHead(b.tmp, filepath.Join(b.bin, "muster"))
	if err != nil {
		return err
	}
	defer h.Stop()
	took := figure.Series{}
	for i := range bootRounds {
		name := fmt.Sprintf("n%d", i)
		if _, err := h.Admin("certs", "enable", "-i", name); err != nil {
			return err
		}
		m := &vm.Machine{Dir: filepath.Join(b.tmp, name)}
		s := vm.Software{Kernel: kernel, Initrd: filepath.Join(b.tmp, "boot.cpio.gz"), Cmdline: "console=ttyS0 panic=-1 quiet loglevel=1 muster.node=" + name + " " + h.Words()}
		for _, boot := range []string{"first", "second"} {
			if err := measure(m, s, boot, took); err != nil {
				return err
			}
		}
	}
	for _, boot := range []string{"first", "second"} {
		b.report.Add("vm-"+boot+"-boot", took.Median(boot), "s", took.Median(boot+" own"), 10)
	}
	return nil
}

var took = regexp.MustCompile(`after ([0-9.]+) s \(([0-9.]+) s of processor time\)`)

// bound is for one boot, however slow the machine.
const bound = 5 * time.Minute

func measure(m *vm.Machine, s vm.Software, boot string, series figure.Series) error {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	b, err := m.Power(ctx, s)
	if err != nil {
		return err
	}
	defer b.Cut()
	if err := b.Off(ctx); err != nil {
		return err
	}
	says := took.FindStringSubmatch(b.Text())
	if says == nil {
		return fmt.Errorf("the %s boot did not end well:\n%s", boot, b.Text())
	}
	for i, name := range []string{boot, boot + " own"} {
		seconds, err := strconv.ParseFloat(says[i+1], 64)
		if err != nil {
			return err
		}
		series.Add(name, seconds)
	}
	return nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

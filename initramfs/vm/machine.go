// Package vm boots virtual nodes for tests, demonstrations and measurements: QEMU with a kernel of Debian's,
// swtpm as its TPM 2.0, and a head of this machine's, which the nodes know as 10.0.2.2. No shipped program
// links it.
//
// A Machine is what stays when the power goes: the TPM and the disks. Each Power is one boot of it.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Machine is a node's hardware. Its state is in Dir, whose path must be short: sockets are made in it.
type Machine struct {
	Dir     string
	TPM     string    // crb, tis, or none; empty: crb
	RTC     string    // what the clock says at power-on, 1970-01-01T00:00:00; empty: the time
	Memory  int       // MiB; 0: 512
	UEFI    bool      // OVMF's firmware, not SeaBIOS
	NICs    []string  // QEMU's -netdev options of each, of "user" unless it says "tap,…"; nil: one without options
	Disks   []string  // raw images, read-only when their name ends in .squashfs
	Console io.Writer // what the node prints goes there too; may be nil
	More    []string  // further arguments of QEMU's
}

// Software is what a machine boots. Without a Kernel it boots from its network.
type Software struct {
	Kernel, Initrd, Cmdline string
}

// Boot is a machine under power.
type Boot struct {
	qemu, tpm *exec.Cmd
	ended     chan struct{} // closed when QEMU has ended
	mu        sync.Mutex
	text      strings.Builder
	more      chan struct{} // closed, and replaced, when the console says more
	also      io.Writer
}

// HostAddr is where nodes find this machine's loopback.
const HostAddr = "10.0.2.2"

// Power switches the machine on. The context's end cuts the power.
func (m *Machine) Power(ctx context.Context, s Software) (*Boot, error) {
	b := &Boot{ended: make(chan struct{}), more: make(chan struct{}), also: m.Console}
	args := m.arguments(s)
	if m.UEFI {
		more, err := m.firmware()
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	if m.TPM != "none" {
		more, err := b.startTPM(m)
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	b.qemu = exec.CommandContext(ctx, "qemu-system-x86_64", append(args, m.More...)...)
	b.qemu.Stdout, b.qemu.Stderr = b, b
	b.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.qemu.Start(); err != nil {
		b.endTPM()
		return nil, err
	}
	go func() {
		b.qemu.Wait()
		b.endTPM()
		close(b.ended)
	}()
	return b, nil
}

// arguments of QEMU's, without the TPM. Never KVM: not every machine that offers it can run an unmodified
// kernel in it.
func (m *Machine) arguments(s Software) []string {
	memory := m.Memory
	if memory == 0 {
		memory = 512
	}
	args := []string{
		"-machine", "q35,accel=tcg", "-cpu", "max", "-m", fmt.Sprint(memory), "-nodefaults", "-no-user-config",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-device", "virtio-rng-pci",
	}
	if m.RTC != "" {
		args = append(args, "-rtc", "base="+m.RTC+",clock=vm")
	}
	nics := m.NICs
	if nics == nil {
		nics = []string{""}
	}
	for i, options := range nics {
		boot := fmt.Sprintf(",bootindex=%d", i)
		if s.Kernel != "" {
			boot = ""
		}
		if s.Kernel != "" || m.UEFI { // QEMU's ROMs are iPXE, and OVMF has drivers of its own
			boot += ",romfile="
		}
		kind := "user"
		if rest, ok := strings.CutPrefix(options, "tap,"); ok {
			kind, options = "tap", rest
		}
		args = append(args,
			"-netdev", strings.TrimSuffix(fmt.Sprintf("%s,id=n%d,%s", kind, i, options), ","),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=52:54:00:4d:55:%02x%s", i, i+1, boot))
	}
	for _, disk := range m.Disks {
		drive := "if=virtio,format=raw,file=" + disk
		if strings.HasSuffix(disk, ".squashfs") {
			drive += ",readonly=on"
		}
		args = append(args, "-drive", drive)
	}
	if s.Kernel != "" {
		// On a busy machine an emulated timer may be late, which the kernel takes for a broken one.
		args = append(args, "-kernel", s.Kernel, "-initrd", s.Initrd, "-append", "no_timer_check "+s.Cmdline)
	}
	return args
}

// ovmf is where Debian keeps UEFI firmware for machines like these.
const ovmf = "/usr/share/OVMF/OVMF_"

// firmware is OVMF, with variables of the machine's own, which it keeps. It boots from the network by HTTP
// alone: each other way costs a minute before it is given up.
func (m *Machine) firmware() (args []string, err error) {
	vars := filepath.Join(m.Dir, "vars.fd")
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := os.Stat(vars); errors.Is(err, os.ErrNotExist) {
		if err := copyFile(vars, ovmf+"VARS_4M.fd"); err != nil {
			return nil, err
		}
	}
	args = []string{
		"-drive", "if=pflash,format=raw,readonly=on,file=" + ovmf + "CODE_4M.fd",
		"-drive", "if=pflash,format=raw,file=" + vars,
	}
	for _, without := range []string{"IPv4PXESupport", "IPv6PXESupport", "IPv6Support"} {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+without+",string=n")
	}
	return args, nil
}

// startTPM runs the machine's chip; the state is in the machine's directory.
func (b *Boot) startTPM(m *Machine) (args []string, err error) {
	dir, err := filepath.Abs(m.Dir)
	if err != nil {
		return nil, err
	}
	state, socket := filepath.Join(dir, "tpm"), filepath.Join(dir, "tpm.sock")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b.tpm = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--ctrl", "type=unixio,path="+socket, "--terminate")
	b.tpm.Stderr = b
	b.tpm.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.tpm.Start(); err != nil {
		return nil, err
	}
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			kind := m.TPM
			if kind == "" {
				kind = "crb"
			}
			return []string{"-chardev", "socket,id=tpm,path=" + socket, "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-" + kind + ",tpmdev=tpm"}, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.endTPM()
	return nil, errors.New("swtpm does not come up")
}

// endTPM cuts the chip's power; after an orderly end there is nothing left to cut.
func (b *Boot) endTPM() {
	if b.tpm != nil {
		b.tpm.Process.Kill()
		b.tpm.Wait()
	}
}

// Write takes what the console says (io.Writer).
func (b *Boot) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	close(b.more)
	b.more = make(chan struct{})
	if b.also != nil {
		b.also.Write(p)
	}
	return len(p), nil
}

// Text is what the console has said so far, without carriage returns.
func (b *Boot) Text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.ReplaceAll(b.text.String(), "\r", "")
}

// Lines are the lines of Muster's on the console.
func (b *Boot) Lines() []string {
	var lines []string
	for _, line := range strings.Split(b.Text(), "\n") {
		if strings.HasPrefix(line, "muster: ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// WaitFor waits until the console has said what a pattern fits. An error has what was said instead.
func (b *Boot) WaitFor(ctx context.Context, pattern string) error {
	re := regexp.MustCompile(pattern)
	for {
		b.mu.Lock()
		more := b.more
		b.mu.Unlock()
		if re.MatchString(b.Text()) {
			return nil
		}
		select {
		case <-more:
		case <-b.ended:
			if re.MatchString(b.Text()) {
				return nil
			}
			return fmt.Errorf("the machine went off without %q:\n%s", pattern, b.Text())
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting for %q:\n%s", ctx.Err(), pattern, b.Text())
		}
	}
}

// Off waits until the machine has switched itself off, or asked for a reset, which is the same here.
func (b *Boot) Off(ctx context.Context) error {
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the machine is still on:\n%s", ctx.Err(), b.Text())
	}
}

// Cut pulls the plug: machine and chip lose their power at once.
func (b *Boot) Cut() {
	if b.tpm != nil {
		b.tpm.Process.Kill()
	}
	b.qemu.Process.Kill()
	<-b.ended
}

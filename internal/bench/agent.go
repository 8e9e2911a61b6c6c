package main

import (
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/testtpm"
)

// boots measures the node's program: what PXE must carry, and what it asks of the chip. The commands
// are counted in front of swtpm while the real agent enrols at the real head.
func (b *bench) boots(ctx context.Context) error {
	size, err := stripped(b.agent)
	if err != nil {
		return err
	}
	b.report.add(figure{"agent-size", size, "MiB", 0, 8})
	few, err := b.few(ctx)
	if err != nil {
		return err
	}
	h, err := startHead(ctx, b.muster, few)
	if err != nil {
		return err
	}
	defer h.stop()
	first, second, err := b.twoBoots(ctx, h, "raw", nil)
	if err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	managed, _, err := b.twoBoots(ctx, h, "managed", manage)
	if err != nil {
		return fmt.Errorf("resource manager: %w", err)
	}
	b.report.add(figure{"agent-first-boot", float64(first), "commands", 0, 18})
	b.report.add(figure{"agent-first-boot-managed", float64(managed), "commands", 0, 54})
	b.report.add(figure{"agent-second-boot", float64(second), "commands", 0, 4})
	return nil
}

// stripped is a program's size in MiB without its symbols and debugging information.
func stripped(path string) (float64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	f, err := elf.Open(path)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	size := info.Size()
	for _, s := range f.Sections {
		if s.Name == ".symtab" || s.Name == ".strtab" || strings.HasPrefix(s.Name, ".debug_") || strings.HasPrefix(s.Name, ".zdebug_") {
			size -= int64(s.FileSize)
		}
	}
	return float64(size) / (1 << 20), nil
}

// manage puts the kernel's resource manager in front of the chip, as behind /dev/tpmrm0.
func manage(chip transport.TPM) (transport.TPM, error) { return testtpm.Manage(chip) }

// twoBoots boots a node with a blank TPM, cuts its power, and boots it again. It returns the commands
// that the chip saw at each: of the first up to the read-back of the NV record, of the second up to the
// handshake. The export of the key for OpenSSL is apart.
func (b *bench) twoBoots(ctx context.Context, h *head, name string, front func(transport.TPM) (transport.TPM, error)) (first, second int, err error) {
	dir := filepath.Join(b.tmp, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, 0, err
	}
	chip, err := testtpm.Run(dir)
	if err != nil {
		return 0, 0, err
	}
	defer chip.Stop()
	if err := h.enable(ctx, name); err != nil {
		return 0, 0, err
	}
	if first, err = b.boot(ctx, h, chip, name, "1", front, (*testtpm.Counter).ToStored); err != nil {
		return first, 0, fmt.Errorf("first boot: %w", err)
	}
	if err := chip.PowerCycle(); err != nil {
		return first, 0, err
	}
	if second, err = b.boot(ctx, h, chip, name, "2", front, (*testtpm.Counter).ToHandshake); err != nil {
		return first, second, fmt.Errorf("second boot: %w", err)
	}
	return first, second, nil
}

// boot runs the agent over an empty root, as an initramfs has it, and counts what reaches the chip.
func (b *bench) boot(ctx context.Context, h *head, chip *testtpm.TPM, name, nth string, front func(transport.TPM) (transport.TPM, error), count func(*testtpm.Counter) int) (int, error) {
	link, err := chip.Dial()
	if err != nil {
		return 0, err
	}
	defer link.Close()
	counter := testtpm.Count(link)
	var seen transport.TPM = counter
	if front != nil {
		if seen, err = front(counter); err != nil {
			return 0, err
		}
		counter.Reset()
	}
	spec, closer, err := testtpm.Serve(seen, filepath.Join(chip.Dir(), "p"+nth))
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	pin, err := h.pin(ctx)
	if err != nil {
		return 0, err
	}
	root := filepath.Join(chip.Dir(), "root"+nth)
	if err := os.Mkdir(root, 0o755); err != nil {
		return 0, err
	}
	_, err = output(ctx, b.agent, "run", "--head", "https://"+h.addr, "--ca", pin, "--node", name,
		"--tpm", spec, "--root", root, "--clock", "trust", "--wait", "10s")
	if c, ok := seen.(io.Closer); ok && front != nil {
		c.Close() // as the kernel does when the agent's file is closed
	}
	fmt.Fprintf(b.log, "  boot %s of %s: %d commands %v\n", nth, name, len(counter.Commands()), counter.Commands())
	return count(counter), err
}

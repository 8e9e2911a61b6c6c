package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/bench/figure"
	"muster/internal/testtpm"
)

// bootRounds is how many nodes boot twice.
const bootRounds = 5

// boots measures the node's program: what PXE must carry, what it asks of the chip, and what it does
// itself. The commands are counted in front of swtpm while the real agent enrols at the real head. Its
// own time is the CPU's: chip, network and head are other processes.
func (b *bench) boots(ctx context.Context) error {
	size, err := stripped(b.agent)
	if err != nil {
		return err
	}
	b.report.Add("agent-size", size, "MiB", 0, 8)
	few, err := b.few(ctx)
	if err != nil {
		return err
	}
	h, err := startHead(ctx, b.muster, few)
	if err != nil {
		return err
	}
	defer h.stop()
	own := figure.Series{}
	var raw twoBoots
	for i := range bootRounds {
		if raw, err = b.twoBoots(ctx, h, fmt.Sprintf("raw%d", i), nil); err != nil {
			return fmt.Errorf("raw: %w", err)
		}
		own.Add("first", raw.first.own)
		own.Add("second", raw.second.own)
		nothing, err := ownTime(ctx, b.agent, "version")
		if err != nil {
			return err
		}
		own.Add("nothing", nothing)
	}
	managed, err := b.twoBoots(ctx, h, "managed", manage)
	if err != nil {
		return fmt.Errorf("resource manager: %w", err)
	}
	b.report.Add("agent-first-boot", float64(raw.first.commands), "commands", 0, 18)
	b.report.Note("agent-first-boot", "%s", raw.first.kinds)
	b.report.Add("agent-first-boot-managed", float64(managed.first.commands), "commands", 0, 54)
	b.report.Add("agent-second-boot", float64(raw.second.commands), "commands", 0, 4)
	b.report.Note("agent-second-boot", "%s", raw.second.kinds)
	b.report.Add("agent-first-boot-own", own.Median("first"), "ms", own.Median("nothing"), 50)
	b.report.Add("agent-second-boot-own", own.Median("second"), "ms", own.Median("nothing"), 50)
	return nil
}

// ownTime runs a program and returns its CPU time in milliseconds.
func ownTime(ctx context.Context, program string, args ...string) (float64, error) {
	c := exec.CommandContext(ctx, program, args...)
	var said bytes.Buffer
	c.Stderr = &said
	if err := c.Run(); err != nil {
		return 0, fmt.Errorf("%s %s: %v: %s", filepath.Base(program), args[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return float64(c.ProcessState.UserTime()+c.ProcessState.SystemTime()) / float64(time.Millisecond), nil
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

// twoBoots is what a first and a second boot took.
type twoBoots struct{ first, second boot }

// boot is what one boot took: commands, to a point that the kind of boot has, all of them by kind, and
// the agent's own milliseconds.
type boot struct {
	commands int
	kinds    string
	own      float64
}

// twoBoots boots a node with a blank TPM, cuts its power, and boots it again. The commands are of the first
// boot up to the read-back of the NV record, of the second up to the handshake. The export of the key for
// OpenSSL is apart.
func (b *bench) twoBoots(ctx context.Context, h *head, name string, front func(transport.TPM) (transport.TPM, error)) (two twoBoots, err error) {
	dir := filepath.Join(b.tmp, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return two, err
	}
	chip, err := testtpm.Run(dir)
	if err != nil {
		return two, err
	}
	defer chip.Stop()
	if err := h.enable(ctx, name); err != nil {
		return two, err
	}
	if two.first, err = b.boot(ctx, h, chip, name, "1", front, (*testtpm.Counter).ToStored); err != nil {
		return two, fmt.Errorf("first boot: %w", err)
	}
	if err := chip.PowerCycle(); err != nil {
		return two, err
	}
	if two.second, err = b.boot(ctx, h, chip, name, "2", front, (*testtpm.Counter).ToHandshake); err != nil {
		return two, fmt.Errorf("second boot: %w", err)
	}
	return two, nil
}

// boot runs the agent over an empty root, as an initramfs has it, and counts what reaches the chip.
func (b *bench) boot(ctx context.Context, h *head, chip *testtpm.TPM, name, nth string, front func(transport.TPM) (transport.TPM, error), count func(*testtpm.Counter) int) (one boot, err error) {
	link, err := chip.Dial()
	if err != nil {
		return one, err
	}
	defer link.Close()
	counter := testtpm.Count(link)
	var seen transport.TPM = counter
	if front != nil {
		if seen, err = front(counter); err != nil {
			return one, err
		}
		counter.Reset()
	}
	spec, closer, err := testtpm.Serve(seen, filepath.Join(chip.Dir(), "p"+nth))
	if err != nil {
		return one, err
	}
	defer closer.Close()
	pin, err := h.pin(ctx)
	if err != nil {
		return one, err
	}
	root := filepath.Join(chip.Dir(), "root"+nth)
	if err := os.Mkdir(root, 0o755); err != nil {
		return one, err
	}
	one.own, err = ownTime(ctx, b.agent, "run", "--head", "https://"+h.addr, "--ca", pin, "--node", name,
		"--tpm", spec, "--root", root, "--clock", "trust", "--wait", "10s")
	if c, ok := seen.(io.Closer); ok && front != nil {
		c.Close() // as the kernel does when the agent's file is closed
	}
	one.commands, one.kinds = count(counter), kinds(counter.Commands())
	return one, err
}

// commandNames are of the commands that the agent sends (TPM 2.0 part 2, 6.5.2).
var commandNames = map[tpm2.TPMCC]string{
	tpm2.TPMCCActivateCredential: "ActivateCredential", tpm2.TPMCCCreateLoaded: "CreateLoaded",
	tpm2.TPMCCCreatePrimary: "CreatePrimary", tpm2.TPMCCEvictControl: "EvictControl",
	tpm2.TPMCCFlushContext: "FlushContext", tpm2.TPMCCGetCapability: "GetCapability",
	tpm2.TPMCCNVDefineSpace: "NV_DefineSpace", tpm2.TPMCCNVRead: "NV_Read", tpm2.TPMCCNVReadPublic: "NV_ReadPublic",
	tpm2.TPMCCNVWrite: "NV_Write", tpm2.TPMCCObjectChangeAuth: "ObjectChangeAuth", tpm2.TPMCCPolicySecret: "PolicySecret",
	tpm2.TPMCCReadPublic: "ReadPublic", tpm2.TPMCCSign: "Sign", tpm2.TPMCCStartAuthSession: "StartAuthSession",
}

// kinds counts commands by kind, the most frequent first.
func kinds(codes []tpm2.TPMCC) string {
	count := map[tpm2.TPMCC]int{}
	for _, c := range codes {
		count[c]++
	}
	order := slices.SortedFunc(maps.Keys(count), func(a, b tpm2.TPMCC) int {
		return cmp.Or(count[b]-count[a], cmp.Compare(a, b))
	})
	var parts []string
	for _, c := range order {
		parts = append(parts, fmt.Sprintf("%d %s", count[c], cmp.Or(commandNames[c], fmt.Sprintf("%#x", uint32(c)))))
	}
	return strings.Join(parts, ", ")
}

package agent

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/agent/internal/tpm"
	"muster/internal/testtpm"
	"muster/internal/wire"
)

// interrupter cancels a context when command at arrives, or when its answer is there.
type interrupter struct {
	transport.TPM
	cancel func()
	at     int64
	after  bool
	n      atomic.Int64
}

func (i *interrupter) Send(command []byte) ([]byte, error) {
	now := i.n.Add(1) == i.at
	if now && !i.after {
		i.cancel()
	}
	response, err := i.TPM.Send(command)
	if now && i.after {
		i.cancel()
	}
	return response, err
}

// TestInterrupt ends a run at each of its TPM commands. A TPM without a resource manager keeps what is
// loaded until it is flushed, so that nothing may be left, and the next run goes on.
func TestInterrupt(t *testing.T) {
	whole := func(t transport.TPM) transport.TPM { return t }
	noSlots := func(t transport.TPM) transport.TPM {
		return testtpm.Inject(t, testtpm.Fault{Code: tpm2.TPMCCEvictControl, At: 1, Times: 99, Answer: testtpm.RC(tpm2.TPMRCNVSpace)})
	}
	for _, c := range []struct {
		name    string
		options []testtpm.Option
		double  func(transport.TPM) transport.TPM
		second  bool
		least   int
	}{
		{"first boot", nil, whole, false, 15},
		{"first boot, EK certificate", []testtpm.Option{testtpm.P256Certificate()}, whole, false, 15},
		{"first boot, no slot for the key", nil, noSlots, false, 12},
		{"second boot", nil, whole, true, 2},
		{"get, no slot for the key", nil, noSlots, true, 4},
	} {
		for _, after := range []bool{false, true} {
			name := c.name + ", before the command"
			if after {
				name = c.name + ", after it"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for at := 1; ; at++ {
					h := newHead(t)
					h.enabled = true
					m := newMachine(t, h, c.options...)
					if c.second {
						if line, err := m.runWith(c.double); err != nil {
							t.Fatal(line, err)
						}
						m.reboot()
					}
					run := (*Agent).Run
					if strings.HasPrefix(c.name, "get") {
						run = func(a *Agent, ctx context.Context) (string, error) {
							return "got", a.Get(ctx, h.url.String()+wire.PathSelf, io.Discard)
						}
					}
					fired := m.interrupt(int64(at), after, c.double, run)
					m.tpm.Stop()
					if !fired {
						if at <= c.least {
							t.Errorf("only %d commands", at-1)
						}
						return
					}
				}
			})
		}
	}
}

// interrupt is a run that is interrupted at a command, and then another; whether there was such a
// command.
func (m *machine) interrupt(at int64, after bool, double func(transport.TPM) transport.TPM, run func(*Agent, context.Context) (string, error)) bool {
	m.t.Helper()
	link, err := m.tpm.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	i := &interrupter{TPM: double(link), cancel: cancel, at: at, after: after}
	spec, closer, err := testtpm.Serve(i, filepath.Join(m.tpm.Dir(), "interrupted"))
	if err != nil {
		m.t.Fatal(err)
	}
	config := m.config
	config.TPM = spec
	a, err := New(config)
	if err != nil {
		m.t.Fatal(err)
	}
	line, err := run(a, ctx)
	if i.n.Load() >= at && err != nil && (ExitStatus(err) != StatusTryAgain || !strings.Contains(Describe(err), "hint: run it again; it goes on where it was")) {
		m.t.Errorf("command %d: status %d: %s", at, ExitStatus(err), Describe(err))
	}
	if i.n.Load() < at && err != nil {
		m.t.Fatalf("without an interruption: %v", err)
	}
	if err == nil && line == "" {
		m.t.Errorf("command %d: it ended without a word", at)
	}
	closer.Close()
	link.Close()
	m.idle(at)
	if i.n.Load() < at {
		return false
	}
	if line, err = m.runWith(double); err != nil {
		m.t.Errorf("command %d: the next run: %s %v", at, line, err)
	}
	m.idle(at)
	return true
}

// idle fails the test when anything is loaded.
func (m *machine) idle(at int64) {
	m.t.Helper()
	link, err := m.tpm.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	defer link.Close()
	left, err := tpm.New(link).Handles()
	if err != nil {
		m.t.Fatal(err)
	}
	if len(left.Transient)+len(left.Sessions) > 0 {
		m.t.Errorf("command %d: left behind: %#x", at, left)
	}
}

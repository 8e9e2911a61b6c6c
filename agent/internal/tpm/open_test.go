package tpm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"muster/internal/template"
	"muster/internal/testtpm"
)

const hash256 = crypto.SHA256

func TestOpenErrors(t *testing.T) {
	for spec, want := range map[string]error{
		"tpm":                            ErrSpec,
		"device":                         ErrSpec,
		"device:":                        ErrSpec,
		"swtpm:":                         ErrSpec,
		"swtpm:path=":                    ErrSpec,
		"swtpm:port=0":                   ErrSpec,
		"swtpm:port=99999":               ErrSpec,
		"swtpm:host=":                    ErrSpec,
		"swtpm:socket=/x":                ErrSpec,
		"mssim:host=localhost,port=2321": ErrSpec,
		"device:/nowhere/tpm0":           ErrNoTPM,
		"device:/dev/null/tpm0":          ErrNoTPM,
		"device:/etc/passwd":             ErrNoTPM,
		"swtpm:path=/nowhere/socket":     ErrNoTPM,
		"swtpm:host=127.0.0.1,port=1":    ErrNoTPM,
	} {
		d, err := Open(context.Background(), spec)
		if d != nil || !errors.Is(err, want) {
			t.Errorf("Open(%q): %v, %v expected", spec, err, want)
		}
		sentence, hint := Explain(err)
		if sentence == "" || hint == "" {
			t.Errorf("Explain(%v) = %q, %q", err, sentence, hint)
		}
		if swtpm := strings.HasPrefix(spec, "swtpm:") && want == ErrNoTPM; swtpm != strings.Contains(hint, "start swtpm") {
			t.Errorf("%s: %s", spec, hint)
		}
	}
}

func TestParseSocket(t *testing.T) {
	for spec, want := range map[string]string{
		"path=/run/s":      "unix /run/s",
		"host=h,port=99":   "tcp h:99",
		"port=99,host=::1": "tcp [::1]:99",
		"host=h":           "tcp h:2321",
		"port=1":           "tcp 127.0.0.1:1",
		"path=/a,b=c":      "unix /a,b=c",
	} {
		network, address, err := parseSocket(spec)
		if got := network + " " + address; err != nil || got != want {
			t.Errorf("parseSocket(%q) = %q, %v", spec, got, err)
		}
	}
}

func TestOpenBothSockets(t *testing.T) {
	for _, options := range [][]testtpm.Option{nil, {testtpm.TCP()}, {testtpm.Unstarted()}} {
		d := open(t, testtpm.Start(t, options...))
		p, err := d.Properties()
		if err != nil || p.Manufacturer != "IBM" || p.NVBuffer != 1024 || !p.StorageEnabled || !p.EndorsementEnabled || p.OwnerAuth || p.InLockout {
			t.Errorf("Properties = %+v, %v", p, err)
		}
	}
}

func TestDeviceIsNeverStarted(t *testing.T) {
	m := testtpm.Start(t, testtpm.Unstarted())
	counter := testtpm.Count(dial(t, m))
	_, err := New(counter).Properties()
	if !errors.Is(err, tpm2.TPMRCInitialize) || len(counter.Commands()) != 1 {
		t.Errorf("%v after %v", err, counter.Commands())
	}
}

// TestPatience has the TPM ask for it at each command of making a key.
func TestPatience(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate} {
		m := testtpm.Start(t)
		faulty := testtpm.Inject(dial(t, m), testtpm.Fault{At: 2, Times: 3, Answer: testtpm.RC(rc)}, testtpm.Fault{At: 7, Times: 20, Answer: testtpm.RC(rc)})
		d, slept := impatient(faulty)
		key := nodeKey(t, d, template.P256)
		if key.Slot() != 0 || faulty.Fired() != 23 || *slept == 0 {
			t.Errorf("%v: slot %d, %d faults, slept %v", rc, key.Slot(), faulty.Fired(), *slept)
		}
		d.Close()
		idle(t, d)
	}
}

func TestPatienceEnds(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting} {
		d, slept := impatient(testtpm.Inject(nil, testtpm.Fault{At: 1, Times: 1e6, Answer: testtpm.RC(rc)}))
		_, err := d.Properties()
		if sentence, _ := Explain(err); !errors.Is(err, rc) || sentence == "" {
			t.Errorf("%v: %v", rc, err)
		}
		if *slept < retryLimit || *slept > retryLimit+maxPause {
			t.Errorf("slept %v", *slept)
		}
	}
}

// impatient is a Device that adds up its pauses instead of making them.
func impatient(next transport.TPM) (*Device, *time.Duration) {
	slept := new(time.Duration)
	d := New(next)
	d.tpm.(*retrier).pause = func(_ context.Context, wait time.Duration) error { *slept += wait; return nil }
	return d, slept
}

// TestContextEndsWaiting: at a TPM that does not finish its command it takes the ten seconds of grace.
func TestContextEndsWaiting(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	defer close(done)
	spec, closer, err := testtpm.Serve(testtpm.Inject(nil, testtpm.Fault{At: 1, Answer: testtpm.Stall(done)}), filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	ctx, cancel := context.WithCancel(context.Background())
	d, err := Open(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	go cancel()
	if _, err := d.Properties(); err == nil {
		t.Error("a TPM that does not answer gave properties")
	}
	if _, err := d.Properties(); err == nil {
		t.Error("after a lost answer another is believed")
	}
}

func TestSocketProtocol(t *testing.T) {
	for name, answer := range map[string][]byte{
		"too large": {0x80, 1, 0, 1, 0, 0, 0, 0, 0, 0},
		"too small": {0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0},
		"short":     {0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0},
		"TPM 1.2":   {0, 0xC4, 0, 0, 0, 10, 0, 0, 0, 30},
		"tag":       {0x90, 1, 0, 0, 0, 10, 0, 0, 0, 0},
	} {
		client, server := net.Pipe()
		go func() {
			server.Read(make([]byte, 4096))
			server.Write(answer)
			server.Close()
		}()
		l := &socket{ctx: context.Background(), conn: client, release: func() bool { return true }}
		d := newDevice(context.Background(), l, l, true)
		_, err := d.Properties()
		if want := map[string]error{"too large": ErrProtocol, "too small": ErrProtocol, "tag": ErrProtocol, "TPM 1.2": ErrTPM12}[name]; err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		d.Close()
	}
}

func TestExplain(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("something else"), ""},
		{unix.EBUSY, "another program holds the TPM"},
		{unix.EACCES, "the TPM may not be opened by this user"},
		{failed("tpm2.CreatePrimary", tpm2.TPMRHOwner, tpm2.TPMRC(0x9A2)), "the TPM's owner hierarchy has a password"},
		{failed("tpm2.PolicySecret", tpm2.TPMRHEndorsement, tpm2.TPMRC(0x9A2)), "the TPM's endorsement hierarchy has a password"},
		{failed("tpm2.CreatePrimary", tpm2.TPMRHOwner, tpm2.TPMRC(0x185)), "the TPM's storage (owner) hierarchy is disabled until the next boot"},
		{failed("tpm2.Sign", 0, tpm2.TPMRC(0x921)), "the TPM is locked after failed authorizations by some program"},
		{failed("tpm2.Sign", 0, tpm2.TPMRC(0x18B)), "a key or record is gone from the TPM; it was cleared, or the slot was emptied"},
		{failed("tpm2.Sign", 0, tpm2.TPMRC(0x101)), "the TPM has failed its self-test and is out of order"},
		{failed("tpm2.EvictControl", tpm2.TPMRHOwner, tpm2.TPMRC(0x14B)), "the TPM's memory has no room left"},
	} {
		if got, _ := Explain(test.err); got != test.want {
			t.Errorf("Explain(%v) = %q, %q expected", test.err, got, test.want)
		}
	}
}

func TestErrorsNameTheCommand(t *testing.T) {
	_, err := New(testtpm.Inject(nil, testtpm.Fault{At: 1, Answer: testtpm.RC(tpm2.TPMRCFailure)})).EKs(true)
	if err == nil || !bytes.HasPrefix([]byte(err.Error()), []byte("tpm2.GetCapability: ")) {
		t.Errorf("%v", err)
	}
}

// TestDeviceLink stands a socket pair that keeps messages whole in for the character device: one write
// is one command, one read its whole answer.
func TestDeviceLink(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := testtpm.Start(t)
	raw := dial(t, m)
	go func() {
		defer unix.Close(fds[1])
		command := make([]byte, maxResponse)
		for {
			n, err := unix.Read(fds[1], command)
			if err != nil || n == 0 {
				return
			}
			response, err := raw.Send(command[:n])
			if err != nil {
				return
			}
			unix.Write(fds[1], response)
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	l := &device{fd: fds[0]}
	d := newDevice(ctx, l, l, false)
	signs(t, nodeKey(t, d, template.P256))
	cancel()
	if _, err := d.Properties(); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestLostAnswer has a good answer follow one that could not be read: it may be the earlier command's.
func TestLostAnswer(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		for _, answer := range [][]byte{{0x80, 1, 0, 1, 0, 0, 0, 0, 0, 0}, {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}} {
			server.Read(make([]byte, 4096))
			server.Write(answer)
		}
	}()
	l := &socket{ctx: context.Background(), conn: client}
	for range 2 {
		if response, err := l.Send(make([]byte, 12)); !errors.Is(err, ErrProtocol) {
			t.Errorf("Send = %x, %v", response, err)
		}
	}
}

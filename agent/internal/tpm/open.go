// Package tpm is the only package that talks to a TPM: it makes and finds the node key, proves it
// through the endorsement key, and keeps the certificate in NV.
//
// What it makes is its own to the bit (package template, [Slots]) and everything else in the TPM is
// left alone: no foreign object, NV index or hierarchy password is ever touched. Whatever is loaded
// is flushed on every path. There is no software key here, for no TPM and for no error.
//
// Sections are those of the TPM 2.0 Library Specification.
package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// DefaultSpec is the TPM of a running system: the kernel's resource manager.
const DefaultSpec = "device:/dev/tpmrm0"

var (
	// ErrNoTPM is an absent device or socket.
	ErrNoTPM = errors.New("no TPM")
	// errNoSwtpm is ErrNoTPM where swtpm was to be.
	errNoSwtpm = fmt.Errorf("%w at the socket", ErrNoTPM)
	// ErrAbsent is an ErrNoTPM where neither firmware nor kernel shows one.
	ErrAbsent = errors.New("the firmware shows no TPM")
	// errNoDriver is an ErrNoTPM where the firmware announces one.
	errNoDriver = errors.New("the firmware announces a TPM")
	// ErrSpec is a TPM specification that is none.
	ErrSpec = errors.New("not a TPM specification (device:PATH, swtpm:path=SOCKET, swtpm:host=HOST,port=PORT)")
	// ErrProtocol is an answer that is not a TPM 2.0 response (part 1, 18).
	ErrProtocol = errors.New("not a TPM 2.0 response")
	// ErrTPM12 is the answer of a TPM 1.2 to a TPM 2.0 command.
	ErrTPM12 = errors.New("the TPM is a TPM 1.2")
)

// Device is an open TPM. It is safe for concurrent use by Sign; every other method belongs to one
// goroutine.
type Device struct {
	tpm  transport.TPM
	link io.Closer // nil for a transport that the caller closes
	bare bool      // without a resource manager: see Bare

	signing sync.RWMutex // held by Sign for reading, by Close for good
	closed  bool

	mu         sync.Mutex
	persistent []uint32 // cache of the persistent handles; see handles.go
	listed     bool
	loaded     []tpm2.TPMHandle // transient objects of ours, flushed by Close at the latest
	transfer   int              // bytes that one NV command carries; 0 until the TPM was asked
	slots      Slots
	nv         map[uint32]nvState
	records    []Stored // as ReadRecords found them
	keep       int      // index in Slots.NV of the record in use, -1 for none
}

// Open opens the TPM that spec names in the spelling of tpm2-tools: "device:PATH",
// "swtpm:path=SOCKET" or "swtpm:host=HOST,port=PORT"; the empty string is [DefaultSpec]. It sends no
// command. At the context's end no other command is started but those that flush what is loaded; the
// one under way is finished, for which a TPM at a socket has ten seconds. Errors: [ErrSpec], [ErrNoTPM], else what the operating system said.
func Open(ctx context.Context, spec string) (*Device, error) {
	if spec == "" {
		spec = DefaultSpec
	}
	kind, rest, _ := strings.Cut(spec, ":")
	switch {
	case kind == "device" && rest != "":
		return openDevice(ctx, rest)
	case kind == "swtpm" && rest != "":
		return openSocket(ctx, rest)
	}
	return nil, fmt.Errorf("--tpm %s: %w", spec, ErrSpec)
}

// New returns a Device on a transport that is open already and stays the caller's to close.
func New(t transport.TPM) *Device {
	return newDevice(context.Background(), t, nil, false)
}

func newDevice(ctx context.Context, t transport.TPM, link io.Closer, startup bool) *Device {
	return &Device{
		tpm:   &retrier{ctx: ctx, next: t, startup: startup, pause: pause},
		link:  link,
		slots: DefaultSlots,
		nv:    map[uint32]nvState{},
		keep:  -1,
		bare:  true,
	}
}

// Bare says that no resource manager of the kernel's is before the TPM: what some program leaves
// loaded takes room from every other one.
func (d *Device) Bare() bool { return d.bare }

// Close waits for signatures under way, flushes what is still loaded and closes the connection.
func (d *Device) Close() error {
	// An HTTP client that was interrupted leaves its handshake, and the signature in it, behind.
	d.signing.Lock()
	d.closed = d.link != nil
	d.signing.Unlock()
	for _, h := range slices.Clone(d.loaded) {
		d.flush(h)
	}
	if d.link == nil {
		return nil
	}
	return d.link.Close()
}

// flush unloads a transient object (part 3, 28.4). When the TPM refuses, Close tries once more; that
// failing has no remedy and must not hide another error.
func (d *Device) flush(h tpm2.TPMHandle) {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(d.tpm); err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loaded = slices.DeleteFunc(d.loaded, func(l tpm2.TPMHandle) bool { return l == h })
}

func (d *Device) track(h tpm2.TPMHandle) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loaded = append(d.loaded, h)
}

func openDevice(ctx context.Context, path string) (*Device, error) {
	// Not os.OpenFile: it would make the descriptor non-blocking, and a TPM device then answers a
	// read with nothing while the command runs.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("open %s: %w: %v", path, ErrNoTPM, err)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w: not a device", path, ErrNoTPM)
	}
	l := &device{fd: fd}
	d := newDevice(ctx, l, l, false)
	d.bare = !strings.HasPrefix(filepath.Base(path), "tpmrm")
	return d, nil
}

// device is /dev/tpm0 or /dev/tpmrm0. One write is one command and one read is its whole answer.
type device struct{ fd int }

func (l *device) Send(command []byte) ([]byte, error) {
	if err := retryEINTR(func() error { _, err := unix.Write(l.fd, command); return err }); err != nil {
		return nil, fmt.Errorf("write to the TPM: %w", err)
	}
	var n int
	response := make([]byte, maxResponse)
	err := retryEINTR(func() (err error) { n, err = unix.Read(l.fd, response); return err })
	if err != nil {
		return nil, fmt.Errorf("read from the TPM: %w", err)
	}
	return response[:n], nil
}

func (l *device) Close() error { return unix.Close(l.fd) }

func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openSocket connects to swtpm's data socket.
func openSocket(ctx context.Context, rest string) (*Device, error) {
	network, address, err := parseSocket(rest)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %v", errNoSwtpm, err)
	}
	l := &socket{ctx: ctx, conn: conn}
	l.release = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now().Add(graceLimit)) })
	return newDevice(ctx, l, l, true), nil
}

func parseSocket(rest string) (network, address string, err error) {
	bad := fmt.Errorf("--tpm swtpm:%s: %w", rest, ErrSpec)
	if path, ok := strings.CutPrefix(rest, "path="); ok {
		if path == "" {
			return "", "", bad
		}
		return "unix", path, nil
	}
	host, port := "127.0.0.1", "2321" // tpm2-tss's own defaults
	for _, field := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case key == "host" && value != "":
			host = value
		case key == "port":
			if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 {
				return "", "", bad
			}
			port = value
		default:
			return "", "", bad
		}
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// socket is swtpm's data channel: commands and responses without further framing.
type socket struct {
	ctx     context.Context
	conn    net.Conn
	release func() bool
	err     error // once a response was lost, no later one can be told from it
}

func (l *socket) Send(command []byte) ([]byte, error) {
	if l.err != nil {
		return nil, l.err
	}
	response, err := l.exchange(command)
	if err != nil && l.ctx.Err() != nil {
		err = l.ctx.Err() // its grace is over
	}
	if err != nil {
		l.err = fmt.Errorf("swtpm: %w", err)
		return nil, l.err
	}
	return response, nil
}

func (l *socket) exchange(command []byte) ([]byte, error) {
	if _, err := l.conn.Write(command); err != nil {
		return nil, err
	}
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(l.conn, header); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("%w: it claims %d bytes", ErrProtocol, size)
	}
	response := make([]byte, size)
	copy(response, header)
	_, err := io.ReadFull(l.conn, response[headerSize:])
	return response, err
}

func (l *socket) Close() error {
	l.release()
	return l.conn.Close()
}

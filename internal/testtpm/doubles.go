package testtpm

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const headerSize = 10

// link is swtpm's data channel.
type link struct{ conn net.Conn }

func (l *link) Send(command []byte) ([]byte, error) {
	if _, err := l.conn.Write(command); err != nil {
		return nil, err
	}
	return frame(l.conn)
}

func (l *link) Close() error { return l.conn.Close() }

// frame reads one command or response.
func frame(r io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > 4096 {
		return nil, errors.New("testtpm: frame of a wrong size")
	}
	b := append(header, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(r, b[headerSize:])
	return b, err
}

// Serve makes t, a double say, a TPM for another program: it listens at a unix socket until the
// closer is closed. Each connection sees the same t.
func Serve(t transport.TPM, path string) (spec string, closer io.Closer, err error) {
	return serveEach(path, func() (transport.TPM, func(), error) { return t, func() {}, nil })
}

// serveEach opens a TPM for each connection. One of them at a time has a command under way.
func serveEach(path string, open func() (transport.TPM, func(), error)) (spec string, closer io.Closer, err error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return "", nil, err
	}
	var one sync.Mutex
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(open, conn, &one)
		}
	}()
	return "swtpm:path=" + path, listener, nil
}

func serve(open func() (transport.TPM, func(), error), conn net.Conn, one *sync.Mutex) {
	defer conn.Close()
	one.Lock()
	t, done, err := open()
	one.Unlock()
	if err != nil {
		return
	}
	defer func() {
		one.Lock()
		defer one.Unlock()
		done()
	}()
	for {
		command, err := frame(conn)
		if err != nil {
			return
		}
		one.Lock()
		response, err := t.Send(command)
		one.Unlock()
		if err != nil {
			return
		}
		if _, err := conn.Write(response); err != nil {
			return
		}
	}
}

func code(command []byte) tpm2.TPMCC {
	if len(command) < headerSize {
		return 0
	}
	return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
}

// Counter counts and names the commands that pass.
type Counter struct {
	next  transport.TPM
	mu    sync.Mutex
	codes []tpm2.TPMCC
	bytes int
}

// Count returns a Counter in front of next.
func Count(next transport.TPM) *Counter { return &Counter{next: next} }

func (c *Counter) Send(command []byte) ([]byte, error) {
	response, err := c.next.Send(command)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.codes = append(c.codes, code(command))
	c.bytes += len(command) + len(response)
	return response, err
}

// Commands returns the command codes so far, in order.
func (c *Counter) Commands() []tpm2.TPMCC {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.codes)
}

// ToStored returns how many of the commands a first boot took from open to the read-back of its NV
// record, or 0 if it did not come so far. The export of the key and its first use come after.
func (c *Counter) ToStored() int {
	codes := c.Commands()
	if end := slices.Index(codes, tpm2.TPMCCObjectChangeAuth); end >= 0 {
		codes = codes[:end]
	}
	return lastIndex(codes, tpm2.TPMCCNVRead) + 1
}

// ToHandshake returns how many of the commands a boot took up to its last signature, or 0.
func (c *Counter) ToHandshake() int { return lastIndex(c.Commands(), tpm2.TPMCCSign) + 1 }

func lastIndex(codes []tpm2.TPMCC, code tpm2.TPMCC) int {
	for i := len(codes) - 1; i >= 0; i-- {
		if codes[i] == code {
			return i
		}
	}
	return -1
}

// Bytes returns how many bytes went in both directions.
func (c *Counter) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Reset forgets what was counted.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.codes, c.bytes = nil, 0
}

// Killer cuts the power at one command.
type Killer struct {
	next  transport.TPM
	tpm   *TPM
	at    int
	after bool
	n     atomic.Int64 // commands so far
}

// ErrPowerCut is what a Killer answers from its command on.
var ErrPowerCut = errors.New("testtpm: the power is cut")

// CutPower returns a double in front of next that kills m at command number at, from 1: before the TPM
// sees it, or after the TPM has answered but before the answer is seen.
func (m *TPM) CutPower(next transport.TPM, at int, after bool) *Killer {
	return &Killer{next: next, tpm: m, at: at, after: after}
}

func (k *Killer) Send(command []byte) ([]byte, error) {
	n := int(k.n.Add(1))
	if n < k.at {
		return k.next.Send(command)
	}
	if n == k.at {
		if k.after {
			k.next.Send(command)
		}
		k.tpm.Kill()
	}
	return nil, ErrPowerCut
}

// Fired says whether the power was cut.
func (k *Killer) Fired() bool { return int(k.n.Load()) >= k.at }

// Fault answers in the TPM's place.
type Fault struct {
	At     int        // the first command to answer, from 1; what is sent again counts again
	Times  int        // how many commands it answers; 0 is one
	Code   tpm2.TPMCC // 0, or count only commands of this code
	Answer func(command []byte) ([]byte, error)
}

// RC answers with a response code.
func RC(rc tpm2.TPMRC) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) {
		b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
		b = binary.BigEndian.AppendUint32(b, headerSize)
		return binary.BigEndian.AppendUint32(b, uint32(rc)), nil
	}
}

// Garbage answers with a good header and nonsense behind it.
func Garbage([]byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, headerSize+40)
	b = binary.BigEndian.AppendUint32(b, 0)
	for i := range 40 {
		b = append(b, byte(0xA5^7*i))
	}
	return b, nil
}

// Truncated answers with less than a header.
func Truncated([]byte) ([]byte, error) { return []byte{0x80, 0x01, 0, 0}, nil }

// Broken fails as a transport does.
func Broken([]byte) ([]byte, error) { return nil, io.ErrUnexpectedEOF }

// Stall answers only when done is closed, and then not at all.
func Stall(done <-chan struct{}) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) {
		<-done
		return nil, io.ErrUnexpectedEOF
	}
}

// Faulty is a TPM with faults.
type Faulty struct {
	next   transport.TPM
	faults []Fault
	seen   []int
	fired  int
}

// Inject returns a double in front of next with faults.
func Inject(next transport.TPM, faults ...Fault) *Faulty {
	return &Faulty{next: next, faults: faults, seen: make([]int, len(faults))}
}

func (f *Faulty) Send(command []byte) ([]byte, error) {
	var answer func([]byte) ([]byte, error)
	for i, fault := range f.faults {
		if fault.Code != 0 && fault.Code != code(command) {
			continue
		}
		f.seen[i]++
		if n := f.seen[i]; n >= fault.At && n < fault.At+max(fault.Times, 1) {
			answer = fault.Answer
		}
	}
	if answer != nil {
		f.fired++
		return answer(command)
	}
	return f.next.Send(command)
}

// Fired returns how many commands were answered with a fault.
func (f *Faulty) Fired() int { return f.fired }

// Intruder lets another program use the TPM between two commands.
type Intruder struct {
	next transport.TPM
	at   int
	act  func(transport.TPM) error
	n    int
	err  error
}

// Meanwhile returns a double in front of next that calls act just before command number at, from 1.
func Meanwhile(next transport.TPM, at int, act func(transport.TPM) error) *Intruder {
	return &Intruder{next: next, at: at, act: act}
}

func (i *Intruder) Send(command []byte) ([]byte, error) {
	if i.n++; i.n == i.at {
		i.err = i.act(i.next)
	}
	return i.next.Send(command)
}

// Fired says whether the command came, and how the other program fared.
func (i *Intruder) Fired() (bool, error) { return i.n >= i.at, i.err }

// Package testtpm runs swtpm for tests and benchmarks, and puts doubles in front of it: one that
// counts, one that cuts the power, one that answers with faults, and one that does what the kernel's
// resource manager does. No shipped program links it.
package testtpm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

// TPM is a running swtpm and its state, which survives Kill and PowerCycle.
type TPM struct {
	dir    string // holds the state and the sockets
	config config
	port   int // of TCP, 0 for the unix socket
	mu     sync.Mutex
	child  *exec.Cmd // guarded by mu: a Killer ends it from the agent's side
}

type config struct {
	manufactured, p256, tcp, unstarted bool
}

// Option changes the TPM that Start or Run makes.
type Option func(*config)

// Manufactured runs swtpm_setup: persistent RSA 2048 (L-1) and ECC P-384 (H-3) EKs with certificates.
func Manufactured() Option { return func(c *config) { c.manufactured = true } }

// P256Certificate puts a certificate of the derived P-256 EK (L-2) at 0x01C0000A; its issuer is
// dir/ek-ca.pem.
func P256Certificate() Option { return func(c *config) { c.p256 = true } }

// TCP serves on two loopback ports, as tpm2-tools' swtpm TCTI needs it.
func TCP() Option { return func(c *config) { c.tcp = true } }

// Unstarted leaves TPM2_Startup to the client.
func Unstarted() Option { return func(c *config) { c.unstarted = true } }

// Start runs a TPM until the test ends. Without swtpm it fails the test where CI is set, and skips it
// elsewhere.
func Start(t testing.TB, options ...Option) *TPM {
	t.Helper()
	Need(t, "swtpm")
	dir, err := os.MkdirTemp("/tmp", "tpm") // not t.TempDir: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := Run(dir, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return m
}

// Need ends the test unless the program is installed: failed where CI is set, skipped elsewhere.
func Need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed, and CI must not skip", program)
	}
	t.Skipf("%s is not installed", program)
}

// Run makes a TPM whose state is in dir, which must be absolute, short and writable, and waits until
// it answers. A dir with state in it continues that TPM.
func Run(dir string, options ...Option) (*TPM, error) {
	m := &TPM{dir: dir}
	for _, option := range options {
		option(&m.config)
	}
	fresh := false
	if _, err := os.Stat(m.state()); errors.Is(err, os.ErrNotExist) {
		fresh = true
		if err := os.MkdirAll(m.state(), 0o700); err != nil {
			return nil, err
		}
	}
	if fresh && m.config.manufactured {
		if err := m.manufacture(); err != nil {
			return nil, err
		}
	}
	if err := m.start(); err != nil {
		return nil, err
	}
	if fresh && m.config.p256 {
		if err := m.certifyP256(); err != nil {
			m.Stop()
			return nil, err
		}
	}
	return m, nil
}

func (m *TPM) state() string  { return filepath.Join(m.dir, "state") }
func (m *TPM) socket() string { return filepath.Join(m.dir, "s") }

// Dir is the directory of Run.
func (m *TPM) Dir() string { return m.dir }

// Spec names the TPM to muster-agent, and with TCP to tpm2-tools too.
func (m *TPM) Spec() string {
	if m.port != 0 {
		return fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", m.port)
	}
	return "swtpm:path=" + m.socket()
}

func (m *TPM) connect() (net.Conn, error) {
	if m.port != 0 {
		return net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port)))
	}
	return net.Dial("unix", m.socket())
}

// Dial opens the TPM without any double. swtpm serves one connection at a time.
func (m *TPM) Dial() (transport.TPMCloser, error) {
	conn, err := m.connect()
	if err != nil {
		return nil, err
	}
	return &link{conn: conn}, nil
}

func (m *TPM) start() error {
	for try := 0; ; try++ {
		err := m.startOnce()
		if err == nil || !m.config.tcp || try == 5 {
			return err
		}
	}
}

func (m *TPM) startOnce() error {
	server, control := "type=unixio,path="+m.socket(), "type=unixio,path="+m.socket()+"c"
	if m.config.tcp {
		if m.port == 0 {
			port, err := twoPorts()
			if err != nil {
				return err
			}
			m.port = port
		}
		server = fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", m.port)
		control = fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", m.port+1)
	}
	flags := "not-need-init,startup-clear"
	if m.config.unstarted {
		flags = "not-need-init"
	}
	os.Remove(m.socket())
	os.Remove(m.socket() + "c")
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	child := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.state(),
		"--server", server, "--ctrl", control, "--flags", flags)
	child.Stdout, child.Stderr = log, log
	if err := child.Start(); err != nil {
		return err
	}
	m.mu.Lock()
	m.child = child
	m.mu.Unlock()
	if err := m.wait(); err != nil {
		m.Kill()
		m.port = 0
		return err
	}
	return nil
}

// wait dials until swtpm accepts: its socket exists before it listens.
func (m *TPM) wait() error {
	for range 1000 {
		conn, err := m.connect()
		if err == nil {
			return conn.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	said, _ := os.ReadFile(filepath.Join(m.dir, "log"))
	return fmt.Errorf("swtpm does not listen: %s", said)
}

func twoPorts() (int, error) {
	for range 20 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := first.Addr().(*net.TCPAddr).Port
		second, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+1)))
		first.Close()
		if err == nil {
			second.Close()
			return port, nil
		}
	}
	return 0, errors.New("no two free ports side by side")
}

// Stop ends swtpm with SIGTERM, which saves its volatile state too. Stopping twice is nothing.
func (m *TPM) Stop() { m.end(syscall.SIGTERM) }

// Kill ends swtpm with SIGKILL: a power cut.
func (m *TPM) Kill() { m.end(syscall.SIGKILL) }

func (m *TPM) end(signal syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.child == nil {
		return
	}
	m.child.Process.Signal(signal)
	m.child.Wait()
	m.child = nil
}

// PowerCycle cuts the power and starts the TPM again.
func (m *TPM) PowerCycle() error {
	m.Kill()
	return m.start()
}

// Snapshot copies the state to a new directory. The TPM must have been killed or stopped.
func (m *TPM) Snapshot(to string) error { return os.CopyFS(to, os.DirFS(m.state())) }

// Restore replaces the state by a snapshot's. The TPM must have been killed or stopped; PowerCycle
// starts it again.
func (m *TPM) Restore(from string) error {
	if err := os.RemoveAll(m.state()); err != nil {
		return err
	}
	return os.CopyFS(m.state(), os.DirFS(from))
}

// manufacture runs swtpm_setup with a certificate authority of its own in dir.
func (m *TPM) manufacture() error {
	ca := filepath.Join(m.dir, "localca")
	if err := os.MkdirAll(ca, 0o700); err != nil {
		return err
	}
	files := map[string]string{
		"localca.conf": strings.ReplaceAll("statedir = CA\nsigningkey = CA/key.pem\nissuercert = CA/cert.pem\ncertserial = CA/serial\n", "CA", ca),
		"options":      "--platform-manufacturer Muster\n--platform-version 1\n--platform-model Test\n",
		"setup.conf": strings.ReplaceAll("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = CA/localca.conf\n"+
			"create_certs_tool_options = CA/options\n", "CA", ca),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(ca, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", m.state(), "--create-ek-cert",
		"--config", filepath.Join(ca, "setup.conf"), "--overwrite").CombinedOutput()
	if err != nil {
		return fmt.Errorf("swtpm_setup: %v: %s", err, out)
	}
	return nil
}

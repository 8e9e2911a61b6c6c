package muster_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"muster/internal/testtpm"
)

// webServer is nginx or Apache, with a block of docs/operations.md for its configuration.
type webServer struct {
	name   string // as the block is marked
	needs  string // program
	config func(dir, addr, block string) string
	args   func(dir string) []string
	reload syscall.Signal
}

var webServers = []webServer{
	{"nginx", "nginx", nginxConfig, func(dir string) []string {
		return []string{"-p", dir, "-c", dir + "/conf", "-e", dir + "/log"}
	}, syscall.SIGHUP},
	{"apache", "apache2", apacheConfig, func(dir string) []string {
		return []string{"-d", dir, "-f", dir + "/conf", "-D", "FOREGROUND"}
	}, syscall.SIGUSR1},
}

func nginxConfig(dir, addr, block string) string {
	return fmt.Sprintf(`user root;
daemon off;
pid %[1]s/pid;
error_log %[1]s/log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen %[2]s ssl;
		ssl_certificate %[1]s/crt;
		ssl_certificate_key %[1]s/key;
		ssl_protocols TLSv1.3;
		%[3]s
		location / { return 200; }
	}
}
`, dir, addr, block)
}

func apacheConfig(dir, addr, block string) string {
	var load strings.Builder
	for _, module := range []string{"mpm_event", "authz_core", "socache_shmcb", "ssl", "alias"} {
		fmt.Fprintf(&load, "LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", module, module)
	}
	return load.String() + fmt.Sprintf(`User www-data
ServerName localhost
PidFile %[1]s/pid
ErrorLog %[1]s/log
Listen %[2]s
SSLEngine on
SSLCertificateFile %[1]s/crt
SSLCertificateKeyFile %[1]s/key
%[3]s
RedirectMatch 204 .*
`, dir, addr, block)
}

// TestWebServers: nginx and Apache, set up as docs/operations.md says, refuse a node that is revoked: with a CRL after
// a reload, with OCSP on the next connection. Another node is served before and after.
func TestWebServers(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range webServers {
		blocks := regexp.MustCompile("(?ms)^```"+w.name+"\n(.*?)^```$").FindAllStringSubmatch(string(document), -1)
		if len(blocks) != 2 {
			t.Fatalf("%d blocks for %s in docs/operations.md, not one for the CRL and one for OCSP", len(blocks), w.name)
		}
		for i, how := range []string{"crl", "ocsp"} {
			t.Run(w.name+"/"+how, func(t *testing.T) {
				testtpm.Need(t, w.needs)
				h := newHead(t)
				block := strings.ReplaceAll(blocks[i][1], "/var/lib/muster", h.dir)
				block = strings.ReplaceAll(block, "http://head1:8080", h.public(""))
				w.judge(t, h, block, how == "crl")
			})
		}
	}
}

func (w webServer) judge(t *testing.T, h *head, block string, reload bool) {
	t.Helper()
	good, gone := enrolSoft(t, h, "n0"), enrolSoft(t, h, "n1")
	url, process := w.start(t, h, block)
	if err := good.visit(t, url); err != nil {
		t.Fatalf("a good node is refused: %v", err)
	}
	if err := gone.visit(t, url); err != nil {
		t.Fatalf("a node is refused before it is revoked: %v", err)
	}
	if err := (&softNode{name: "nobody", head: h}).visit(t, url); err == nil {
		t.Error("control: a client without a certificate is served")
	}
	h.must("certs", "revoke", "-i", "n1", "--yes")
	if reload {
		if err := gone.visit(t, url); err != nil {
			t.Errorf("control: refused before the reload, so not for the new CRL: %v", err)
		}
		w.reloadAll(t, process)
	}
	if err := gone.visit(t, url); err == nil {
		t.Error("a revoked node is served")
	}
	if err := good.visit(t, url); err != nil {
		t.Errorf("a good node is refused: %v", err)
	}
}

// reloadAll makes the server read its files again, and waits until no worker of before is there to answer.
func (w webServer) reloadAll(t *testing.T, process *os.Process) {
	t.Helper()
	before := workers(t, process.Pid)
	if len(before) == 0 {
		t.Fatal("no workers")
	}
	if err := process.Signal(w.reload); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		now := workers(t, process.Pid)
		if len(now) > 0 && !slices.ContainsFunc(before, func(pid string) bool { return slices.Contains(now, pid) }) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the workers of before the reload are still there")
}

func workers(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// start runs the server with a certificate of the cluster's CA, until the test ends.
func (w webServer) start(t *testing.T, h *head, block string) (url string, process *os.Process) {
	t.Helper()
	dir, err := os.MkdirTemp("", "web")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca, caKey := readCA(t, h)
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, "127.0.0.1"))
	writePEM(t, dir+"/crt", "CERTIFICATE", leaf(t, key.Public(), ca, caKey, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, nil))
	for name, content := range map[string][]byte{
		"key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"conf": []byte(w.config(dir, addr, block)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(w.needs, w.args(dir)...)
	out := &logBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(dir + "/log")
			t.Logf("%s: %s%s", w.name, out, log)
		}
	})
	for range 1000 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "https://" + addr + "/", cmd.Process
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not come up", w.name)
	return "", nil
}

// visit makes one request on a connection of its own; an error unless it is served.
func (n *softNode) visit(t *testing.T, url string) error {
	t.Helper()
	client := n.client(t)
	transport := client.Transport.(*http.Transport)
	transport.DisableKeepAlives = true
	transport.TLSClientConfig.ClientSessionCache = nil
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

package vm_test

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"muster/initramfs/vm"
)

// TestImage: a root that comes from nginx, which asks each client for a certificate of the cluster's. It
// is used when it is the one that was named, and only then.
func TestImage(t *testing.T) {
	r := newRig(t)
	r.node.Memory = 768
	r.enable()
	squashfs, cpio := r.disk("root"), r.cpio()
	web := r.nginx(filepath.Dir(squashfs), filepath.Dir(cpio))
	t.Run("squashfs", func(t *testing.T) {
		r := r.part(t)
		b := r.boot(imageWords(t, web+"/0/"+filepath.Base(squashfs), squashfs))
		r.golden("image", b)
		r.says(b, `root: /run/muster has ca.pem chain.pem node.crt node.key openssl.cnf status.json`)
		r.says(b, `root: can write`)
	})
	t.Run("cpio", func(t *testing.T) {
		r := r.part(t)
		b := r.boot(imageWords(t, web+"/1/"+filepath.Base(cpio), cpio))
		r.says(b, `handing over to https://.* \(.* MiB\): /sbin/init`)
		r.says(b, `root: /run/muster has ca.pem`)
	})
	t.Run("another", func(t *testing.T) {
		r := r.part(t)
		b := r.boot(imageWords(t, web+"/1/"+filepath.Base(cpio), squashfs))
		r.golden("image-other", b)
	})
	t.Run("none", func(t *testing.T) {
		r := r.part(t)
		r.golden("image-none", r.boot(imageWords(t, web+"/0/none", squashfs)))
	})
	t.Run("stranger", func(t *testing.T) {
		out, err := exec.Command("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", strings.Replace(web, vm.HostAddr, "127.0.0.1", 1)+"/0/"+filepath.Base(squashfs)).Output()
		if err != nil || string(out) != "400" {
			t.Errorf("nginx gives the image to a client without a certificate: %s, %v", out, err)
		}
	})
}

// part is the rig for a subtest; they boot the same machine one after the other.
func (r *rig) part(t *testing.T) *rig {
	p := *r
	p.T = t
	return &p
}

func imageWords(t *testing.T, url, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("muster.image=%s muster.image-sha256=%x", url, sha256.Sum256(data))
}

// nginx serves directories at /0, /1 and so on, to clients with a certificate of the cluster's alone. Its
// own is from the cluster's CA too. It returns the URL for nodes.
func (r *rig) nginx(dirs ...string) string {
	r.Helper()
	dir := shortDir(r.T)
	port := freePort(r.T)
	state := filepath.Join(r.head.Dir, "state")
	r.tool("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=images",
		"-keyout", dir+"/key", "-out", dir+"/csr")
	if err := os.WriteFile(dir+"/ext", []byte("subjectAltName=IP:"+vm.HostAddr+"\nextendedKeyUsage=serverAuth\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	r.tool("openssl", "x509", "-req", "-in", dir+"/csr", "-CA", state+"/public/ca.pem", "-CAkey", state+"/ca/ca.key", "-days", "2", "-extfile", dir+"/ext", "-out", dir+"/crt")
	conf := fmt.Sprintf(`user root;
daemon off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen 127.0.0.1:%[2]d ssl;
		ssl_certificate %[1]s/crt;
		ssl_certificate_key %[1]s/key;
		ssl_protocols TLSv1.3;
		ssl_client_certificate %[3]s;
		ssl_verify_client on;
`, dir, port, state+"/public/ca.pem")
	for i, d := range dirs {
		conf += fmt.Sprintf("location /%d/ { alias %s/; }\n", i, d)
	}
	if err := os.WriteFile(dir+"/conf", []byte(conf+"}}\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	c := exec.Command("nginx", "-p", dir, "-c", dir+"/conf", "-e", dir+"/error.log")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Process.Signal(syscall.SIGTERM); c.Wait() })
	for range 500 {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			conn.Close()
			return fmt.Sprintf("https://%s:%d", vm.HostAddr, port)
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.Fatal("nginx does not come up")
	return ""
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

package muster_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"muster/internal/testtpm"
)

// withEST serves EST too, from the next start on.
func (h *head) withEST() *head {
	h.t.Helper()
	h.kill()
	h.est = net.JoinHostPort(h.host, strconv.Itoa(freePorts(h.t, h.host)))
	h.start()
	return h
}

// invite makes an EST client, and returns its password.
func (h *head) invite(name string, args ...string) string {
	h.t.Helper()
	var done struct {
		Passwords []struct{ Name, Password string }
	}
	h.json(&done, append([]string{"certs", "enable", "--password", "-i", name, "--json"}, args...)...)
	if len(done.Passwords) != 1 || done.Passwords[0].Name != name {
		h.t.Fatalf("passwords: %+v", done)
	}
	return done.Passwords[0].Password
}

// estClient is a program that nobody here wrote; each of its methods gives the certificate, PEM.
type estClient struct {
	needs    string
	key      func(c *estCase) // makes key.pem or key.der, and csr.b64 or csr.der
	enroll   func(c *estCase, password string) result
	reenroll func(c *estCase) result
}

// estCase is one client's directory and head.
type estCase struct {
	t    *testing.T
	h    *head
	dir  string
	name string
}

func (c *estCase) path(name string) string { return filepath.Join(c.dir, name) }

func (c *estCase) must(program string, args ...string) string {
	c.t.Helper()
	r := runProgram(c.t, program, args...)
	if r.status != 0 {
		c.t.Fatalf("%s %s: %v", program, strings.Join(args, " "), r)
	}
	return r.stdout
}

func (c *estCase) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *estCase) url(path string) string { return "https://" + c.h.est + path }

// curl posts csr.b64 and unpacks the answer with OpenSSL.
func (c *estCase) curl(path string, args ...string) result {
	c.t.Helper()
	r := runProgram(c.t, "curl", append([]string{"--silent", "--show-error", "--fail", "--cacert", c.path("ca.pem"),
		"-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64", "--data-binary", "@" + c.path("csr.b64"),
		c.url("/.well-known/est/" + path)}, args...)...)
	if r.status == 0 {
		r.stdout = c.unpack(r.stdout)
	}
	return r
}

// unpack reads base64 as GNU base64 does, and a PKCS#7 as OpenSSL does.
func (c *estCase) unpack(text string) string {
	c.t.Helper()
	c.write("answer", text)
	c.write("answer.p7", c.must("base64", "-d", c.path("answer")))
	return c.must("openssl", "pkcs7", "-inform", "DER", "-in", c.path("answer.p7"), "-print_certs")
}

var estClients = map[string]estClient{
	// The request goes over in lines of 64, as openssl base64 makes them, and by TLS 1.2.
	"curl and openssl": {
		needs: "curl",
		key: func(c *estCase) {
			c.must("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", c.path("key.pem"), "-subj", "/CN=somebody else",
				"-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:TRUE", "-outform", "DER", "-out", c.path("csr.der"))
			c.must("openssl", "base64", "-in", c.path("csr.der"), "-out", c.path("csr.b64"))
		},
		enroll: func(c *estCase, password string) result {
			return c.curl("simpleenroll", "--user", c.name+":"+password, "--tls-max", "1.2")
		},
		reenroll: func(c *estCase) result {
			return c.curl("simplereenroll", "--cert", c.path("cert.pem"), "--key", c.path("key.pem"))
		},
	},
	"gnutls and curl": {
		needs: "certtool",
		key: func(c *estCase) {
			c.write("template", "cn = \"another\"\ndns_name = \"head\"\n")
			c.must("certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp384r1", "--no-text", "--outfile", c.path("key.pem"))
			c.must("certtool", "--generate-request", "--load-privkey", c.path("key.pem"), "--template", c.path("template"), "--outder", "--no-text", "--outfile", c.path("csr.der"))
			der, err := os.ReadFile(c.path("csr.der"))
			if err != nil {
				c.t.Fatal(err)
			}
			c.write("csr.b64", base64.StdEncoding.EncodeToString(der))
		},
		enroll: func(c *estCase, password string) result {
			return c.curl("simpleenroll", "--user", c.name+":"+password, "--tlsv1.3")
		},
		reenroll: func(c *estCase) result {
			return c.curl("simplereenroll", "--cert", c.path("cert.pem"), "--key", c.path("key.pem"), "--tls-max", "1.2")
		},
	},
	"strongswan": {
		needs: "pki",
		key: func(c *estCase) {
			c.write("key.der", c.must("pki", "--gen", "--type", "ecdsa", "--size", "256"))
			c.write("csr.der", c.must("pki", "--req", "--in", c.path("key.der"), "--type", "ecdsa", "--dn", "CN=whoever"))
		},
		enroll: func(c *estCase, password string) result { return c.pki("--userpass", c.name+":"+password) },
		reenroll: func(c *estCase) result {
			return c.pki("--cert", c.path("cert.pem"), "--key", c.path("key.der"))
		},
	},
}

func (c *estCase) pki(args ...string) result {
	c.t.Helper()
	return runProgram(c.t, "pki", append([]string{"--est", "--url", "https://" + c.h.est, "--cacert", c.path("ca.pem"), "--in", c.path("csr.der"),
		"--outform", "pem"}, args...)...)
}

// TestEST: clients that nobody here wrote fetch the CA, enrol by password, enrol again, and are refused.
func TestEST(t *testing.T) {
	t.Parallel()
	h := newHead(t).withEST()
	for kind, client := range estClients {
		t.Run(kind, func(t *testing.T) {
			testtpm.Need(t, client.needs)
			testtpm.Need(t, "openssl")
			c := &estCase{t, h, t.TempDir(), "host-" + strings.Fields(kind)[0]}
			c.write("ca.pem", h.must("ca", "export"))
			password := h.invite(c.name, "--dns", c.name+".example.org", "--ip", "10.0.0.9")
			client.key(c)
			if r := client.enroll(c, password[1:]); r.status == 0 {
				t.Errorf("by a wrong password: %v", r)
			}
			first := c.got(client.enroll(c, password))
			if again := c.got(client.enroll(c, password)); again != first {
				t.Error("the same password and key give another certificate")
			}
			if got := h.record(c.name); got.Level != "software" || got.State != "issued" {
				t.Errorf("on record: %+v", got)
			}
			second := c.got(client.reenroll(c))
			third := c.got(client.reenroll(c)) // with the second, which ends the first
			if first == second || second == third {
				t.Error("no other certificate by renewal")
			}
			client.key(c) // another key, and the first key's password
			c.write("cert.pem", "")
			if r := client.enroll(c, password); r.status == 0 {
				t.Errorf("by a used password, with another key: %v", r)
			}
			h.must("certs", "revoke", "-i", c.name, "--yes")
			for what, serial := range map[string]string{"first": first, "third": third} {
				if got := runProgram(t, "openssl", "crl", "-in", filepath.Join(h.dir, "public/crl.pem"), "-noout", "-text"); !strings.Contains(got.stdout, serial) {
					t.Errorf("the %s is not on the CRL", what)
				}
			}
		})
	}
}

// got is the serial number of the certificate of an answer, which OpenSSL verifies, and becomes cert.pem.
func (c *estCase) got(r result) string {
	c.t.Helper()
	if r.status != 0 {
		c.t.Fatalf("%v\n%s", r, c.h.log)
	}
	c.write("cert.pem", r.stdout)
	for _, purpose := range []string{"sslclient", "sslserver"} {
		c.must("openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", c.name+".example.org", "-verify_ip", "10.0.0.9",
			"-CAfile", c.path("ca.pem"), "-crl_check", "-CRLfile", filepath.Join(c.h.dir, "public/crl.pem"), c.path("cert.pem"))
	}
	text := c.must("openssl", "x509", "-in", c.path("cert.pem"), "-noout", "-text")
	for want, in := range map[string]bool{
		"CN = " + c.name + "\n": true, "/host/" + c.name: true, "CA:FALSE": true, "Policies": false, "somebody else": false, "DNS:localhost": false, "/node/": false,
	} {
		if strings.Contains(text, want) != in {
			c.t.Errorf("%q in the certificate: %v\n%s", want, !in, text)
		}
	}
	return strings.TrimPrefix(strings.TrimSpace(c.must("openssl", "x509", "-in", c.path("cert.pem"), "-noout", "-serial")), "serial=")
}

// estExhibits are certificates of EST clients, with names and without.
func estExhibits(t *testing.T, h *head, dir string) []exhibit {
	t.Helper()
	var all []exhibit
	for name, args := range map[string][]string{"host": nil, "host-server": {"--dns", "host.example.org", "--ip", "10.0.0.9"}} {
		c := &estCase{t, h, t.TempDir(), name}
		c.write("ca.pem", h.must("ca", "export"))
		client := estClients["curl and openssl"]
		client.key(c)
		r := client.enroll(c, h.invite(name, args...))
		if r.status != 0 {
			t.Fatal(r)
		}
		file := filepath.Join(dir, name+".pem")
		if err := os.WriteFile(file, []byte(r.stdout), 0o644); err != nil {
			t.Fatal(err)
		}
		all = append(all, exhibit{name: name, file: file, purpose: "sslclient"})
		if args != nil {
			all = append(all, exhibit{name: name + ", serving", file: file, purpose: "sslserver"})
		}
	}
	return all
}

// TestESTCA: what strongSwan and curl fetch is what the head's nodes trust, while a CA is replaced too.
func TestESTCA(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "pki")
	testtpm.Need(t, "curl")
	h := newHead(t).withEST()
	c := &estCase{t: t, h: h, dir: t.TempDir()}
	c.write("ca.pem", h.must("ca", "export")) // the old CA stays the pin
	check := func(step string, roots int) {
		t.Helper()
		list := c.unpack(c.must("curl", "--silent", "--show-error", "--fail", "--cacert", c.path("ca.pem"), c.url("/.well-known/est/cacerts")))
		want := h.must("ca", "export")
		for block := range strings.SplitSeq(want, "-----END") {
			if _, body, ok := strings.Cut(block, "CERTIFICATE-----\n"); ok && !strings.Contains(list, body) {
				t.Errorf("%s: a CA is missing in\n%s", step, list)
			}
		}
		if n := strings.Count(list, "BEGIN CERTIFICATE"); n != roots {
			t.Errorf("%s: %d CAs, not %d", step, n, roots)
		}
		out := t.TempDir()
		c.must("pki", "--estca", "--url", "https://"+h.est, "--cacert", c.path("ca.pem"), "--caout", filepath.Join(out, "ca"), "--outform", "pem")
		files, err := filepath.Glob(out + "/*")
		if err != nil || len(files) != roots {
			t.Errorf("%s: strongSwan wrote %v, %v", step, files, err)
		}
	}
	check("one CA", 1)
	h.must("ca", "rotate")
	check("two CAs", 2)
	h.must("ca", "rotate", "--finish", "--force", "--yes")
	check("after the change", 2)
}

// TestESTOldTLS: nothing older than TLS 1.2, whatever the client offers.
func TestESTOldTLS(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "openssl")
	h := newHead(t).withEST()
	for version, good := range map[string]bool{"-tls1": false, "-tls1_1": false, "-tls1_2": true, "-tls1_3": true} {
		// Debian's OpenSSL offers old versions at security level 0 only.
		cmd := exec.Command("openssl", "s_client", "-connect", h.est, version, "-cipher", "DEFAULT:@SECLEVEL=0")
		out, err := cmd.CombinedOutput()
		if (err == nil) != good {
			t.Errorf("%s: %v\n%s", version, err, out)
		}
		if !good && !strings.Contains(string(out), "alert protocol version") {
			t.Errorf("%s is not refused by the head: %s", version, out)
		}
	}
}

// TestESTKilled kills the head at each step of an enrolment and of a renewal. After its restart the client's next try
// ends as if nothing had happened: one key, one certificate on record (I1, I2, I3).
func TestESTKilled(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "curl")
	dir := t.TempDir()
	if err := build(dir, "failpoints", "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	h := newHeadAt(t, "127.0.0.1", filepath.Join(dir, "muster")).withEST()
	client := estClients["curl and openssl"]
	for i, point := range []string{"est-claim", "est-signed", "est-stored"} {
		t.Run(point, func(t *testing.T) {
			c := &estCase{t, h, t.TempDir(), fmt.Sprintf("host%d", i)}
			c.write("ca.pem", h.must("ca", "export"))
			password := h.invite(c.name, "--dns", c.name+".example.org", "--ip", "10.0.0.9")
			client.key(c)
			c.killed("enrol", point, func() result { return client.enroll(c, password) })
			c.killed("renew", point, func() result { return client.reenroll(c) })
		})
	}
}

func (c *estCase) killed(what, point string, ask func() result) {
	c.t.Helper()
	c.h.kill()
	c.h.env = []string{"MUSTER_FAILPOINT=" + point}
	c.h.start()
	if r := ask(); r.status == 0 {
		c.t.Fatalf("%s: the head did not die: %v", what, r)
	}
	c.h.await()
	c.h.env = nil
	c.h.start()
	serial := c.got(ask())
	if got := c.h.record(c.name); !strings.EqualFold(strings.TrimLeft(got.Serial, "0"), strings.TrimLeft(serial, "0")) {
		c.t.Errorf("%s: given %s, on record %+v", what, serial, got)
	}
}

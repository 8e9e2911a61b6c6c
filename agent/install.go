package agent

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"muster/agent/internal/tpm"
	"muster/internal/durable"
	"muster/internal/journal"
	"muster/internal/wire"
)

// Where the profile pem puts its files. /run survives switch_root, so that an initramfs hands them
// over to the system without more ado.
const (
	runDir     = "/run/muster"
	fileCA     = runDir + "/ca.pem"
	fileCert   = runDir + "/node.crt"
	fileChain  = runDir + "/chain.pem"
	fileKey    = runDir + "/node.key"
	fileConf   = runDir + "/openssl.cnf"
	fileStatus = runDir + "/status.json"
)

// Status is what `muster-agent status --json` prints and status.json holds.
type Status struct {
	Node    string     `json:"node"`
	State   string     `json:"state"` // the head's word for it; issued until a head said more; expired; none
	Serial  string     `json:"serial"`
	Expires *time.Time `json:"expires"` // null where there is no certificate
	Head    string     `json:"head"`
	Pin     string     `json:"pin"`
	TPM     string     `json:"tpm"`
	Storage string     `json:"storage"` // nv, head (fetched again at each boot), none
}

// generation is one set of files that belong together.
type generation struct {
	roots         []*x509.Certificate
	leaf          *x509.Certificate
	intermediates []*x509.Certificate
	key           *tpm.Key
	status        Status
}

type file struct {
	path string
	data []byte
	mode fs.FileMode
}

// install writes the files of the profile pem. Each is replaced whole or not at all, and an unchanged
// one is not touched. node.crt comes last but for status.json: who waits for it finds the others.
func (b *boot) install(g *generation) error {
	key, err := b.keyFile(g.key)
	if err != nil {
		return tpmError(err)
	}
	files, err := g.files(key, b.absPath(runDir), b.tpmSpec())
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if key == nil {
		_ = os.Remove(b.path(fileKey)) // another key's; of this one there is none
	}
	return b.writeFiles(files)
}

// absPath is path as a program elsewhere would spell it.
func (a *Agent) absPath(file string) string {
	if abs, err := filepath.Abs(a.path(file)); err == nil {
		return abs
	}
	return a.path(file)
}

func (a *Agent) makeRunDir() error {
	dir := a.path(runDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return installError(err)
	}
	// Under a --root of somebody else's a link would lead the files, and the mode, elsewhere.
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return installError(fmt.Errorf("%s is not a directory", dir))
	}
	// Whatever the umask: programs under other users read here.
	if err := os.Chmod(dir, 0o755); err != nil {
		return installError(err)
	}
	return nil
}

func (a *Agent) writeFiles(files []file) error {
	if err := a.makeRunDir(); err != nil {
		return err
	}
	for _, f := range files {
		if same(a.path(f.path), f.data, f.mode) {
			continue
		}
		if err := durable.WriteFile(a.path(f.path), f.data, f.mode); err != nil {
			return installError(err)
		}
	}
	return nil
}

func installError(err error) error {
	return &Outcome{
		Status: StatusTryAgain, Message: fmt.Sprintf("install: %v", err), trouble: wire.InstallFailed,
		Hint: "see that the directory can be written (run as root) and has room, then run again",
	}
}

// same says whether path is already what it is to be.
func same(path string, data []byte, mode fs.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, data)
}

// keyFile returns node.key: the file that is there when it is this key's, since each export would
// look different and costs TPM commands; nil for a primary key, which has no file, and where an owner
// password, set since the key was made, keeps the export from its parent. The agent itself needs no file.
func (b *boot) keyFile(key *tpm.Key) ([]byte, error) {
	old, err := os.ReadFile(b.path(fileKey))
	if err == nil && isKeyFile(old, key) {
		return old, nil
	}
	text, err := b.tpm.PEM(key)
	if errors.Is(err, tpm.ErrPrimary) {
		b.log.Warn("there is no node.key: the node key could not be given a place in the TPM", "event", journal.NotKept, "why", cmp.Or(key.Why(), err))
		return nil, nil
	}
	if tpm.Locked(err) {
		b.log.Warn("there is no node.key: the TPM does not let the node key be exported", "event", journal.NotKept, "err", err)
		return nil, nil
	}
	return text, err
}

// isKeyFile says whether text is a TSS2 PRIVATE KEY file of key: its public area is in there.
func isKeyFile(text []byte, key *tpm.Key) bool {
	block, _ := pem.Decode(text)
	return block != nil && block.Type == "TSS2 PRIVATE KEY" && bytes.Contains(block.Bytes, key.Area())
}

// files lays a generation out, and refuses one that programs could not use. key is nil for none; dir
// is where the files will be, for programs.
func (g *generation) files(key []byte, dir, spec string) ([]file, error) {
	if len(g.roots) == 0 {
		return nil, errors.New("no CA certificate is at hand")
	}
	if !samePublic(g.key, g.leaf.PublicKey) {
		return nil, errors.New("the certificate is not the key's")
	}
	status, err := json.Marshal(g.status)
	if err != nil {
		return nil, err
	}
	leaf := pemOf(g.leaf)
	list := []file{{fileCA, pemOf(g.roots...), 0o644}}
	if key != nil {
		list = append(list, file{fileKey, key, 0o600})
	}
	return append(list,
		file{fileConf, opensslConf(dir, spec), 0o644},
		file{fileChain, append(bytes.Clone(leaf), pemOf(g.intermediates...)...), 0o644},
		file{fileCert, leaf, 0o644},
		file{fileStatus, append(status, '\n'), 0o644},
	), nil
}

func pemOf(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// opensslConf makes OpenSSL 3 use the key in the TPM through tpm2-openssl. The property query keeps
// digests, ciphers and random numbers off the TPM, without which version 1.1.1 (Debian 12) fails in
// TLS. That version also ignores tcti here, so that a TPM elsewhere than /dev/tpmrm0 needs the
// environment variable; and it wants tpm2-abrmd, since the kernel's resource manager has too few
// places for its sessions.
func opensslConf(dir, spec string) []byte {
	if spec == "device:/dev/tpm0" {
		spec = tpm.DefaultSpec
	}
	in := func(file string) string { return filepath.Join(dir, filepath.Base(file)) }
	return fmt.Appendf(nil, `# Written by muster-agent. For programs that use OpenSSL 3 and the provider tpm2 (tpm2-openssl):
#   OPENSSL_CONF=%s curl --cert %s --key %s --cacert %s https://…
# tpm2-openssl 1.1 (Debian 12) needs tpm2-abrmd running for TLS, and takes no tcti from this file: set
# TPM2OPENSSL_TCTI=%s where that is not what it finds by itself.
openssl_conf = muster

[muster]
providers = muster_providers
alg_section = muster_algorithms

[muster_providers]
default = muster_default
tpm2 = muster_tpm2

[muster_default]
activate = 1

[muster_tpm2]
activate = 1
tcti = %s

[muster_algorithms]
default_properties = ?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes,tpm2.rand!=yes
`, in(fileConf), in(fileChain), in(fileKey), in(fileCA), spec, spec)
}

// uninstall removes what install wrote, and says whether there was any.
func (a *Agent) uninstall() (removed bool, failed error) {
	for _, f := range []string{fileCert, fileChain, fileKey, fileConf, fileStatus, fileCA, fileForgotten} {
		err := os.Remove(a.path(f))
		removed = removed || err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil {
		_ = os.Remove(a.path(runDir)) // unless something else is in it
	}
	return removed, failed
}

// lastStatus reads status.json, for what only a head can say; the zero Status where there is none.
func (a *Agent) lastStatus() Status {
	var s Status
	b, err := os.ReadFile(filepath.Clean(a.path(fileStatus)))
	if err != nil || json.Unmarshal(b, &s) != nil {
		return Status{}
	}
	return s
}

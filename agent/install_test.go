package agent

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crypto/x509"

	"muster/agent/internal/tpm"
)

// testGeneration is one whose key needs no TPM as long as nothing signs.
func testGeneration(t *testing.T) *generation {
	t.Helper()
	authority := newCA(t, "ca")
	private := newKey(t)
	key, err := tpm.New(nil).KeyAt(0x81004E00, private.Public())
	if err != nil {
		t.Fatal(err)
	}
	leaf := authority.node(t, "n0", private.Public(), nil)
	return &generation{
		roots: []*x509.Certificate{authority.cert}, leaf: leaf, key: key,
		status: Status{Node: "n0", State: "issued", Serial: serialHex(leaf.SerialNumber), Expires: &leaf.NotAfter, Storage: "nv"},
	}
}

func keyPEM(g *generation) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: g.key.Area()})
}

func TestInstall(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	g := testGeneration(t)
	a := &Agent{root: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	files, err := g.files(keyPEM(g), runDir, "device:/dev/tpmrm0")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.writeFiles(files); err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{"ca.pem": 0o644, "node.crt": 0o644, "chain.pem": 0o644, "node.key": 0o600, "openssl.cnf": 0o644, "status.json": 0o644}
	entries, err := os.ReadDir(a.path(runDir))
	if err != nil || len(entries) != len(want) {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != want[e.Name()] {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(a.path(runDir)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	var status map[string]any
	b, _ := os.ReadFile(a.path(fileStatus))
	if err := json.Unmarshal(b, &status); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"node", "state", "serial", "expires", "head", "pin", "tpm", "storage"} {
		if _, ok := status[field]; !ok || len(status) != 8 {
			t.Errorf("status.json: %v", status)
		}
	}
	if a.lastStatus().Serial != g.status.Serial {
		t.Errorf("read back: %+v", a.lastStatus())
	}
}

// TestInstallLeavesUnchangedFilesAlone: not even the inode changes; a wrong mode or type is mended.
func TestInstallLeavesUnchangedFilesAlone(t *testing.T) {
	g := testGeneration(t)
	a := &Agent{root: t.TempDir()}
	install := func() {
		t.Helper()
		files, err := g.files(keyPEM(g), runDir, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.writeFiles(files); err != nil {
			t.Fatal(err)
		}
	}
	inode := func(path string) uint64 {
		info, err := os.Lstat(a.path(path))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	install()
	before := map[string]uint64{}
	for _, f := range []string{fileCA, fileKey, fileCert, fileChain, fileConf, fileStatus} {
		before[f] = inode(f)
	}
	g.status.State = "active"
	os.Chmod(a.path(fileKey), 0o644)
	os.Remove(a.path(fileChain))
	os.Symlink("node.crt", a.path(fileChain)) // the same content, by chance
	install()
	for f, ino := range before {
		changed := inode(f) != ino
		if want := f == fileStatus || f == fileKey; f != fileChain && changed != want {
			t.Errorf("%s: rewritten %v", f, changed)
		}
	}
	for f, mode := range map[string]fs.FileMode{fileKey: 0o600, fileChain: 0o644} {
		if info, err := os.Lstat(a.path(f)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}

// TestInstallRefusesWhatDoesNotFit: nothing is written then.
func TestInstallRefusesWhatDoesNotFit(t *testing.T) {
	g, other := testGeneration(t), testGeneration(t)
	g.leaf = other.leaf
	if _, err := g.files(nil, runDir, ""); err == nil {
		t.Error("a certificate for another key")
	}
	g = testGeneration(t)
	g.roots = nil
	if _, err := g.files(nil, runDir, ""); err == nil {
		t.Error("no CA")
	}
}

// TestInstallIsNeverTorn stops writing at each file in turn: every file is the old one or the new one.
func TestInstallIsNeverTorn(t *testing.T) {
	first, second := testGeneration(t), testGeneration(t)
	old, err := first.files(keyPEM(first), runDir, "")
	if err != nil {
		t.Fatal(err)
	}
	next, err := second.files(keyPEM(second), runDir, "")
	if err != nil {
		t.Fatal(err)
	}
	for stop := range next {
		a := &Agent{root: t.TempDir()}
		if err := a.writeFiles(old); err != nil {
			t.Fatal(err)
		}
		// A directory in the way makes the write of this one file fail.
		blocked := a.path(next[stop].path)
		os.Remove(blocked)
		os.MkdirAll(filepath.Join(blocked, "x"), 0o755)
		err := a.writeFiles(next)
		if ExitStatus(err) != StatusTryAgain || !strings.Contains(Describe(err), "hint: ") {
			t.Fatalf("got %v", err)
		}
		for i := range next {
			b, err := os.ReadFile(a.path(next[i].path))
			switch {
			case i == stop:
			case err != nil:
				t.Errorf("%s: %v", next[i].path, err)
			case i < stop && !bytes.Equal(b, next[i].data), i > stop && !bytes.Equal(b, old[i].data):
				t.Errorf("stopped at %s: %s is neither", next[stop].path, next[i].path)
			}
		}
		left, _ := filepath.Glob(a.path(runDir) + "/.*tmp*")
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestIsKeyFile(t *testing.T) {
	g, other := testGeneration(t), testGeneration(t)
	if !isKeyFile(keyPEM(g), g.key) {
		t.Error("its own file is not recognised")
	}
	for name, text := range map[string][]byte{
		"another key": keyPEM(other), "torn": keyPEM(g)[:40], "nothing": nil,
		"another kind": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: g.key.Area()}),
	} {
		if isKeyFile(text, g.key) {
			t.Errorf("%s is taken for the key's", name)
		}
	}
}

func TestUninstall(t *testing.T) {
	g := testGeneration(t)
	a := &Agent{root: t.TempDir()}
	files, err := g.files(keyPEM(g), runDir, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.writeFiles(files); err != nil {
		t.Fatal(err)
	}
	if removed, err := a.uninstall(); err != nil || !removed {
		t.Fatal(removed, err)
	}
	if _, err := os.Stat(a.path(runDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if removed, err := a.uninstall(); err != nil || removed {
		t.Errorf("twice: %v, %v", removed, err)
	}
}

// TestInstallFollowsNoLink: a link in the place of the directory leads no file elsewhere.
func TestInstallFollowsNoLink(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Chmod(elsewhere, 0o700); err != nil {
		t.Fatal(err)
	}
	a := &Agent{root: root}
	if err := os.MkdirAll(filepath.Dir(a.path(runDir)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, a.path(runDir)); err != nil {
		t.Fatal(err)
	}
	if err := a.writeFiles([]file{{fileCert, []byte("x"), 0o644}}); err == nil {
		t.Error("installed through a link")
	}
	info, err := os.Stat(elsewhere)
	if entries, _ := os.ReadDir(elsewhere); err != nil || info.Mode().Perm() != 0o700 || len(entries) > 0 {
		t.Errorf("what the link leads to was changed: %v, %v", info.Mode(), entries)
	}
}

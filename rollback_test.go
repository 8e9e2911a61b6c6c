package muster_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/internal/testtpm"
)

// serveOn starts the daemon where it may be that it signs nothing, and is not ready.
func (h *head) serveOn() {
	h.t.Helper()
	h.startServe()
	h.awaitPath("/healthz")
}

type headStatus struct {
	Signing bool
	Reason  string
	Store   struct{ Epoch, Entries uint64 }
	CRL     struct{ Number int64 }
	Unknown int
}

func (h *head) status() (s headStatus) {
	h.t.Helper()
	h.json(&s, "status", "--json")
	return s
}

// rolledBack is what is wrong after a restore of a state in which n0 had an open grant that was then used.
// Nothing should be.
func rolledBack(t *testing.T, program string) (wrong []string) {
	t.Helper()
	h := newHeadAt(t, "127.0.0.1", program)
	backup := filepath.Join(t.TempDir(), "backup")
	h.must("certs", "enable", "-i", "n[0-1]")
	h.must("backup", backup)
	first := newNode(t, h, "n0", testtpm.P256Certificate())
	first.mustBoot()
	for range 3 { // CRLs that others have seen
		h.kill()
		h.start()
	}
	before := h.status()
	h.kill()
	restored := runProgram(t, program, "restore", "--dir", h.dir, "--yes", backup)
	if restored.status != 0 {
		t.Fatalf("restore: %v", restored)
	}
	h.start()
	after := h.status()
	if after.Store.Epoch <= before.Store.Epoch {
		wrong = append(wrong, fmt.Sprintf("epoch %d after %d", after.Store.Epoch, before.Store.Epoch))
	}
	if after.CRL.Number <= before.CRL.Number {
		wrong = append(wrong, fmt.Sprintf("CRL %d after %d", after.CRL.Number, before.CRL.Number))
	}
	// The same machine with another key: the grant that it had used is open in the backup.
	if r := first.agent("forget", "--key"); r.status != 0 {
		t.Fatalf("forget: %v", r)
	}
	if r := first.boot("--wait", "1s"); r.status == 0 {
		wrong = append(wrong, "n0 got a certificate for a second key")
	}
	if r := newNode(t, h, "n1").boot("--wait", "1s"); r.status == 0 {
		wrong = append(wrong, "n1 used a grant from before the restore")
	}
	return wrong
}

// TestRestore: enable, enrol, restore an older backup, enrol with another key: refused. And
// each step that is left out is noticed.
func TestRestore(t *testing.T) {
	t.Parallel()
	if wrong := rolledBack(t, filepath.Join(bin, "muster")); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
	for name, c := range map[string]struct {
		changes []change
		want    string
	}{
		"grants stay open": {[]change{{"signer/restore.go", `s.Grant, changed = nil, true`, `changed = true`}}, "a second key"},
		"the epoch stays":  {[]change{{"signer/restore.go", `max(g.Epoch, seen.epoch) + 1`, `g.Epoch`}}, "epoch "},
		"CRLs begin anew": {[]change{
			{"signer/restore.go", `b.put(put(prefixCRL+id, crl))`, `func(string) error { return nil }(id)`},
			{"signer/crl.go", `max(last.Number, ca.publishedNumber(), h.book.Load().crl().Number) + 1`, `last.Number + 1`},
		}, "CRL "},
	} {
		t.Run("control: "+name, func(t *testing.T) {
			if wrong := rolledBack(t, brokenHead(t, c.changes...)); !strings.Contains(strings.Join(wrong, "\n"), c.want) {
				t.Errorf("not noticed, only: %q", wrong)
			}
		})
	}
}

// TestOlderStorePutBack: an older store.db that is copied over the newest one signs nothing, until somebody says how
// to go on.
func TestOlderStorePutBack(t *testing.T) {
	t.Parallel()
	h := newHead(t)
	h.must("certs", "enable", "-i", "n[0-1]")
	h.kill()
	db := filepath.Join(h.dir, "store.db")
	older := readFile(t, db)
	h.start()
	n := newNode(t, h, "n0", testtpm.P256Certificate())
	n.mustBoot()
	h.kill() // by a kill: the witness must know of the enrolment all the same
	newest := readFile(t, db)
	writeFile(t, db, older)
	h.serveOn()
	if s := h.status(); s.Signing || s.Reason != "rollback" {
		t.Errorf("status %+v", s)
	}
	n.agent("forget", "--key")
	if r := n.boot("--wait", "1s"); r.status != 75 {
		t.Errorf("with another key: %v", r)
	} else if !strings.Contains(r.stderr, "hint: on the head: muster status; ") {
		t.Errorf("run does not lead to the head: %v", r)
	}
	if r := n.agent("doctor", "--head", h.url(), "--ca", h.pin); !strings.Contains(r.stdout, " on the head: muster status; ") {
		t.Errorf("doctor does not lead to the head: %v", r)
	}
	if why := h.must("why", "n0"); !strings.HasPrefix(why, "this head signs nothing: ") {
		t.Errorf("why says %s", why)
	}
	if issued := h.issues("n0"); len(issued) != 0 {
		t.Errorf("signed: %v", issued)
	}
	var ca struct{ CRL string }
	h.json(&ca, "ca", "show", "--json")
	if resp, err := http.Get(ca.CRL); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the CRL is not served: %v", err)
	} else {
		resp.Body.Close()
	}
	// The older store goes on writing its journal; that does not make it the newest.
	h.must("certs", "disable", "-i", "n1")
	for range 20 {
		h.must("certs", "enable", "-i", "n1")
	}
	h.kill()
	h.serveOn()
	if s := h.status(); s.Signing {
		t.Errorf("a longer journal of another past signs: %+v", s)
	}
	h.kill()
	longer := readFile(t, db)
	writeFile(t, db, newest)
	h.start() // it signs
	if len(h.issues("n0")) != 1 {
		t.Error("the newest store is another")
	}
	h.kill()
	writeFile(t, db, longer)
	if r := runProgram(t, h.muster, "restore", "--dir", h.dir, "--accept", "--yes"); r.status != 0 {
		t.Fatalf("accept: %v", r)
	}
	h.start()
	if r := n.boot("--wait", "1s"); r.status != 75 {
		t.Errorf("after accept, with another key: %v", r)
	}
	h.must("certs", "enable", "-i", "n0")
	n.mustBoot()
	h.kill()
	writeFile(t, db, newest) // was good before accept
	h.serveOn()
	if s := h.status(); s.Signing {
		t.Errorf("a store of an earlier epoch signs: %+v", s)
	}
}

// TestWitnessTakenAway: without its witness, or with another's, a store is not signed from.
func TestWitnessTakenAway(t *testing.T) {
	t.Parallel()
	h, other := newHead(t), newHead(t)
	h.kill()
	other.kill()
	path := filepath.Join(h.dir, "ca/witness")
	good := readFile(t, path)
	for name, change := range map[string]func(){
		"gone":     func() { os.Remove(path) },
		"empty":    func() { writeFile(t, path, nil) },
		"another":  func() { writeFile(t, path, readFile(t, filepath.Join(other.dir, "ca/witness"))) },
		"edited":   func() { writeFile(t, path, []byte(strings.ReplaceAll(string(good), `"seq":`, `"seq":9`))) },
		"directed": func() { os.Remove(path); os.Symlink("/dev/null", path) },
	} {
		os.Remove(path)
		writeFile(t, path, good)
		change()
		h.serveOn()
		if s := h.status(); s.Signing || s.Reason != "rollback" {
			t.Errorf("%s: %+v", name, s)
		}
		h.kill()
	}
	os.Remove(path)
	writeFile(t, path, good)
	h.start() // it signs
	h.kill()
	// Torn by a power cut: the other slot speaks.
	torn := []byte(strings.Replace(string(good), "witness", "witXXXX", 1))
	writeFile(t, path, torn)
	h.start()
}

// TestBackupHoldsNoKeys, neither in the clear nor in any form that grep finds; with keys it is age's.
func TestBackupHoldsNoKeys(t *testing.T) {
	t.Parallel()
	h := newHead(t)
	h.must("certs", "enable", "-i", "n0")
	newNode(t, h, "n0").mustBoot()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	writeFile(t, secret, []byte("a long passphrase\n"))
	plain, sealed := filepath.Join(dir, "plain"), filepath.Join(dir, "sealed")
	h.must("backup", plain)
	h.must("backup", "--with-keys", "--passphrase", secret, sealed)
	for _, path := range []string{plain, sealed} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
		for form, text := range secretForms(t, h.dir) {
			for where, content := range backupContents(t, path) {
				if strings.Contains(content, text) {
					t.Errorf("%s: %s holds %s", filepath.Base(path), where, form)
				}
			}
		}
	}
	if !strings.Contains(strings.Join(values(backupContents(t, sealed)), ""), "age-encryption.org/v1") {
		t.Error("no keys in the backup with keys, so this test shows nothing")
	}
	// A head on another machine, from the file and the passphrase alone.
	h.kill()
	moved := *h
	moved.dir = filepath.Join(dir, "moved")
	if r := runProgram(t, h.muster, "restore", "--dir", moved.dir, "--yes", plain); r.status == 0 {
		t.Errorf("restored without a CA: %v", r)
	}
	wrong := filepath.Join(dir, "wrong")
	writeFile(t, wrong, []byte("another\n"))
	if r := runProgram(t, h.muster, "restore", "--dir", moved.dir, "--yes", "--passphrase", wrong, sealed); r.status == 0 {
		t.Errorf("restored with a wrong passphrase: %v", r)
	}
	if r := runProgram(t, h.muster, "restore", "--dir", moved.dir, "--yes", "--passphrase", secret, sealed); r.status != 0 {
		t.Fatalf("restore: %v", r)
	}
	moved.start()
	t.Cleanup(moved.kill)
	if got := moved.record("n0").State; got != "active" {
		t.Errorf("n0 is %s", got)
	}
	for name, mode := range map[string]os.FileMode{"ca/ca.key": 0o600, "ca/witness": 0o600, "ca/witness.key": 0o600, "epoch.key": 0o600, "store.db": 0o600} {
		if info, err := os.Stat(filepath.Join(moved.dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// backupContents are a backup as it is and, in the clear, what its lines hold in base64.
func backupContents(t *testing.T, path string) map[string]string {
	t.Helper()
	whole := string(readFile(t, path))
	contents := map[string]string{"the file": whole}
	for i, line := range strings.Split(strings.TrimSpace(whole), "\n") {
		var l struct {
			Key                string
			Value, Entry, Keys []byte
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		contents[fmt.Sprintf("line %d %s", i+1, l.Key)] = string(l.Value) + string(l.Entry) + string(l.Keys)
	}
	return contents
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// secretForms are the CA's key, the epoch keys and the witness's, as they may stand in a file.
func secretForms(t *testing.T, dir string) map[string]string {
	t.Helper()
	forms := map[string]string{}
	for i, line := range strings.Split(string(readFile(t, filepath.Join(dir, "ca/ca.key"))), "\n") {
		if i == 1 || i == 2 { // the third line is the public half, which certificates have, too
			forms[fmt.Sprintf("line %d of the CA's key", i)] = line[:16]
			forms[fmt.Sprintf("line %d of the CA's key, raw", i)] = string(unbase64(t, line)[:16])
		}
	}
	var ring struct{ Epochs []struct{ Key string } }
	if err := json.Unmarshal(readFile(t, filepath.Join(dir, "epoch.key")), &ring); err != nil {
		t.Fatal(err)
	}
	for _, e := range ring.Epochs {
		forms["an epoch key"] = e.Key
		forms["an epoch key, raw"] = string(unhex(t, e.Key))
	}
	forms["the witness's key"] = string(readFile(t, filepath.Join(dir, "ca/witness.key")))
	if len(forms) < 5 {
		t.Fatalf("found only %d secrets", len(forms))
	}
	return forms
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/youmark/pkcs8"

	"muster/internal/testtpm"
)

// openssl runs it with passphrase in a file, and returns what it printed.
func openssl(t *testing.T, passphrase string, args ...string) ([]byte, error) {
	t.Helper()
	testtpm.Need(t, "openssl")
	file := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(file, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "PASS", "file:"+file)
	}
	return exec.Command("openssl", args...).Output()
}

// TestEncryptedKey: OpenSSL decrypts what we encrypt, and we what OpenSSL does, with its usual ciphers.
func TestEncryptedKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := marshalKey(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	const word = "correct horse, Batterie & 🐎"
	ours, err := marshalKey(key, Passphrase(word))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	got, err := openssl(t, word, "pkey", "-in", in("ours", ours), "-passin", "PASS")
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("OpenSSL reads %q (%v)", got, err)
	}
	if _, err := openssl(t, "another", "pkey", "-in", filepath.Join(dir, "ours"), "-passin", "PASS", "-noout"); err == nil {
		t.Error("OpenSSL takes another passphrase")
	}
	for _, how := range [][]string{
		{"-v2", "aes-256-cbc"}, {"-v2", "aes-128-cbc"}, {"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1"}, {"-scrypt"},
	} {
		args := append([]string{"pkcs8", "-topk8", "-in", in("plain", plain), "-passout", "PASS"}, how...)
		theirs, err := openssl(t, word, args...)
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := parseKey(theirs, Passphrase(word)); err != nil || !key.Equal(parsed) {
			t.Errorf("%v: %v", how, err)
		}
		if _, err := parseKey(theirs, Passphrase("another")); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%v, another passphrase: %v", how, err)
		}
		if _, err := parseKey(theirs, nil); !errors.Is(err, ErrNoPassphrase) {
			t.Errorf("%v, no passphrase: %v", how, err)
		}
	}
}

// TestDamagedKey: whatever stands in the file, reading it ends, and in an error where the key is another one:
// authority.check compares it with the certificate.
func TestDamagedKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	quick := pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 1000, HMACHash: crypto.SHA256}}
	good, err := pkcs8.MarshalPrivateKey(key, []byte("word"), &quick)
	if err != nil {
		t.Fatal(err)
	}
	read := func(der []byte) error {
		_, err := parseKey(pem.EncodeToMemory(&pem.Block{Type: encryptedKey, Bytes: der}), Passphrase("word"))
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		if err := read(good[:i]); err == nil || errors.Is(err, ErrPassphrase) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
		if bytes.HasPrefix(good[max(0, i-2):], []byte{2, 2, 3, 0xe8}) {
			continue // the count of iterations: more than there is time for are no damage that can be seen
		}
		der := bytes.Clone(good)
		der[i] ^= 0x15
		read(der)
	}
	for _, text := range []string{"", "key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: good}))} {
		if _, err := parseKey([]byte(text), Passphrase("word")); err == nil {
			t.Errorf("%q is a key", text)
		}
	}
}

// TestPassphraseIsNotPrinted in any form.
func TestPassphraseIsNotPrinted(t *testing.T) {
	word := Passphrase("tell nobody")
	plan := Plan{Passphrase: word}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "passphrase", word, "plan", plan)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "passphrase", word)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+verb, word, plan)
	}
	for form, text := range forms("passphrase", word) {
		if bytes.Contains(log.Bytes(), text) {
			t.Errorf("%s is in %s", form, log.Bytes())
		}
	}
	if _, err := json.Marshal(plan); err == nil {
		t.Error("it is marshalled")
	}
}

// TestOpenWithPassphrase: a head starts with the right passphrase only, and otherwise changes nothing.
func TestOpenWithPassphrase(t *testing.T) {
	s := newSite(t)
	encrypted, err := marshalKey(s.ca().key, Passphrase("word"))
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.dir, caKeyFile), encrypted, 0o600))
	before := len(s.journal())
	open := func(passphrase string) error {
		_, err := Open(context.Background(), Config{Dir: s.dir, Store: s.Head.store, Passphrase: Passphrase(passphrase), Now: s.now})
		return err
	}
	if err := open(""); !errors.Is(err, ErrNoPassphrase) {
		t.Errorf("none: %v", err)
	}
	if err := open("Word"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("another: %v", err)
	}
	equal(t, "entries that were made", len(s.journal())-before, 0)
	s.must(open("word"))
}

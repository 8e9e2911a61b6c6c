package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"muster/internal/journal"
	"muster/signer"
)

// maxPassphrase is what OpenSSL takes from a file, too.
const maxPassphrase = 1023

const passphraseHint = "put it into /etc/credstore/muster.ca-passphrase, for systemd, or give --ca-passphrase FILE"

// servePassphrase is what decrypts the CA's key: systemd's credential (systemd.exec(5), LoadCredential=), else
// the file of --ca-passphrase, else nothing.
func servePassphrase(path string) (signer.Passphrase, error) {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		credential := filepath.Join(dir, "ca-passphrase")
		if _, err := os.Lstat(credential); !errors.Is(err, fs.ErrNotExist) {
			path = credential
		}
	}
	passphrase, err := readPassphrase(path)
	return passphrase, asEvent(journal.CALocked, err)
}

// readPassphrase reads the one line of a file, or of standard input for "-"; nothing for "".
func readPassphrase(path string) (signer.Passphrase, error) {
	return readSecret(path, "CA's key", "--ca-passphrase")
}

// readSecret is readPassphrase for the passphrase of what, in the file that flag names.
func readSecret(path, what, flag string) (signer.Passphrase, error) {
	what = "passphrase of the " + what
	var in io.Reader = os.Stdin
	switch path {
	case "":
		return nil, nil
	case "-":
		path = "standard input"
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, fail(exitUsage, "give "+flag+" a file that can be read", "%s: %v", what, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxPassphrase+2))
	text = bytes.TrimSuffix(text, []byte("\n"))
	switch {
	case err != nil:
		return nil, fail(exitUsage, "give "+flag+" a file that can be read", "%s: %v", what, err)
	case len(text) == 0:
		return nil, fail(exitUsage, "it is one line", "%s: %s is empty", what, path)
	case len(text) > maxPassphrase:
		return nil, fail(exitUsage, "write a shorter one", "%s: more than %d bytes in %s", what, maxPassphrase, path)
	case bytes.ContainsAny(text, "\n\x00"):
		return nil, fail(exitUsage, "it is one line", "%s: %s has more than one line", what, path)
	}
	return text, nil
}

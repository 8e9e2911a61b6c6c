package signer

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/youmark/pkcs8"
)

// Passphrase decrypts the CA's key. Like the key it refuses to be printed.
type Passphrase []byte

func (Passphrase) Format(f fmt.State, _ rune)   { io.WriteString(f, "(passphrase)") } // whatever the verb
func (Passphrase) LogValue() slog.Value         { return slog.StringValue("(passphrase)") }
func (Passphrase) MarshalJSON() ([]byte, error) { return nil, errors.New("a secret is not marshalled") }

var _ json.Marshaler = Passphrase(nil)

var (
	// ErrNoPassphrase: the CA's key is encrypted, and there is no passphrase.
	ErrNoPassphrase = errors.New("CA key: it is encrypted, and there is no passphrase")
	// ErrPassphrase: the CA's key is encrypted with another passphrase.
	ErrPassphrase = errors.New("CA key: the passphrase does not fit")
)

const (
	plainKey     = "PRIVATE KEY"           // RFC 5958, and RFC 7468, 10
	encryptedKey = "ENCRYPTED PRIVATE KEY" // RFC 7468, 11
)

// encryption of the CA's key is PBES2 (RFC 8018, 6.2): PBKDF2 with HMAC-SHA-256, as often as OWASP asks
// for, and AES-256-CBC. OpenSSL reads it.
var encryption = pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
}

// marshalKey writes a private key as PKCS#8, encrypted unless there is no passphrase.
func marshalKey(key crypto.Signer, passphrase Passphrase) ([]byte, error) {
	block := &pem.Block{Type: plainKey}
	if len(passphrase) > 0 {
		block.Type = encryptedKey
	}
	var err error
	if block.Bytes, err = pkcs8.MarshalPrivateKey(key, passphrase, &encryption); err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// parseKey reads what marshalKey or OpenSSL wrote. Errors: ErrNoPassphrase, ErrPassphrase, else what is
// wrong with the file.
func parseKey(text []byte, passphrase Passphrase) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	var parsed any
	var err error
	switch {
	case block == nil || block.Type != plainKey && block.Type != encryptedKey:
		return nil, errors.New("CA key: not a PEM private key")
	case block.Type == plainKey:
		if parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
			return nil, errors.New("CA key: not PKCS#8")
		}
	case len(passphrase) == 0:
		return nil, ErrNoPassphrase
	default:
		if parsed, err = decrypt(block.Bytes, passphrase); err != nil {
			return nil, err
		}
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("CA key: cannot sign")
	}
	return key, nil
}

// decrypt leaves out what the library says of a wrong passphrase, which it knows by nothing but the
// garbage that comes of it.
func decrypt(der []byte, passphrase Passphrase) (key any, err error) {
	defer func() {
		// The library hands lengths to crypto/cipher as the file has them.
		if recover() != nil {
			key, err = nil, errors.New("CA key: damaged")
		}
	}()
	key, _, err = pkcs8.ParsePrivateKey(der, passphrase)
	if err != nil && err.Error() == "pkcs8: incorrect password" {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, fmt.Errorf("CA key: %v", err)
	}
	return key, nil
}

func isEncrypted(text []byte) bool {
	block, _ := pem.Decode(text)
	return block != nil && block.Type == encryptedKey
}

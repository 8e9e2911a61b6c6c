package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/testtpm"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func pemBytes(t *testing.T, d *Device, key *Key) []byte {
	t.Helper()
	file, err := d.PEM(key)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(file)
	if block == nil || len(rest) != 0 || block.Type != "TSS2 PRIVATE KEY" {
		t.Fatalf("PEM: %s", file)
	}
	return block.Bytes
}

// TestOpenSSLSigns uses the exported key with OpenSSL's tpm2 provider, under either parent.
func TestOpenSSLSigns(t *testing.T) {
	testtpm.Need(t, "openssl")
	for _, alg := range algorithms {
		for _, persistent := range []bool{false, true} {
			m := testtpm.Start(t, testtpm.TCP())
			d := open(t, m)
			if persistent {
				persistSRK(t, d, template.SRK().Unique)
				d.listed = false
			}
			key := nodeKey(t, d, alg)
			file, err := d.PEM(key)
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			spki, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			put(t, m, "key.pem", file)
			put(t, m, "pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
			put(t, m, "data", bytes.Repeat([]byte{1}, 32))
			run(t, m, "openssl", "pkeyutl", "-provider", "default", "-provider", "tpm2",
				"-propquery", "?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes,tpm2.rand!=yes",
				"-sign", "-inkey", "key.pem", "-in", "data", "-pkeyopt", "digest:sha256", "-out", "sig")
			run(t, m, "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pub.pem", "-in", "data",
				"-pkeyopt", "digest:sha256", "-sigfile", "sig")
		}
	}
}

// TestPEMUnderAnotherSRK is a key that was made before another key of the SRK's template came to the
// SRK's handle: the handle is not its parent.
func TestPEMUnderAnotherSRK(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	key := nodeKey(t, d, template.P256)
	persistSRK(t, d, tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	}))
	if der := pemBytes(t, d, key); !bytes.Contains(der, []byte{2, 4, 0x40, 0, 0, 1}) {
		t.Errorf("the parent is not the owner hierarchy: %x", der)
	}
	idle(t, d)
}

// TestRecordByOtherPrograms reads the record with tpm2_nvread and OpenSSL.
func TestRecordByOtherPrograms(t *testing.T) {
	testtpm.Need(t, "tpm2_nvread")
	m := testtpm.Start(t, testtpm.TCP())
	d := open(t, m)
	key := nodeKey(t, d, template.P256)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), NotAfter: time.Unix(1<<32, 0), DNSNames: []string{"n17.cluster"},
	}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteRecord(DefaultSlots, Record{Algorithm: template.P256, Leaf: leaf}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	out := run(t, m, "tpm2_nvreadpublic", "0x01804E00")
	for _, want := range []string{"friendly: ownerwrite|ownerread|authread|no_da|written\n", "size: 1024\n"} {
		if !bytes.Contains([]byte(out), []byte(want)) {
			t.Errorf("tpm2_nvreadpublic lacks %q:\n%s", want, out)
		}
	}
	run(t, m, "tpm2_nvread", "0x01804E00", "-o", "index")
	put(t, m, "leaf", get(t, m, "index")[recordHeader:])
	if out := run(t, m, "openssl", "x509", "-inform", "DER", "-in", "leaf", "-noout", "-text"); !bytes.Contains([]byte(out), []byte("DNS:n17.cluster")) {
		t.Errorf("openssl x509:\n%s", out)
	}
}

func TestEmptySlotIsExplained(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	key := nodeKey(t, d, template.P256)
	if _, err := d.EvictKey(DefaultSlots); err != nil {
		t.Fatal(err)
	}
	_, err := key.Sign(nil, make([]byte, 32), hash256)
	var c *CommandError
	if !errors.As(err, &c) || c.Command != "tpm2.Sign" {
		t.Errorf("Sign: %v", err)
	}
	if sentence, hint := Explain(err); sentence == "" || hint == "" {
		t.Errorf("Explain(%v) = %q, %q", err, sentence, hint)
	}
}

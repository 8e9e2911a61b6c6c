package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
	"muster/internal/testtpm"
)

// firstBoot is what the agent does with the TPM on a node's first boot, in its order. The leaf is of
// the usual size.
func firstBoot(d *Device, leaf []byte) error {
	if records, err := d.ReadRecords(DefaultSlots); err != nil || len(records) != 0 {
		return errorf("ReadRecords = %d records, %v", len(records), err)
	}
	key, created, err := d.NodeKey(DefaultSlots, template.P256)
	if err != nil || !created {
		return errorf("NodeKey: created %v, %v", created, err)
	}
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return err
	}
	err = d.WithEKs(true, func(eks []EK) error { return activate(d, &eks[0], key) })
	if err != nil {
		return err
	}
	return d.WriteRecord(DefaultSlots, Record{Slot: 0, Algorithm: template.P256, Leaf: leaf})
}

// activate plays both sides of the challenge.
func activate(d *Device, ek *EK, key *Key) error {
	secret := make([]byte, 32)
	rand.Read(secret)
	id, enc, err := challenge(ek.Area, key.Name(), secret)
	if err != nil {
		return err
	}
	got, err := d.Activate(ek, key, id, enc)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, secret) {
		return errorf("Activate returned another secret")
	}
	return nil
}

func challenge(area, name, secret []byte) (id, enc []byte, err error) {
	pub, err := template.Parse(area)
	if err != nil {
		return nil, nil, err
	}
	k, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, nil, err
	}
	return tpm2.CreateCredential(rand.Reader, k, name, secret)
}

func TestFirstBootCommands(t *testing.T) {
	for _, test := range []struct {
		name    string
		options []testtpm.Option
		certs   int
	}{
		{"blank", nil, 0},
		{"P-256 EK certificate", []testtpm.Option{testtpm.P256Certificate()}, 1},
	} {
		t.Run(test.name+", raw", func(t *testing.T) {
			m := testtpm.Start(t, test.options...)
			counter := testtpm.Count(dial(t, m))
			d := New(counter)
			if err := firstBoot(d, make([]byte, 690)); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			n := len(counter.Commands())
			t.Logf("%d commands, %d bytes: %v", n, counter.Bytes(), counter.Commands())
			if n > 18 {
				t.Errorf("a first boot takes %d commands, 18 at most are allowed", n)
			}
			idle(t, d)
			secondBoot(t, m)
		})
		t.Run(test.name+", resource manager", func(t *testing.T) {
			m := testtpm.Start(t, test.options...)
			chip := testtpm.Count(dial(t, m))
			manager, err := testtpm.Manage(chip)
			if err != nil {
				t.Fatal(err)
			}
			chip.Reset()
			d := New(manager)
			if err := firstBoot(d, make([]byte, 690)); err != nil {
				t.Fatal(err)
			}
			d.Close()
			n := len(chip.Commands())
			t.Logf("%d chip commands, %d bytes", n, chip.Bytes())
			if n > 54 {
				t.Errorf("a first boot takes %d commands of the chip, 54 at most are allowed", n)
			}
			idle(t, d)
		})
	}
}

// secondBoot is NV_Read and Sign.
func secondBoot(t *testing.T, m *testtpm.TPM) {
	t.Helper()
	leaf, public := leafOfSlot(t, m)
	if err := m.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	counter := testtpm.Count(dial(t, m))
	d := New(counter)
	records, err := d.ReadRecords(DefaultSlots)
	if err != nil || len(records) != 1 || !bytes.Equal(records[0].Leaf, leaf) {
		t.Fatalf("ReadRecords = %v, %v", records, err)
	}
	key, err := d.KeyAt(DefaultSlots.Keys[records[0].Slot], public)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if n := len(counter.Commands()); n != 2 {
		t.Errorf("a second boot takes %d commands %v, 2 expected", n, counter.Commands())
	}
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	swapped, err := d.KeyAt(DefaultSlots.Keys[0], other.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := swapped.Sign(nil, digest[:], crypto.SHA256); !isErr(err, ErrBadSignature) {
		t.Errorf("Sign with a swapped key: %v, ErrBadSignature expected", err)
	}
}

func leafOfSlot(t *testing.T, m *testtpm.TPM) (leaf []byte, public crypto.PublicKey) {
	t.Helper()
	d := New(dial(t, m))
	pub, err := d.readPublic(DefaultSlots.Keys[0])
	if err != nil {
		t.Fatal(err)
	}
	if public, err = template.Key(pub); err != nil {
		t.Fatal(err)
	}
	return make([]byte, 690), public
}

var _ transport.TPM = (*testtpm.Counter)(nil)

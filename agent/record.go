package agent

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"muster/agent/internal/tpm"
	"muster/internal/journal"
)

// identity is a node certificate and the key in the TPM that it is for.
type identity struct {
	leaf  *x509.Certificate
	key   *tpm.Key
	pin   pin // as the record in NV has it
	index int // the record's, of Slots.NV; -1: not in NV
}

func (id *identity) node() string   { return id.leaf.Subject.CommonName }
func (id *identity) serial() string { return serialHex(id.leaf.SerialNumber) }

// serialHex writes a serial number as the head does.
func serialHex(n *big.Int) string { return fmt.Sprintf("%032x", n) }

// storage says where a later boot finds the certificate.
func (id *identity) storage() string {
	if id.index < 0 {
		return "head"
	}
	return "nv"
}

// identities reads NV: the newest record first. It asks the TPM for nothing else; that a key is not
// the certificate's shows when it signs.
func (a *Agent) identities(d *tpm.Device) ([]*identity, error) {
	found, useless, err := a.readIdentities(d)
	for _, err := range useless {
		a.log.Warn("a record in NV is of no use", "err", err)
	}
	return found, err
}

func (a *Agent) readIdentities(d *tpm.Device) (found []*identity, useless []error, err error) {
	records, err := d.ReadRecords(a.slots)
	for _, r := range records {
		id, err := a.identity(d, r)
		if err != nil {
			useless = append(useless, fmt.Errorf("index 0x%08X: %v", a.slots.NV[r.Index], err))
			continue
		}
		found = append(found, id)
	}
	return found, useless, err
}

// installed returns the certificate that run has installed, for a TPM whose NV has no room for it; nil where
// there is none, or its key is not in the TPM.
func (a *Agent) installed(d *tpm.Device) (*identity, error) {
	text, err := os.ReadFile(a.path(fileCert))
	if err != nil {
		return nil, nil
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil
	}
	key, err := a.keyInSlot(d, leaf.PublicKey)
	if err != nil {
		return nil, tpmError(err)
	}
	if key == nil { // whether the deterministic primary is the certificate's shows when it signs
		if key, err = d.KeyAt(0, leaf.PublicKey); err != nil {
			return nil, nil
		}
	}
	return &identity{leaf: leaf, key: key, index: -1}, nil
}

// keyInSlot looks for the key of a certificate in our slots; nil where it is in neither.
func (a *Agent) keyInSlot(d *tpm.Device, pub crypto.PublicKey) (*tpm.Key, error) {
	keys, err := d.Keys(a.slots)
	for _, k := range keys {
		if samePublic(k, pub) {
			return k, nil
		}
	}
	return nil, err
}

// newest returns the certificate to use: NV's, else what run has installed. Without either it is an
// [*Outcome] of StatusFailed.
func (a *Agent) newest(d *tpm.Device, records []*identity) (*identity, error) {
	if len(records) > 0 {
		return records[0], nil
	}
	id, err := a.installed(d)
	if err == nil && id == nil {
		err = &Outcome{Status: StatusFailed, Message: "this node has no certificate yet", Hint: "muster-agent run"}
	}
	return id, err
}

func (a *Agent) identity(d *tpm.Device, r tpm.Stored) (*identity, error) {
	leaf, err := x509.ParseCertificate(r.Leaf)
	if err != nil {
		return nil, fmt.Errorf("certificate: %v", err)
	}
	var handle uint32 // of the deterministic primary
	if r.Slot != tpm.RecordPrimary {
		handle = a.slots.Keys[r.Slot]
	}
	key, err := d.KeyAt(handle, leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	return &identity{leaf: leaf, key: key, pin: r.Pin, index: r.Index}, nil
}

func pinsOf(ids []*identity) []pin {
	var pins []pin
	for _, id := range ids {
		pins = append(pins, id.pin)
	}
	return pins
}

// keep writes id to NV, unless exactly it is there. A TPM without room for it is no failure: the
// certificate is then fetched from the head at each boot.
func (b *boot) keep(id *identity) error {
	if b.have != nil && bytes.Equal(b.have.leaf.Raw, id.leaf.Raw) && b.have.pin == id.pin {
		id.index = b.have.index
		return nil
	}
	if b.have != nil {
		b.tpm.KeepRecord(b.have.index)
	}
	err := b.tpm.WriteRecord(b.slots, id.record())
	if errors.Is(err, tpm.ErrNoNV) {
		b.log.Warn("the certificate is not kept in the TPM and will be fetched again at each boot", "event", journal.NotKept, "err", err)
		id.index, b.kept = -1, err
		return nil
	}
	id.index = 0
	return err
}

func (id *identity) record() tpm.Record {
	slot := uint8(tpm.RecordPrimary)
	if id.key.Slot() != tpm.PrimarySlot {
		slot = uint8(id.key.Slot())
	}
	return tpm.Record{Slot: slot, Algorithm: id.key.Algorithm(), Pin: id.pin, Leaf: id.leaf.Raw}
}

// errUseless is a record that cannot be used, for a reason that enrolling again mends.
var errUseless = errors.New("the record in NV cannot be used")

// present offers id to a verified head, if the CA behind that head has issued it and it has not
// expired for certain.
func (b *boot) present(id *identity) func(*verified) (*tls.Certificate, error) {
	return func(v *verified) (*tls.Certificate, error) {
		if err := b.usable(id, v.sent, v.at); err != nil {
			return nil, fatal{err}
		}
		return id.certificate(), nil
	}
}

// usable checks id at a moment. The clock may be wrong in either direction: before the
// certificate's beginning is no reason, since the CA has signed it.
func (b *boot) usable(id *identity, sent []*x509.Certificate, at time.Time) error {
	if _, err := b.trust.verifyNode(id.leaf, sent, later(at, id.leaf.NotBefore)); err != nil {
		return fmt.Errorf("%w: %v", errUseless, err)
	}
	return nil
}

func (id *identity) certificate() *tls.Certificate {
	return &tls.Certificate{
		Certificate: [][]byte{id.leaf.Raw}, PrivateKey: id.key, Leaf: id.leaf,
		SupportedSignatureAlgorithms: id.key.TLSSchemes(),
	}
}

package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"muster/internal/template"
)

// A record's layout, integers in network order:
//
//	0  magic "MSTR"          8  sequence, 4 bytes       48  leaf certificate, DER
//	4  version 1            12  length of the leaf, 2    …  checksum, 8 bytes: SHA-256 of
//	5  key slot             14  zero, 2                     all before it, truncated
//	6  algorithm            16  CA pin, 32 bytes
//	7  flags
const (
	recordMagic   = "MSTR"
	recordVersion = 1
	recordHeader  = 48
	recordSum     = 8
	indexSize     = 1024 // of each NV index, and the most that a record may take

	// MaxLeaf is the longest leaf certificate that a record holds.
	MaxLeaf = indexSize - recordHeader - recordSum
)

const (
	// FlagAlone says that the other NV slot was never written, so that a boot need not read it.
	FlagAlone = 1 << 0

	// RecordPrimary is [Record.Slot] for the deterministic primary key.
	RecordPrimary = 0xFF
)

// ErrRecord is bytes that are no record: never written, torn by a power cut, or something else's.
var ErrRecord = errors.New("not a record")

// Record is what a node remembers in NV: its certificate, which key it is for, and the CA it trusts.
type Record struct {
	Slot      uint8 // of the key: 0, 1 or RecordPrimary
	Algorithm template.Algorithm
	Flags     uint8  // FlagAlone
	Sequence  uint32 // the newer record has the higher one, with wrap-around
	Pin       [32]byte
	Leaf      []byte // DER
}

// Marshal returns the record's bytes, 1024 at most. It refuses a record that [ParseRecord] would.
func (r Record) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, recordHeader+len(r.Leaf)+recordSum)
	b = append(b, recordMagic...)
	b = append(b, recordVersion, r.Slot, uint8(r.Algorithm), r.Flags)
	b = binary.BigEndian.AppendUint32(b, r.Sequence)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Leaf)))
	b = append(b, 0, 0)
	b = append(b, r.Pin[:]...)
	b = append(b, r.Leaf...)
	sum := sha256.Sum256(b)
	return append(b, sum[:recordSum]...), nil
}

// ParseRecord reads a record from the start of b, which is an NV index or the start of one: what
// follows the checksum is ignored. Marshal of what it returns is exactly the bytes that it read.
// Its error is [ErrRecord].
func ParseRecord(b []byte) (Record, error) {
	size, err := recordSize(b)
	if err != nil {
		return Record{}, err
	}
	if len(b) < size || len(b) > indexSize {
		return Record{}, fmt.Errorf("%w: %d bytes, %d expected", ErrRecord, len(b), size)
	}
	body, sum := b[:size-recordSum], sha256.Sum256(b[:size-recordSum])
	if !bytes.Equal(sum[:recordSum], b[size-recordSum:size]) {
		return Record{}, fmt.Errorf("%w: its checksum is wrong", ErrRecord)
	}
	r := Record{
		Slot: b[5], Algorithm: template.Algorithm(b[6]), Flags: b[7],
		Sequence: binary.BigEndian.Uint32(b[8:]),
		Pin:      [32]byte(b[16:recordHeader]),
		Leaf:     bytes.Clone(body[recordHeader:]),
	}
	if err := r.check(); err != nil || b[14]|b[15] != 0 {
		return Record{}, fmt.Errorf("%w: a field has no meaning in this version", ErrRecord)
	}
	return r, nil
}

// recordSize returns how long the record is that starts b, from its header alone.
func recordSize(b []byte) (int, error) {
	if len(b) < recordHeader || string(b[:4]) != recordMagic || b[4] != recordVersion {
		return 0, fmt.Errorf("%w: no header", ErrRecord)
	}
	size := recordHeader + int(binary.BigEndian.Uint16(b[12:])) + recordSum
	if size > indexSize {
		return 0, fmt.Errorf("%w: %d bytes", ErrRecord, size)
	}
	return size, nil
}

func (r Record) check() error {
	switch {
	case len(r.Leaf) == 0 || len(r.Leaf) > MaxLeaf:
		return fmt.Errorf("a leaf of %d bytes does not fit in a record of NV: 1 to %d do", len(r.Leaf), MaxLeaf)
	case r.Slot > 1 && r.Slot != RecordPrimary:
		return fmt.Errorf("record: key slot %d", r.Slot)
	case r.Algorithm < template.P256 || r.Algorithm > template.RSA2048:
		return fmt.Errorf("record: %v", r.Algorithm)
	case r.Flags&^FlagAlone != 0:
		return fmt.Errorf("record: flags %#x", r.Flags)
	}
	return nil
}

// newer compares sequences as serial numbers (RFC 1982): after 2³²−1 comes 0.
func (r Record) newer(than Record) bool { return int32(r.Sequence-than.Sequence) > 0 }

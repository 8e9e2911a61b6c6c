package bolt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"muster/signer/store"
)

// A record is framed as version (1 byte), revision (8, big-endian), checksum (16), value.
// bbolt has no checksum on its data pages: a flipped byte in a key gives another key, one in an
// element's header another record's value. So the checksum is over the bucket and the key as well.
const (
	frameV1     = 1
	checksumLen = 16
	frameLen    = 1 + 8 + checksumLen
)

// frame returns the record for a value under a bucket's key.
func frame(bucket string, key []byte, revision uint64, value []byte) []byte {
	b := make([]byte, 0, frameLen+len(value))
	b = append(b, frameV1)
	b = binary.BigEndian.AppendUint64(b, revision)
	sum := checksum(bucket, key, revision, value)
	return append(append(b, sum[:]...), value...)
}

// unframe is the inverse of frame; value is part of record.
func unframe(bucket string, key, record []byte) (value []byte, revision uint64, err error) {
	if len(record) < frameLen || record[0] != frameV1 {
		return nil, 0, damaged(key, "not a record")
	}
	revision = binary.BigEndian.Uint64(record[1:])
	value = record[frameLen:]
	sum := checksum(bucket, key, revision, value)
	if revision == 0 || !bytes.Equal(sum[:], record[9:frameLen]) {
		return nil, 0, damaged(key, "checksum")
	}
	return value, revision, nil
}

// checksum is over fixed-width lengths before their contents: no two records give the same bytes.
func checksum(bucket string, key []byte, revision uint64, value []byte) (sum [checksumLen]byte) {
	h := sha256.New()
	b := append(make([]byte, 0, 64), frameV1, byte(len(bucket)))
	b = append(b, bucket...)
	h.Write(binary.BigEndian.AppendUint32(b, uint32(len(key))))
	h.Write(key)
	h.Write(binary.BigEndian.AppendUint64(b[:0], revision))
	h.Write(value)
	copy(sum[:], h.Sum(b[:0]))
	return sum
}

// damaged is ErrDamaged with the key as the disk has it, which may be what was damaged.
func damaged(key []byte, why any) error {
	return fmt.Errorf("%w: key %.100q: %v", store.ErrDamaged, key, why)
}

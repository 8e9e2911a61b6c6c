package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// Purposes separate the exchanges that share the transcript's form.
const (
	PurposeEnroll = "enroll"
	PurposeRenew  = "renew" // for a new key; Grant is then the serial number of the certificate that was shown
)

// Transcript is everything that leg 1 decided. The challenge's secret is derived from it and the
// proof covers it, so leg 2 need not repeat leg 1's public-key work.
type Transcript struct {
	Cluster string
	Purpose string
	Grant   string
	Slot    string
	Exp     int64 // Unix seconds
	Epoch   string
	EK      [sha256.Size]byte // SHA-256 of the EK's SPKI
	EKName  []byte            // TPM 2.0 part 1, 16: nameAlg || H(public area)
	KeyName []byte            // of the node key
	CSR     [sha256.Size]byte // SHA-256 of the CSR's DER
	Level   Level
}

// Bytes is "muster-v1" and then each field in order, preceded by its length as 32 bits, big-endian.
func (t *Transcript) Bytes() []byte {
	b := append(make([]byte, 0, 512), "muster-v1"...)
	for _, field := range [][]byte{
		[]byte(t.Cluster), []byte(t.Purpose), []byte(t.Grant), []byte(t.Slot),
		binary.BigEndian.AppendUint64(nil, uint64(t.Exp)), []byte(t.Epoch),
		t.EK[:], t.EKName, t.KeyName, t.CSR[:], []byte(t.Level),
	} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

// Secret is what the head wraps for the TPM: HMAC-SHA256(epochKey, T). The head keeps no state
// between the legs; it computes this again.
func (t *Transcript) Secret(epochKey []byte) []byte { return mac(epochKey, t.Bytes()) }

// Proof is what leg 2 carries: HMAC-SHA256(secret, purpose || SHA-256(T)).
func (t *Transcript) Proof(secret []byte) []byte {
	sum := sha256.Sum256(t.Bytes())
	return mac(secret, append([]byte(t.Purpose), sum[:]...))
}

func mac(key, msg []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(msg)
	return m.Sum(nil)
}

package attest

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// EpochLife is how long an epoch key makes challenges; it accepts answers for as long again.
const EpochLife = 4 * time.Hour

// secret refuses to be printed: an epoch key forges proofs, so it is as sensitive as the CA's key.
type secret []byte

func (secret) Format(f fmt.State, _ rune)   { io.WriteString(f, "(secret)") } // whatever the verb
func (secret) LogValue() slog.Value         { return slog.StringValue("(secret)") }
func (secret) MarshalJSON() ([]byte, error) { return nil, errors.New("a secret is not marshalled") }

type epoch struct {
	id   string
	key  secret
	made time.Time
}

// Epochs is the ring of the current and the previous epoch key. Its methods may be called at once.
type Epochs struct {
	mu   sync.RWMutex
	ring []epoch // newest first, at most two
}

// Format keeps the keys out of every printed form. fmt asks no method of an unexported field, so those
// of secret alone would not.
func (e *Epochs) Format(f fmt.State, _ rune) { io.WriteString(f, "(epoch keys)") }

func (ep epoch) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "(epoch key %s)", ep.id) }

// NewEpochs draws a first epoch key.
func NewEpochs(now time.Time) *Epochs {
	return &Epochs{ring: []epoch{newEpoch(now)}}
}

func newEpoch(now time.Time) epoch {
	id, key := make([]byte, 8), make([]byte, 32)
	rand.Read(id) // crypto/rand.Read never fails (Go 1.24)
	rand.Read(key)
	return epoch{id: hex.EncodeToString(id), key: key, made: now.UTC()}
}

// Due says whether Rotate is.
func (e *Epochs) Due(now time.Time) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	age := now.Sub(e.ring[0].made)
	return age >= EpochLife || age < -EpochLife
}

// Rotated returns a ring with a new current key; the old current one is still accepted. It leaves e
// alone, so that the new ring can be made durable before [Epochs.Replace] puts it to use.
func (e *Epochs) Rotated(now time.Time) *Epochs {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return &Epochs{ring: []epoch{newEpoch(now), e.ring[0]}}
}

// Replace takes over the ring of next.
func (e *Epochs) Replace(next *Epochs) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring = next.ring
}

func (e *Epochs) current() epoch {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.ring[0]
}

func (e *Epochs) byID(id string) (secret, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, ep := range e.ring {
		if ep.id == id {
			return ep.key, true
		}
	}
	return nil, false
}

type epochFile struct {
	Schema string      `json:"schema"`
	Epochs []epochLine `json:"epochs"`
}

type epochLine struct {
	ID   string    `json:"id"`
	Key  string    `json:"key"`
	Made time.Time `json:"made"`
}

const epochSchema = "muster.epochs/v1"

// Marshal returns the ring as the file epoch.key (mode 0600) holds it, secrets included.
func (e *Epochs) Marshal() []byte {
	e.mu.RLock()
	defer e.mu.RUnlock()
	file := epochFile{Schema: epochSchema}
	for _, ep := range e.ring {
		file.Epochs = append(file.Epochs, epochLine{ep.id, hex.EncodeToString(ep.key), ep.made})
	}
	b, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		panic("attest: " + err.Error())
	}
	return append(b, '\n')
}

// ParseEpochs reads what Marshal wrote. Its errors never quote the content.
func ParseEpochs(b []byte) (*Epochs, error) {
	var file epochFile
	if err := json.Unmarshal(b, &file); err != nil || file.Schema != epochSchema {
		return nil, fmt.Errorf("epoch keys: not of schema %s", epochSchema)
	}
	if len(file.Epochs) < 1 || len(file.Epochs) > 2 {
		return nil, errors.New("epoch keys: neither one nor two")
	}
	e := &Epochs{}
	for _, line := range file.Epochs {
		key, err := hex.DecodeString(line.Key)
		if err != nil || len(key) != 32 || line.ID == "" {
			return nil, errors.New("epoch keys: damaged")
		}
		e.ring = append(e.ring, epoch{line.ID, key, line.Made})
	}
	return e, nil
}

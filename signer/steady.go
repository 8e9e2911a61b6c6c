package signer

import (
	"context"
	"sync"
	"time"

	"muster/signer/store"
)

// A clock that was wrong for a while must not undo for ever what time alone undoes: the records of revocations (I7),
// and the keys of CAs. The floor is no help, since whatever is signed at the wrong moment raises it.
const (
	leap = time.Hour // for a clock to be this far from where it must be by now is no drift
	// steadyAfter is how long a clock that leapt must have gone on without a leap to be believed, and how old the
	// word for it may be that a head finds when it starts.
	steadyAfter = 24 * time.Hour
)

// pace holds the clock against one that nobody sets. Its methods may be called at once.
type pace struct {
	mu    sync.Mutex
	wall  time.Time // both clocks, at the start or when the last leap was noticed
	mono  time.Duration
	known bool // the clock was found steady not long before wall
}

// steadyRecord is the word of a head for its clock. It is on record lest a restart make a wrong clock look right:
// the last entry of the journal may be of it.
type steadyRecord struct {
	At time.Time `json:"at"`
}

func (p *pace) begin(now time.Time, elapsed time.Duration, last time.Time) {
	age := now.Sub(last)
	// Without its monotonic reading, by which Sub would go.
	p.wall, p.mono, p.known = now.Round(0), elapsed, age >= -leap && age < steadyAfter
}

func (p *pace) steady(now time.Time, elapsed time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if apart := now.Sub(p.wall) - (elapsed - p.mono); apart.Abs() > leap {
		p.wall, p.mono, p.known = now.Round(0), elapsed, false
	}
	return p.known || elapsed-p.mono >= steadyAfter
}

func (h *Head) loadPace(ctx context.Context) error {
	var last time.Time
	item, err := h.store.Get(ctx, keySteady)
	if err == nil && item.Revision != 0 {
		var word *steadyRecord
		if word, err = parse[steadyRecord](item); err == nil {
			last = word.At
		}
	}
	// Without the record the clock is believed after a day.
	h.try("it is not known whether the clock was steady", err)
	h.pace.begin(h.now(), h.elapsed(), last)
	return nil
}

// leave takes leave of what is over, where the clock can be believed in that, and the store is the newest.
func (h *Head) leave(ctx context.Context, now time.Time) {
	if h.setBack != nil || !h.pace.steady(now, h.elapsed()) {
		return
	}
	h.try("records of what is long over not removed", h.prune(ctx, now))
	h.try("a CA that is over is not taken leave of", h.retire(ctx, now))
	h.try("that the clock is steady is not on record", h.store.Commit(ctx, store.Tx{Puts: []store.Put{put(keySteady, steadyRecord{now.UTC()})}}))
}

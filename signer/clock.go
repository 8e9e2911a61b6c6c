package signer

import (
	"context"
	"errors"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// synchronised asks the kernel whether something disciplines the clock (adjtimex(2), STA_UNSYNC). The sandbox of
// muster.service forbids that, reading too, and there systemd says what the kernel says.
func synchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return timedatedSaysSo()
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

// timedatedSaysSo is org.freedesktop.timedate1(5), NTPSynchronized; false where nobody answers.
func timedatedSaysSo() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return false
	}
	defer bus.Close()
	var value dbus.Variant
	err = bus.Object("org.freedesktop.timedate1", "/org/freedesktop/timedate1").
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.timedate1", "NTPSynchronized").Store(&value)
	synchronised, ok := value.Value().(bool)
	return err == nil && ok && synchronised
}

// syncKept is for how long the answer to whether something disciplines the clock stays. To ask may take two seconds,
// and a stranger can make a head ask.
const syncKept = 5 * time.Second

var errNotInTime = errors.New("nothing disciplines the clock")

func (h *Head) inSync() bool {
	return nil == h.timed.check(h.now(), syncKept, func() error {
		if h.inTime() {
			return nil
		}
		return errNotInTime
	})
}

// ClockView is the head's clock, for `muster clock` and `muster status`.
type ClockView struct {
	Now          time.Time `json:"now"`
	LastRecord   time.Time `json:"last_record"` // the clock may not be before this
	Synchronised bool      `json:"synchronised"`
}

func (h *Head) clockView() ClockView {
	return ClockView{h.now().UTC().Truncate(time.Second), time.Unix(h.floor.Load(), 0).UTC(), h.inSync()}
}

// adminClockAccept makes the clock's moment the last one on record, whichever way it jumped. Where that is
// back, the next CRL's thisUpdate goes back with it, and only there: one in the future is good for nobody.
func (h *Head) adminClockAccept(ctx context.Context, _ struct{}, _ *stream) (any, error) {
	if h.setBack != nil {
		return nil, adminError(KindPolicy, rollbackHint, "%s", h.setBack.detail)
	}
	now := h.now().UTC()
	was := time.Unix(h.floor.Load(), 0).UTC().Format(time.RFC3339)
	tx := store.Tx{
		Events: []store.Event{event(now, "clock-accept", "", map[string]string{"was": was, "by": byWhom(ctx)})},
	}
	for _, ca := range h.ring.Load().all() {
		item, last, err := h.lastCRL(ctx, ca)
		guard := []store.Guard{item.Guard()}
		if err != nil {
			last, err = h.damagedCRL(ca, err)
			guard = nil
		}
		if errors.Is(err, store.ErrDamaged) {
			continue // it is not signed any more
		}
		if err != nil {
			return nil, err
		}
		if last.ThisUpdate.After(now) {
			tx.Guards = append(tx.Guards, guard...)
			tx.Puts = append(tx.Puts, put(item.Key, crlRecord{last.Number, now}))
		}
	}
	if err := h.store.Commit(ctx, tx); err != nil {
		return nil, err
	}
	h.floor.Store(now.Unix())
	h.try("server certificate not made", h.renewServer(ctx)) // the old one may not be good yet
	h.try("certificate for OCSP not made", h.renewResponders(ctx))
	h.crlDue()
	return h.clockView(), nil
}

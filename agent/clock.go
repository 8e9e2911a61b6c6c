package agent

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"muster/internal/journal"
)

// clockMode is what to do about a clock that nothing disciplines.
type clockMode string

const (
	clockSet   clockMode = "set"   // believe the head's, and set the system's
	clockTrust clockMode = "trust" // believe the head's
	clockOff   clockMode = "off"   // believe the system's
)

func parseClock(text string) (clockMode, error) {
	switch m := clockMode(text); m {
	case "", clockSet, clockTrust, clockOff:
		return m, nil
	}
	return "", fmt.Errorf("no clock mode %q", text)
}

// maxDrift is how far off an undisciplined clock may be before the head's is believed instead.
const maxDrift = time.Minute

// clock is the node's idea of the time. A node may boot in 1970, 2000 or 2106.
type clock struct {
	now          func() time.Time
	synchronised func() bool
	set          func(time.Time) error
	built        time.Time
	mode         clockMode
	offset       time.Duration // what the head's clock said of the system's, in mode trust
}

// time is the best that is known.
func (c *clock) time() time.Time { return c.now().Add(c.offset) }

// ours says whether the clock may be overruled.
func (c *clock) ours() bool { return c.mode != clockOff && !c.synchronised() }

// judge returns the moment for which a head's certificate is to be verified.
//
// A clock that is disciplined, or that the configuration believes, is believed. Any other one is
// overruled where it contradicts what is certain: the floor has passed, and so has the leaf's
// NotBefore, since the CA has signed it. So a head whose leaf had expired before the floor is
// refused, however the clock stands; and one that expired later is a risk, which a head's
// certificate of 7 days keeps small.
func judge(now time.Time, believed bool, floor time.Time, leaf *x509.Certificate) (at time.Time, err error) {
	at = now
	if !believed && (now.Before(floor) || now.Before(leaf.NotBefore) || now.After(leaf.NotAfter)) {
		at = later(floor, leaf.NotBefore)
	}
	if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
		return time.Time{}, fmt.Errorf("%w: it is for %s to %s, and the time is %s", errTime,
			stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(at))
	}
	return at, nil
}

// judge is [judge] for this clock. nv is the certificate in NV, or nil; the caller has verified it.
func (c *clock) judge(leaf, nv *x509.Certificate) (time.Time, error) {
	return judge(c.time(), !c.ours(), c.floor(nv), leaf)
}

// floor is the latest moment that has passed for certain.
func (c *clock) floor(nv *x509.Certificate) time.Time {
	if nv == nil {
		return c.built
	}
	return later(c.built, nv.NotBefore)
}

// past is the time, or the floor where the clock is before it and may be overruled.
func (c *clock) past(nv *x509.Certificate) time.Time {
	if c.ours() {
		return later(c.time(), c.floor(nv))
	}
	return c.time()
}

// learn takes the head's time, told over a verified channel, where the clock is off by more than a
// minute and may be overruled. Before that verify is asked once more, for the new time: a head whose
// clock contradicts its own certificate teaches nothing.
func (c *clock) learn(head time.Time, verify func(at time.Time) error, log *slog.Logger) error {
	drift := head.Sub(c.time())
	if !c.ours() || drift.Abs() <= maxDrift {
		return nil
	}
	if err := verify(head); err != nil {
		return fmt.Errorf("the head's clock says %s: %w", stamp(head), err)
	}
	if c.mode == clockSet {
		if err := c.set(head); err != nil {
			log.Warn("the clock cannot be set", "event", journal.ClockNotSet, "to", stamp(head), "err", err)
		}
	}
	c.offset += head.Sub(c.time())
	log.Info("the clock was overruled by the head's", "was_off_by", drift.Round(time.Second), "set", c.mode == clockSet)
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

// synchronised asks the kernel whether something disciplines the clock (adjtimex(2), STA_UNSYNC).
func synchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

func setClock(to time.Time) error {
	ts, err := unix.TimeToTimespec(to)
	if err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

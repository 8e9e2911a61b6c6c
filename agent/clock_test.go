package agent

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	date := func(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 0, 0, 0, 0, time.UTC) }
	floor := date(2026, 11, 1)
	good := [2]time.Time{date(2026, 11, 24), date(2026, 12, 1)}
	old := [2]time.Time{date(2026, 10, 1), date(2026, 10, 8)}   // over before the floor
	edge := [2]time.Time{date(2026, 10, 30), date(2026, 11, 6)} // the floor is within it
	for name, c := range map[string]struct {
		now      time.Time
		believed bool
		leaf     [2]time.Time
		want     time.Time // zero: refused
	}{
		"right":                               {date(2026, 11, 25), false, good, date(2026, 11, 25)},
		"right, synchronised":                 {date(2026, 11, 25), true, good, date(2026, 11, 25)},
		"1970":                                {date(1970, 1, 1), false, good, good[0]},
		"2000":                                {date(2000, 1, 1), false, good, good[0]},
		"2106":                                {date(2106, 2, 7), false, good, good[0]},
		"1970, leaf older than the floor":     {date(1970, 1, 1), false, edge, floor},
		"2106, leaf older than the floor":     {date(2106, 2, 7), false, edge, floor},
		"1970, believed":                      {date(1970, 1, 1), true, good, time.Time{}},
		"2106, believed":                      {date(2106, 2, 7), true, good, time.Time{}},
		"right, leaf expired after the floor": {date(2026, 11, 25), false, edge, floor},
		"same, synchronised":                  {date(2026, 11, 25), true, edge, time.Time{}},
		"leaf expired before the floor":       {date(2026, 11, 25), false, old, time.Time{}},
		"same, 1970":                          {date(1970, 1, 1), false, old, time.Time{}},
		"same, clock within the leaf":         {date(2026, 10, 3), false, old, time.Time{}},
		"same, clock within, synchronised":    {date(2026, 10, 3), true, old, date(2026, 10, 3)},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := judge(c.now, c.believed, floor, &x509.Certificate{NotBefore: c.leaf[0], NotAfter: c.leaf[1]})
			if !at.Equal(c.want) || (err != nil) != c.want.IsZero() || err != nil && !errors.Is(err, errTime) {
				t.Errorf("got %v, %v; want %v", at, err, c.want)
			}
		})
	}
}

func TestLearn(t *testing.T) {
	head := day0
	good := func(time.Time) error { return nil }
	for name, c := range map[string]struct {
		mode   clockMode
		sync   bool
		off    time.Duration
		verify func(time.Time) error
		set    bool
		time   time.Time
		fails  bool
	}{
		"set":             {clockSet, false, -time.Hour, good, true, head, false},
		"trust":           {clockTrust, false, -time.Hour, good, false, head, false},
		"off":             {clockOff, false, -time.Hour, good, false, head.Add(-time.Hour), false},
		"synchronised":    {clockSet, true, time.Hour, good, false, head.Add(time.Hour), false},
		"within a minute": {clockSet, false, 50 * time.Second, good, false, head.Add(50 * time.Second), false},
		"contradicts itself": {clockSet, false, time.Hour, func(time.Time) error { return errTime }, false,
			head.Add(time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			set := false
			now := head.Add(c.off)
			k := &clock{
				now: func() time.Time { return now }, synchronised: func() bool { return c.sync }, mode: c.mode,
				set: func(to time.Time) error { set, now = true, to; return nil },
			}
			err := k.learn(head, c.verify, slog.New(slog.DiscardHandler))
			if (err != nil) != c.fails || set != c.set || !k.time().Equal(c.time) {
				t.Errorf("set %v, time %v, %v", set, k.time(), err)
			}
		})
	}
}

// TestLearnWithoutRights: a clock that cannot be set is overruled for this run all the same.
func TestLearnWithoutRights(t *testing.T) {
	k := &clock{
		now: func() time.Time { return time.Unix(0, 0) }, synchronised: func() bool { return false }, mode: clockSet,
		set: func(time.Time) error { return errors.New("operation not permitted") },
	}
	if err := k.learn(day0, func(time.Time) error { return nil }, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if !k.time().Equal(day0) {
		t.Errorf("time %v", k.time())
	}
}

package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"muster/internal/journal"
	"muster/signer"
)

// unit is the daemon as systemd sees it (sd_notify(3)); without systemd, what it tells goes nowhere.
type unit struct {
	head  *signer.Head
	on    signer.Listeners
	log   *slog.Logger
	level *slog.LevelVar
	again func() (*serveOptions, error)
}

// Without a watchdog it is only at the start that listeners are asked.
const answerWait = 10 * time.Second

// watch reports the head ready when each listener answers, feeds the watchdog as long as they do, four
// times in its interval, and reports the end.
func (u *unit) watch(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || os.Getenv("NOTIFY_SOCKET") == "" {
		return err
	}
	wait := answerWait
	if interval > 0 {
		wait = interval / 4
	}
	for state := daemon.SdNotifyReady; ctx.Err() == nil; {
		err := u.on.Answer(ctx, wait)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			u.log.Error("a listener hangs", "event", journal.Hangs, "err", err)
		default:
			daemon.SdNotify(false, state)
			if state = daemon.SdNotifyWatchdog; interval == 0 {
				<-ctx.Done()
			}
		}
		pause(ctx, wait)
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping+"\nSTATUS=finishing what is under way")
	return nil
}

// observeEvery is how old systemd's status line may be.
const observeEvery = 10 * time.Second

// observe keeps the status line, and logs it when this head no longer signs and when it does again.
func (u *unit) observe(ctx context.Context) error {
	said := "not yet"
	for ctx.Err() == nil {
		why, err := u.head.NotSigning(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if why != said {
			u.sayState(why, err, said)
			said = why
		}
		pause(ctx, observeEvery)
	}
	return nil
}

func (u *unit) sayState(why string, err error, before string) {
	status := "STATUS=" + u.head.Cluster() + ": serving and signing"
	switch {
	case why != "":
		u.log.Error("this head signs nothing", "event", journal.NotSigning, "reason", why, "err", err)
		status = "STATUS=" + u.head.Cluster() + ": signing nothing (" + why + "), serving what is on record"
	case before != "not yet":
		u.log.Info("this head signs again")
	}
	daemon.SdNotify(false, status)
}

// obey reloads at each signal.
func (u *unit) obey(ctx context.Context, hup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		daemon.SdNotify(false, daemon.SdNotifyReloading)
		u.reload()
		daemon.SdNotify(false, daemon.SdNotifyReady)
	}
}

// reload takes what can be changed without losing a connection. A configuration that is not good changes
// nothing.
func (u *unit) reload() {
	o, err := u.again()
	if err != nil {
		u.log.Error("configuration not reloaded", "event", journal.ReloadFailed, "err", err)
		return
	}
	u.level.Set(o.level())
	u.head.Reload(o.limits)
	u.log.Info("reloaded", "verbose", o.verbose, "per-address", o.limits.PerAddress, "connections", o.limits.Total)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

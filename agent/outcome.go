package agent

import (
	"context"
	"errors"
	"fmt"

	"muster/internal/journal"
	"muster/internal/wire"
)

// Exit statuses of muster-agent. They tell "try again" from "give up" (sysexits.h).
const (
	StatusDone     = 0
	StatusFailed   = 1  // get and doctor only: the answer is no
	StatusNoTPM    = 69 // EX_UNAVAILABLE: no usable TPM
	StatusTryAgain = 75 // EX_TEMPFAIL: head unreachable or busy; not enabled or pending and --wait is over
	StatusRefused  = 77 // EX_NOPERM: refused or revoked
	StatusConfig   = 78 // EX_CONFIG: configuration or usage
)

// Outcome is an error as a person is to see it: what happened, and what to run, and where.
type Outcome struct {
	Status  int
	Message string
	Hint    string // empty where there is nothing to do
	cause   error
	trouble wire.Trouble // what a head is to hear of it; empty: nothing, or it knows
}

func (o *Outcome) Error() string { return o.Message }
func (o *Outcome) Unwrap() error { return o.cause }

// ExitStatus maps what a command returned to the program's exit status.
func ExitStatus(err error) int {
	var o *Outcome
	switch {
	case err == nil:
		return StatusDone
	case errors.As(err, &o):
		return o.Status
	case errors.Is(err, context.Canceled):
		return StatusTryAgain
	}
	return StatusFailed
}

// Event is what an exit status is in systemd's journal; "" for none.
func Event(status int) journal.Event {
	switch status {
	case StatusNoTPM:
		return journal.NoTPM
	case StatusTryAgain:
		return journal.TryAgain
	case StatusRefused:
		return journal.Refused
	case StatusConfig:
		return journal.Configuration
	}
	return ""
}

// Describe returns the lines that a person sees: the message and, where there is one, the hint.
func Describe(err error) string {
	var o *Outcome
	if !errors.As(err, &o) {
		if errors.Is(err, context.Canceled) {
			return "interrupted\nhint: run it again; it goes on where it was\n"
		}
		return err.Error() + "\n"
	}
	if o.Hint == "" {
		return err.Error() + "\n"
	}
	return fmt.Sprintf("%v\nhint: %s\n", err, o.Hint)
}

func badConfig(hint, format string, args ...any) error {
	return &Outcome{Status: StatusConfig, Message: fmt.Sprintf(format, args...), Hint: hint}
}

func tryAgain(hint, format string, args ...any) error {
	return &Outcome{Status: StatusTryAgain, Message: fmt.Sprintf(format, args...), Hint: hint}
}

func refused(hint, format string, args ...any) error {
	return &Outcome{Status: StatusRefused, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// badAnswer is what a head of the right CA answered, and makes no sense.
func badAnswer(hint, format string, args ...any) error {
	return &Outcome{Status: StatusConfig, Message: fmt.Sprintf(format, args...), Hint: hint, trouble: wire.BadAnswer}
}

// hintName is what a hint calls the node.
func hintName(name string) string {
	if name == "" {
		return "NAME"
	}
	return name
}

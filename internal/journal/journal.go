// Package journal writes a program's log to systemd's journal, so that attributes become fields that
// journalctl can select by, and an event on which an administrator may have to act comes with its remedy
// (journalctl -x; the texts are in systemd/muster.catalog).
//
// A log call names its event as the attribute "event":
//
//	log.Error("CRL not signed", "event", journal.Upkeep, "err", err)
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// Enabled says whether w is the standard error and that goes to the journal (systemd.exec(5),
// JOURNAL_STREAM).
func Enabled(w io.Writer) bool {
	connected, err := journal.StderrIsJournalStream()
	return w == os.Stderr && connected && err == nil
}

// Handler returns the handler that writes to the journal where w goes there, else text to w, as options
// say. In the text there are no events.
func Handler(w io.Writer, options slog.HandlerOptions) slog.Handler {
	if Enabled(w) {
		return &handler{level: options.Level, send: journal.Send}
	}
	replace := options.ReplaceAttr
	options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if _, ok := a.Value.Any().(Event); ok {
			return slog.Attr{}
		}
		if replace != nil {
			return replace(groups, a)
		}
		return a
	}
	return slog.NewTextHandler(w, &options)
}

// handler is a slog.Handler on the journal's native protocol.
type handler struct {
	level  slog.Leveler // nil: Info
	attrs  []slog.Attr  // their keys have their groups before them
	prefix string       // of the groups that are open: "group."
	send   func(message string, priority journal.Priority, fields map[string]string) error
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	least := slog.LevelInfo
	if h.level != nil {
		least = h.level.Level()
	}
	return level >= least
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		next.attrs = flatten(next.attrs, h.prefix, a)
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

// flatten resolves a, and puts the names of groups before its key.
func flatten(to []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() != slog.KindGroup {
		if a.Equal(slog.Attr{}) {
			return to
		}
		return append(to, slog.Attr{Key: prefix + a.Key, Value: a.Value})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, inner := range a.Value.Group() {
		to = flatten(to, prefix, inner)
	}
	return to
}

// Handle sends one entry. The message has the attributes behind it, as whoever reads the journal without
// asking for fields must see them, too.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, h.prefix, a)
		return true
	})
	fields := map[string]string{"SYSLOG_IDENTIFIER": filepath.Base(os.Args[0])}
	var message strings.Builder
	message.WriteString(r.Message)
	for _, a := range attrs {
		if event, ok := a.Value.Any().(Event); ok {
			fields["MESSAGE_ID"], fields["MUSTER_EVENT"] = event.ID(), string(event)
			continue
		}
		text := a.Value.String()
		fields[field(a.Key)] = text
		fmt.Fprintf(&message, " %s=%s", a.Key, quoted(text))
	}
	return h.send(message.String(), priority(r.Level), fields)
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// field names the journal's field of an attribute: MUSTER_ and the key in capitals, where whatever else
// than a letter or digit becomes an underscore (systemd.journal-fields(7)).
func field(key string) string {
	return "MUSTER_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func quoted(text string) string {
	plain := func(r rune) bool { return unicode.IsPrint(r) && r != ' ' && r != '"' && r != '=' }
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return strconv.Quote(text)
	}
	return text
}

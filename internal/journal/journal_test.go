package journal

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
)

// entry is what was sent to the journal.
type entry struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

func logged(level slog.Leveler, log func(*slog.Logger)) (entries []entry) {
	h := &handler{level: level, send: func(message string, priority journal.Priority, fields map[string]string) error {
		entries = append(entries, entry{message, priority, fields})
		return nil
	}}
	log(slog.New(h))
	return entries
}

// TestFields: attributes are fields, with stable names, and the message has them as well; an event is its
// identifier, and no attribute.
func TestFields(t *testing.T) {
	for name, c := range map[string]struct {
		log     func(*slog.Logger)
		message string
		fields  map[string]string
	}{
		"plain": {func(l *slog.Logger) { l.Info("well") }, "well", nil},
		"attributes": {
			func(l *slog.Logger) { l.Info("issued", "node", "n0", "serial", "00ff", "per-address", 3) },
			"issued node=n0 serial=00ff per-address=3",
			map[string]string{"MUSTER_NODE": "n0", "MUSTER_SERIAL": "00ff", "MUSTER_PER_ADDRESS": "3"},
		},
		"event": {
			func(l *slog.Logger) { l.Info("no", "event", NoTPM, "err", errors.New("a b")) },
			`no err="a b"`,
			map[string]string{"MESSAGE_ID": NoTPM.ID(), "MUSTER_EVENT": "no-tpm", "MUSTER_ERR": "a b"},
		},
		"groups": {
			func(l *slog.Logger) {
				l.With("a", 1).WithGroup("g").With("b", 2).Info("m", "c", 3, slog.Group("h", "d", 4), slog.Group("", "e", 5))
			},
			"m a=1 g.b=2 g.c=3 g.h.d=4 g.e=5",
			map[string]string{"MUSTER_A": "1", "MUSTER_G_B": "2", "MUSTER_G_C": "3", "MUSTER_G_H_D": "4", "MUSTER_G_E": "5"},
		},
		"a name that is none": {
			func(l *slog.Logger) { l.Info("m", "ümläut =\n", "a\nb", "", "") },
			"m ümläut =\n=\"a\\nb\" =\"\"",
			map[string]string{"MUSTER__ML_UT___": "a\nb", "MUSTER_": ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			entries := logged(nil, c.log)
			if len(entries) != 1 {
				t.Fatalf("%d entries", len(entries))
			}
			got := entries[0]
			delete(got.fields, "SYSLOG_IDENTIFIER")
			if got.message != c.message || !maps.Equal(got.fields, c.fields) {
				t.Errorf("got %q %v\nwant %q %v", got.message, got.fields, c.message, c.fields)
			}
			for field := range got.fields {
				if !regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`).MatchString(field) {
					t.Errorf("journald does not take a field %q", field)
				}
			}
		})
	}
}

func TestPriorities(t *testing.T) {
	level := &slog.LevelVar{}
	level.Set(slog.LevelDebug)
	entries := logged(level, func(l *slog.Logger) {
		l.Debug("")
		l.Info("")
		l.Warn("")
		l.Error("")
		level.Set(slog.LevelError)
		l.Warn("not any more")
	})
	var got []journal.Priority
	for _, e := range entries {
		got = append(got, e.priority)
	}
	if want := []journal.Priority{journal.PriDebug, journal.PriInfo, journal.PriWarning, journal.PriErr}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := logged(nil, func(l *slog.Logger) { l.Debug("") }); len(got) > 0 {
		t.Error("without a level, debug is logged")
	}
}

// TestText: elsewhere than in the journal the log is slog's text, without events.
func TestText(t *testing.T) {
	with := func(key string) string {
		var b bytes.Buffer
		slog.New(Handler(&b, slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == key {
				return slog.Attr{}
			}
			return a
		}})).Warn("what happened", "event", NoTPM, "node", "n0")
		return b.String()
	}
	if got, want := with(slog.TimeKey), "level=WARN msg=\"what happened\" node=n0\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := with("none"); !strings.HasPrefix(got, "time=") {
		t.Errorf("got %q", got)
	}
}

// TestEnabled: standard error alone counts, and that only if it is the stream that systemd names.
func TestEnabled(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "1:1")
	if Enabled(os.Stderr) || Enabled(&bytes.Buffer{}) {
		t.Error("standard error is no stream to the journal")
	}
}

// declared are the events of event.go: constant and name.
func declared(t *testing.T) map[string]Event {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Event{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		text := strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`)
		found[spec.Names[0].Name] = Event(text)
		return true
	})
	return found
}

// used says which constants of this package the programs' source names.
func used(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, root := range []string{"../../agent", "../../signer"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`\bjournal\.([A-Z]\w*)`).FindAllSubmatch(text, -1) {
				found[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// TestCatalogue: each event that the programs log has an entry in the catalogue with something to do, and the
// catalogue has no other.
func TestCatalogue(t *testing.T) {
	text, err := os.ReadFile("../../systemd/muster.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for _, part := range strings.Split(string(text), "\n-- ")[1:] {
		id, entry, _ := strings.Cut(part, "\n")
		if entries[id] != "" {
			t.Errorf("%s is in the catalogue twice", id)
		}
		entries[id] = entry
	}
	events, inCode := declared(t), used(t)
	if len(events) < 10 {
		t.Errorf("only %d events were found", len(events))
	}
	names := map[Event]bool{}
	for constant, event := range events {
		entry := entries[event.ID()]
		delete(entries, event.ID())
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(event.ID()) || names[event] {
			t.Errorf("%s: identifier %q, or a name that another event has", constant, event.ID())
		}
		names[event] = true
		if !inCode[constant] {
			t.Errorf("%s is logged by nobody", constant)
		}
		head, body, _ := strings.Cut(entry, "\n\n")
		if !strings.HasPrefix(head, "Subject: ") || !strings.Contains(head, "\nDefined-By: Muster") || strings.TrimSpace(body) == "" {
			t.Errorf("%s: the catalogue has %q", constant, entry)
		}
	}
	for id := range entries {
		t.Errorf("%s is in the catalogue, and no event", id)
	}
}

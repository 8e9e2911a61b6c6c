package pid1

import (
	"bytes"
	"log/slog"
	"testing"
)

// TestConsole: a line stays a line, whatever is in it.
func TestConsole(t *testing.T) {
	var out bytes.Buffer
	c := &console{w: &out}
	c.say("name %s", "\x1b[2Jn7\rx")
	c.say("two\nlines\n")
	slog.New(c.handler()).Info("waiting", "event", "x", "head", "h\x07")
	if got, want := out.String(), "muster: name [2Jn7x\r\nmuster: two\r\nmuster: lines\r\nmuster: waiting (head=h)\r\n"; got != want {
		t.Errorf("got %q", got)
	}
}

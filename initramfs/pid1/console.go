package pid1

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"muster/agent"
)

// console is what a person sees of a boot: a line a step. The kernel's log has the lines too, for whoever
// looks later.
type console struct {
	mu   sync.Mutex
	w    io.Writer
	kmsg io.Writer // nil until /dev is mounted
}

// debugLevel keeps the kernel from showing on the console what stands there already (syslog(2)).
const debugLevel = "<7>"

func (c *console) openKmsg() {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		c.kmsg = f
	}
}

func (c *console) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for text := range strings.SplitSeq(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
		// Texts come from networks, and from NV, which root on the node can write.
		line := "muster: " + agent.Clean(text)
		fmt.Fprintf(c.w, "%s\r\n", line)
		if c.kmsg != nil {
			fmt.Fprintf(c.kmsg, "%s%s\n", debugLevel, line)
		}
	}
}

// rebootPause is for a person to read the last lines, and spares the head nodes that boot in circles.
const rebootPause = 10 * time.Second

// handler shows the agent's log, attributes in brackets.
func (c *console) handler() slog.Handler { return &lines{console: c} }

type lines struct {
	console *console
	attrs   []slog.Attr
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	var parts []string
	for _, a := range l.attrs {
		parts = append(parts, a.String())
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "event" { // that is for the journal's catalogue
			parts = append(parts, a.String())
		}
		return true
	})
	if len(parts) == 0 {
		l.console.say("%s", r.Message)
	} else {
		l.console.say("%s (%s)", r.Message, strings.Join(parts, ", "))
	}
	return nil
}

func (l *lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lines{l.console, append(l.attrs[:len(l.attrs):len(l.attrs)], attrs...)}
}

func (l *lines) WithGroup(string) slog.Handler { return l } // the agent's log has none

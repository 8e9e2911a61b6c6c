package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/wire"
)

// replies answers each request with the next of them, the last one for ever.
func replies(list ...http.HandlerFunc) (http.Handler, *atomic.Int32) {
	var n atomic.Int32
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list[min(int(n.Add(1)), len(list))-1](w, r)
	}), &n
}

func reply(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, text)
	}
}

func replyCode(code wire.Code) http.HandlerFunc {
	b, _ := json.Marshal(wire.Error{Code: code, Message: "m\x1b[2Jm"})
	return reply(code.Status(), string(b))
}

func TestCall(t *testing.T) {
	good := reply(200, `{"node":"n0"}`)
	for name, c := range map[string]struct {
		replies []http.HandlerFunc
		n       int32     // requests
		code    wire.Code // of the error; "" for none
	}{
		"at once":         {[]http.HandlerFunc{good}, 1, ""},
		"busy":            {[]http.HandlerFunc{replyCode(wire.Busy), good}, 2, ""},
		"not enabled yet": {[]http.HandlerFunc{replyCode(wire.NotEnabled), replyCode(wire.Pending), good}, 3, ""},
		"refused":         {[]http.HandlerFunc{replyCode(wire.Refused), good}, 1, wire.Refused},
		"revoked":         {[]http.HandlerFunc{replyCode(wire.Revoked), good}, 1, wire.Revoked},
		"stale":           {[]http.HandlerFunc{replyCode(wire.StaleChallenge), good}, 1, wire.StaleChallenge},
		"too long":        {[]http.HandlerFunc{reply(200, `{"node":"`+strings.Repeat("n", wire.MaxBody)+`"}`), good}, 2, ""},
		"padded too long": {[]http.HandlerFunc{reply(200, `{"node":"n0"}`+strings.Repeat(" ", wire.MaxBody)), good}, 2, ""},
		"not JSON":        {[]http.HandlerFunc{reply(200, "<html>"), good}, 2, ""},
		"not ours":        {[]http.HandlerFunc{reply(403, `{"code":"sorry"}`), good}, 2, ""},
		"502":             {[]http.HandlerFunc{reply(502, "bad gateway"), good}, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours := newCA(t, "ours")
			h, n := replies(c.replies...)
			u, s := listen(t, ours.head(t, nil), h)
			cl := testBoot(&trust{pins: []pin{ours.pin()}}, u).client(nil)
			defer cl.close()
			var self wire.Self
			err := cl.call(context.Background(), wire.PathSelf, nil, &self)
			if code(err) != c.code || c.code == "" && (err != nil || self.Node != "n0") || n.Load() != c.n {
				t.Errorf("%d requests, %+v, %v", n.Load(), self, err)
			}
			if err != nil && strings.Contains(err.Error(), "\x1b") {
				t.Errorf("an escape sequence of the head's: %q", err)
			}
			if len(c.replies) > 1 && !strings.HasSuffix(name, "too long") && s.accepted.Load() != 1 {
				t.Errorf("%d connections", s.accepted.Load())
			}
		})
	}
}

// TestRedirectIsNotFollowed: not even to another verified head.
func TestRedirectIsNotFollowed(t *testing.T) {
	ours := newCA(t, "ours")
	var reached atomic.Bool
	to, _ := listen(t, ours.head(t, nil), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached.Store(true) }))
	from, _ := listen(t, ours.head(t, nil), http.RedirectHandler(to.String()+"/v1/self", http.StatusTemporaryRedirect))
	b := testBoot(&trust{pins: []pin{ours.pin()}}, from)
	b.wait = 0
	c := b.client(nil)
	defer c.close()
	err := c.call(context.Background(), wire.PathSelf, nil, &wire.Self{})
	var l *late
	if !errors.As(err, &l) || reached.Load() {
		t.Errorf("reached %v, %v", reached.Load(), err)
	}
}

func TestProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	var used atomic.Bool
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			used.Store(true)
			conn.Close()
		}
	}()
	t.Setenv("HTTPS_PROXY", "http://"+l.Addr().String())
	ours := newCA(t, "ours")
	c := testBoot(&trust{pins: []pin{ours.pin()}}, &url.URL{Scheme: "https", Host: "192.0.2.1:8443"}).client(nil)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	c.call(ctx, wire.PathSelf, nil, &wire.Self{})
	if used.Load() || c.http.Proxy != nil {
		t.Error("a proxy was used")
	}
}

// TestAnotherHead: one that is down, and one that may not be believed, cost no pause; all of them
// strangers end it at once where each is asked once, or where the caller can do without.
func TestAnotherHead(t *testing.T) {
	ours, other := newCA(t, "ours"), newCA(t, "other")
	h, n := replies(reply(200, "{}"))
	good, _ := listen(t, ours.head(t, nil), h)
	bad, _ := listen(t, other.head(t, nil), h)
	down := &url.URL{Scheme: "https", Host: "127.0.0.1:1"}
	for range 5 { // the order is random
		n.Store(0)
		c := testBoot(&trust{pins: []pin{ours.pin()}}, down, bad, good).client(nil)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := c.call(ctx, wire.PathSelf, nil, &wire.Self{}); err != nil || n.Load() != 1 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
		cancel()
		c.close()
	}
	n.Store(0)
	for _, wait := range []time.Duration{0, time.Minute} {
		b := testBoot(&trust{pins: []pin{ours.pin()}}, bad, bad)
		b.wait = wait
		c := b.client(nil)
		c.content = wait > 0
		err := c.call(context.Background(), wire.PathSelf, nil, &wire.Self{})
		if ExitStatus(err) != StatusConfig || n.Load() != 0 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
		c.close()
	}
}

// TestStrangerForAMoment is no answer: the head that comes back after it gets the request. One that
// stays is the outcome when the wait is over.
func TestStrangerForAMoment(t *testing.T) {
	ours, other := newCA(t, "ours"), newCA(t, "other")
	right, wrong := ours.head(t, nil), other.head(t, nil)
	h, n := replies(reply(200, "{}"))
	var spoofed atomic.Int32 // handshakes that the stranger is to have
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if spoofed.Add(-1) >= 0 {
				return &wrong, nil
			}
			return &right, nil
		},
	}}
	go srv.ServeTLS(l, "", "")
	defer srv.Close()
	for name, c := range map[string]struct {
		strange int32
		wait    time.Duration
		status  int
	}{
		"for a moment": {2, time.Minute, StatusDone},
		"for ever":     {1 << 20, time.Second, StatusConfig},
	} {
		n.Store(0)
		spoofed.Store(c.strange)
		b := testBoot(&trust{pins: []pin{ours.pin()}}, &url.URL{Scheme: "https", Host: l.Addr().String()})
		var log bytes.Buffer
		b.log = slog.New(slog.NewTextHandler(&log, nil))
		cl := b.client(nil)
		ctx, cancel := context.WithTimeout(context.Background(), c.wait)
		start := time.Now()
		err := cl.call(ctx, wire.PathSelf, nil, &wire.Self{})
		cancel()
		cl.close()
		if ExitStatus(err) != c.status || (n.Load() == 1) != (err == nil) {
			t.Errorf("%s: %d requests, %v", name, n.Load(), err)
		}
		if err != nil && (time.Since(start) < c.wait || !strings.HasPrefix(err.Error(), "ca_mismatch: ")) {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
		if strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%s: said more than once:\n%s", name, log.String())
		}
	}
	spoofed.Store(1 << 20)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	cl := testBoot(&trust{pins: []pin{ours.pin()}}, &url.URL{Scheme: "https", Host: l.Addr().String()}).client(nil)
	defer cl.close()
	var late *late
	if err := cl.call(ctx, wire.PathSelf, nil, &wire.Self{}); !errors.As(err, &late) || !errors.Is(late.interrupted, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestWaitIsBounded(t *testing.T) {
	ours := newCA(t, "ours")
	h, _ := replies(replyCode(wire.NotEnabled))
	u, _ := listen(t, ours.head(t, nil), h)
	b := testBoot(&trust{pins: []pin{ours.pin()}}, u)
	b.name = "n0"
	c := b.client(nil)
	defer c.close()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := c.call(ctx, wire.PathSelf, nil, &wire.Self{})
	var l *late
	if !errors.As(err, &l) {
		t.Fatalf("got %v", err)
	}
	err = b.lateError(l)
	if ExitStatus(err) != StatusTryAgain || !strings.Contains(Describe(err), "on the head: muster why n0 (") {
		t.Errorf("%s", Describe(err))
	}
	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	err = c.call(ctx, wire.PathSelf, nil, &wire.Self{})
	if !errors.As(err, &l) || !errors.Is(b.lateError(l), context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestPause(t *testing.T) {
	x := &exchange{c: &client{heads: make([]*url.URL, 2)}, last: errors.New("down")}
	for attempt := range 40 {
		d := x.pause(0, 0, attempt, nil)
		if attempt%2 == 0 && d != 0 || attempt%2 == 1 && (d <= 0 || d > maxPause+10*time.Millisecond) {
			t.Errorf("attempt %d: %v", attempt, d)
		}
	}
	for _, s := range []int{1, 7, 120} {
		resp := &http.Response{Header: http.Header{"Retry-After": {fmt.Sprint(s)}}}
		for range 20 {
			d, least := x.pause(0, 0, 0, resp), time.Duration(s)*time.Second
			if d < least || d > least+least/2 {
				t.Errorf("Retry-After %d: %v", s, d)
			}
		}
	}
	x.last = &wire.Error{Code: wire.NotEnabled}
	var most time.Duration
	for range 200 {
		most = max(most, x.pause(0, 0, 0, nil))
	}
	if most < 500*time.Millisecond || most > firstPause+10*time.Millisecond {
		t.Errorf("full jitter under %v: at most %v", firstPause, most)
	}
}

// TestSays: what is logged of an attempt is what happened, and what ends the exchange is not logged.
func TestSays(t *testing.T) {
	good := reply(200, `{"node":"n0"}`)
	for name, c := range map[string]struct {
		replies []http.HandlerFunc
		want    string
	}{
		"not enabled": {[]http.HandlerFunc{replyCode(wire.NotEnabled), good}, `msg="the head says no; waiting" request=/v1/self code=not_enabled`},
		"pending":     {[]http.HandlerFunc{replyCode(wire.Pending), good}, "msg=waiting request=/v1/self code=pending"},
		"busy":        {[]http.HandlerFunc{replyCode(wire.Busy), good}, "msg=waiting request=/v1/self code=busy"},
		"not ours":    {[]http.HandlerFunc{reply(502, ""), good}, `msg="no answer yet" request=/v1/self err=`},
		"refused":     {[]http.HandlerFunc{replyCode(wire.Refused)}, ""},
		"revoked":     {[]http.HandlerFunc{replyCode(wire.Revoked)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours := newCA(t, "ours")
			h, _ := replies(c.replies...)
			u, _ := listen(t, ours.head(t, nil), h)
			b := testBoot(&trust{pins: []pin{ours.pin()}}, u)
			var log bytes.Buffer
			b.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey || a.Key == "head" {
					return slog.Attr{}
				}
				return a
			}}))
			cl := b.client(nil)
			defer cl.close()
			cl.call(context.Background(), wire.PathSelf, nil, &wire.Self{})
			if !strings.Contains(log.String(), c.want) || c.want == "" && log.Len() > 0 || strings.Count(log.String(), "\n") > 1 {
				t.Errorf("got %s\nwant %s", log.String(), c.want)
			}
		})
	}
}

func TestClean(t *testing.T) {
	if got := Clean("a\x1b[2J\u009b1m\u202eb\r\n\u200bé ü\x7f"); got != "a[2J1mbé ü" {
		t.Errorf("%q", got)
	}
}

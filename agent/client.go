package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/hashicorp/go-retryablehttp"

	"muster/internal/journal"
	"muster/internal/wire"
)

const (
	dialTimeout    = 10 * time.Second
	requestTimeout = 90 * time.Second // of one attempt; a chip may test itself for a minute before it signs
	firstPause     = time.Second
	maxPause       = 15 * time.Second
)

// client speaks to the heads, over one connection at a time. Nothing of the node is sent, and
// nothing signed, before a head's certificate has passed every check.
type client struct {
	heads []*url.URL // in the order in which they are tried
	trust *trust
	clock *clock
	log   *slog.Logger
	nv    *x509.Certificate // the certificate in NV; where it verifies it raises the clock's floor
	check func(chain []*x509.Certificate, host string, at time.Time) (*verified, error)
	// present chooses the certificate for a verified head; nil: none.
	present func(*verified) (*tls.Certificate, error)
	online  func(context.Context, error) error
	failed  error // why the last connection was not made; nil where it was
	at      int   // index in heads
	hurry   bool  // each head is asked once: --wait 0
	content bool  // the caller can do without a head, so that strangers in its place end it at once
	http    *http.Transport

	mu     sync.Mutex
	live   *connection // the newest
	parked *connection // dialled, and not yet taken by the transport
}

func (b *boot) client(present func(*verified) (*tls.Certificate, error)) *client {
	c := &client{trust: b.trust, check: b.trust.verifyHead, clock: b.clock, log: b.log, present: present, online: b.online, hurry: b.wait == 0}
	for _, i := range rand.Perm(len(b.heads)) {
		c.heads = append(c.heads, b.heads[i])
	}
	if b.have != nil {
		c.nv = b.have.leaf
	}
	c.http = &http.Transport{ // no Proxy: none is taken from the environment
		DialTLSContext:      c.take,
		MaxConnsPerHost:     1,
		DisableCompression:  true,
		IdleConnTimeout:     time.Minute,
		TLSHandshakeTimeout: requestTimeout,
	}
	return c
}

func (c *client) close() {
	c.mu.Lock()
	parked := c.parked
	c.parked = nil
	c.mu.Unlock()
	if parked != nil {
		parked.Close()
	}
	c.http.CloseIdleConnections()
}

// head is where the client talks to now, or did last.
func (c *client) head() *url.URL { return c.heads[c.at] }

// verified is what is known of the head at the other end of the newest connection.
func (c *client) verified() *verified {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live.verified
}

// connection is a TLS connection to a verified head. It hides the *tls.Conn from http.Transport,
// which has nothing to negotiate on it.
type connection struct {
	net.Conn
	verified *verified
	addr     string
	closed   atomic.Bool
}

func (c *connection) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// fatal is an error that another attempt cannot mend.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// dial connects to addr and verifies the head there.
func (c *client) dial(ctx context.Context, addr string) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	h := &handshake{client: c, host: host}
	conn := tls.Client(raw, h.config())
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if h.err != nil {
			return nil, h.err
		}
		return nil, err
	}
	c.trust.settle(h.verified)
	return &connection{Conn: conn, verified: h.verified, addr: addr}, nil
}

// handshake is the state of one TLS handshake.
type handshake struct {
	client   *client
	host     string
	verified *verified
	err      error // what crypto/tls would flatten into a string
}

func (h *handshake) config() *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: h.host,
		// The root comes in the handshake and only its hash is pinned, which crypto/tls cannot
		// express; so its own verification is off, and verify does all of it: chain to a pin, time,
		// host name, usage. It runs for every connection, and before anything of ours is signed.
		InsecureSkipVerify: true,
		VerifyConnection:   h.verify,
	}
	if h.client.present != nil {
		cfg.GetClientCertificate = h.certificate
	}
	return cfg
}

func (h *handshake) verify(cs tls.ConnectionState) error {
	c := h.client
	if len(cs.PeerCertificates) == 0 {
		return h.fail(errMismatch)
	}
	var nv *x509.Certificate
	if c.nv != nil {
		if _, err := c.trust.verifyNode(c.nv, cs.PeerCertificates[1:], c.nv.NotBefore); err == nil {
			nv = c.nv
		}
	}
	at, err := c.clock.judge(cs.PeerCertificates[0], nv)
	if err == nil {
		h.verified, err = c.check(cs.PeerCertificates, h.host, at)
	}
	return h.fail(err)
}

// certificate is called after the server's certificate, its signature and its Finished were
// verified (RFC 8446, 4.4): only then may the TPM sign.
func (h *handshake) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := h.client.present(h.verified)
	if err != nil {
		return nil, h.fail(err)
	}
	signing := *cert
	signing.PrivateKey = signer{cert.PrivateKey.(crypto.Signer), h}
	return &signing, nil
}

func (h *handshake) fail(err error) error {
	if err != nil {
		h.err = fmt.Errorf("%s: %w", h.host, err)
	}
	return err
}

// keyError is a key in the TPM that did not sign.
type keyError struct{ error }

func (e *keyError) Unwrap() error { return e.error }

// signer keeps the error of the TPM.
type signer struct {
	crypto.Signer
	h *handshake
}

func (s signer) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := s.Signer.Sign(r, digest, opts)
	if err != nil {
		s.h.err = fatal{&keyError{err}}
	}
	return sig, err
}

// connect makes sure of a verified connection to addr before a request is even made up: the CSR in
// it is a signature by the TPM, and no stranger is to have one.
func (c *client) connect(ctx context.Context, addr string) error {
	c.mu.Lock()
	live := c.live
	c.mu.Unlock()
	if live != nil && live.addr == addr && !live.closed.Load() {
		return nil
	}
	if err := c.online(ctx, c.failed); err != nil {
		return err
	}
	conn, err := c.dial(ctx, addr)
	c.failed = err
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.live, c.parked = conn, conn
	c.mu.Unlock()
	return nil
}

// hostPort returns what to dial for a URL.
func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}

// take is the transport's dialler: it hands over the parked connection, or makes another one.
func (c *client) take(ctx context.Context, _, addr string) (net.Conn, error) {
	c.mu.Lock()
	parked := c.parked
	c.parked = nil
	c.mu.Unlock()
	if parked != nil && parked.addr == addr {
		return parked, nil
	}
	if parked != nil {
		parked.Close()
	}
	conn, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.live = conn
	c.mu.Unlock()
	return conn, nil
}

// exchange is one request, in as many attempts as it takes.
type exchange struct {
	c       *client
	path    string
	body    func() ([]byte, error) // nil: GET. It is called with a verified connection at hand.
	answer  any                    // nil: the connection is all that is wanted
	once    map[wire.Code]bool     // codes that are not waited for here
	last    error                  // why the last attempt failed
	said    map[string]string      // what was logged of each head
	tries   int                    // attempts so far
	strange int                    // heads in a row that may not be believed
	denied  error                  // the outcome while none of the heads may be
}

// call sends a request until it has an answer that another attempt would not change, or ctx ends.
// Errors: *wire.Error for what a head refused, an *Outcome where in the end no head may be believed,
// what body returned, and *late when ctx ended first.
func (c *client) call(ctx context.Context, path string, body func() ([]byte, error), answer any, once ...wire.Code) error {
	if len(c.heads) == 0 {
		return badConfig("add muster.head=https://HEAD:8443 to the kernel command line, or give --head", "no head is configured")
	}
	x := &exchange{c: c, path: path, body: body, answer: answer, once: map[wire.Code]bool{}, said: map[string]string{}}
	for _, code := range once {
		x.once[code] = true
	}
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, method, c.head().String()+path, nil)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	_, err = (&retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: x, Timeout: requestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		RetryMax: math.MaxInt, CheckRetry: x.check, Backoff: x.pause, PrepareRetry: x.next,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}).Do(req)
	if err != nil && x.denied != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return x.denied
	}
	if err != nil && ctx.Err() != nil {
		return &late{because: x.last, interrupted: ctx.Err()}
	}
	return err
}

// reach makes sure of a verified connection to a head, with call's patience, before there is anything to
// ask.
func (c *client) reach(ctx context.Context) error { return c.call(ctx, "", nil, nil) }

// late is a wait that ended before a head gave an answer.
type late struct{ because, interrupted error }

func (l *late) Error() string {
	if l.because == nil {
		return l.interrupted.Error()
	}
	return Clean(l.because.Error())
}

func (l *late) Unwrap() error {
	if l.because == nil {
		return l.interrupted
	}
	return l.because
}

// RoundTrip is one attempt.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := x.c.connect(req.Context(), hostPort(req.URL)); err != nil {
		return nil, err
	}
	if x.answer == nil {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: req}, nil
	}
	if x.body != nil {
		b, err := x.body()
		if err != nil {
			return nil, fatal{err}
		}
		req = req.Clone(req.Context())
		req.ContentLength = int64(len(b))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		req.Body, _ = req.GetBody()
	}
	return x.c.http.RoundTrip(req)
}

// check decides whether to try again (retryablehttp.CheckRetry).
func (x *exchange) check(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if err == nil {
		if err = x.read(resp); err == nil {
			return false, nil
		}
	}
	var f fatal
	if errors.As(err, &f) {
		return false, f.error
	}
	if ctx.Err() != nil {
		return false, ctx.Err() // and x.last stays what it was before the end
	}
	var u *url.Error
	if errors.As(err, &u) { // its text repeats method and URL
		err = u.Err
	}
	x.last = err
	x.tries++
	var e *wire.Error
	if errors.As(err, &e) && !x.mayChange(e.Code) {
		return false, err
	}
	// A stranger counts as no answer: whoever sits in the head's place for a moment must not end a
	// first boot (I3).
	if stranger(err) == nil {
		x.strange, x.denied = 0, nil
	} else if x.strange++; x.strange >= len(x.c.heads) {
		x.denied = x.c.trust.headError(x.c.head().Host, err)
		if x.c.hurry || x.c.content {
			return false, x.denied
		}
	}
	if x.c.hurry && x.tries%len(x.c.heads) == 0 {
		return false, &late{because: err, interrupted: context.DeadlineExceeded}
	}
	x.say(err)
	return true, nil
}

// say logs why there will be another attempt, where a head's reason differs from its last one. What
// ends the exchange is its error, and not said twice.
func (x *exchange) say(err error) {
	host, text := x.c.head().Host, err.Error()
	if kind := stranger(err); kind != nil {
		text = kind.Error() // the rest may name the moment
	}
	if x.said[host] == text {
		return
	}
	x.said[host] = text
	log := x.c.log.With("head", host, "request", cmp.Or(x.path, "connect"))
	var e *wire.Error
	switch {
	case errors.As(err, &e) && e.Code == wire.NotEnabled:
		log.Info("the head says no; waiting", "code", e.Code)
	case errors.As(err, &e):
		log.Info("waiting", "code", e.Code)
	case stranger(err) != nil:
		log.Warn("what answers is not a head of this cluster; waiting", "event", journal.Stranger, "err", Clean(err.Error()))
	default:
		log.Info("no answer yet", "err", Clean(err.Error()))
	}
}

// stranger returns why a head may not be believed, nil where that is not what err is about.
func stranger(err error) error {
	for _, target := range []error{errMismatch, errNotHead, errHost, errTime} {
		if errors.Is(err, target) {
			return target
		}
	}
	return nil
}

// mute says whether a head shook no hands for want of a certificate: it signs nothing, itself neither, and crypto/tls
// then sends unrecognized_name (RFC 6066, 3).
func mute(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "unrecognized name")
}

// hintMute is what to do about it.
const hintMute = "on the head: muster status; it has no certificate for itself, as where it may sign nothing"

// mayChange says whether a code is worth another attempt.
func (x *exchange) mayChange(code wire.Code) bool {
	switch code {
	case wire.NotEnabled, wire.Pending, wire.Busy:
		return !x.once[code]
	}
	return false
}

// read takes an answer in. A redirect is an answer that makes no sense, like any other.
func (x *exchange) read(resp *http.Response) error {
	defer resp.Body.Close()
	if x.answer == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxBody+1))
	if err != nil {
		return err
	}
	if len(b) > wire.MaxBody {
		return fmt.Errorf("an answer over %d bytes", wire.MaxBody)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(b, x.answer); err != nil {
			return errors.New("an answer that is not one of Muster's")
		}
		return nil
	}
	if e := ourError(b); e != nil {
		return e
	}
	return fmt.Errorf("HTTP status %d, and not one of Muster's errors", resp.StatusCode)
}

// ourError reads an error of a head's, fit for a console; nil where it is none.
func ourError(body []byte) *wire.Error {
	e := &wire.Error{}
	if json.Unmarshal(body, e) != nil || !known(e.Code) {
		return nil
	}
	e.Message = Clean(e.Message)
	return e
}

func known(code wire.Code) bool {
	switch code {
	case wire.NotEnabled, wire.Pending, wire.Refused, wire.Revoked, wire.KeyBarred,
		wire.StaleChallenge, wire.Busy, wire.BadRequest, wire.TooLarge, wire.NotFound:
		return true
	}
	return false
}

// Clean makes a text of a head's or server's fit for a console: without controls, C1's too, and
// without what turns the direction of writing.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// pause is how long to wait before the next attempt (retryablehttp.Backoff): what Retry-After says
// and up to half as much again, so that a storm spreads; else full jitter under an exponential bound.
func (x *exchange) pause(_, _ time.Duration, attempt int, resp *http.Response) time.Duration {
	if resp != nil {
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil && s > 0 {
			d := time.Duration(s) * time.Second
			return d + rand.N(d/2+1)
		}
	}
	var e *wire.Error
	if n := len(x.c.heads); !errors.As(x.last, &e) && (attempt+1)%n != 0 {
		return 0 // another head may be up
	}
	bound := min(firstPause<<min(attempt/len(x.c.heads), 10), maxPause)
	return 10*time.Millisecond + rand.N(bound)
}

// next goes to another head, unless this one has answered (retryablehttp.PrepareRetry).
func (x *exchange) next(req *http.Request) error {
	var e *wire.Error
	c := x.c
	if len(c.heads) == 1 || errors.As(x.last, &e) && e.Code != wire.Busy {
		return nil
	}
	c.http.CloseIdleConnections()
	c.at = (c.at + 1) % len(c.heads)
	u := *req.URL
	u.Host = c.head().Host
	req.URL, req.Host = &u, u.Host
	return nil
}

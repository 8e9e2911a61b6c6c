package signer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"strconv"
	"sync"
	"time"

	"muster/internal/journal"
	"muster/internal/wire"
	"muster/signer/store"
)

// peer is who sent a request, as far as it is known, for `muster why` and the journal.
type peer struct {
	addr   string
	node   string
	ek     string
	proven bool
}

// NodeHandler serves the node endpoints. Its connections must come through NodeTLS.
func (h *Head) NodeHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathBundle, h.serveBundle)
	mux.HandleFunc("POST "+wire.PathChallenge, serveLeg(h, h.challenge))
	mux.HandleFunc("POST "+wire.PathEnroll, serveLeg(h, h.enroll))
	mux.HandleFunc("GET "+wire.PathSelf, h.serveSelf)
	mux.HandleFunc("POST "+wire.PathReport, h.serveReport)
	mux.HandleFunc("POST "+wire.PathAck, serveNode(h, h.acknowledge))
	mux.HandleFunc("POST "+wire.PathRenewChallenge, serveNode(h, h.renewChallenge))
	mux.HandleFunc("POST "+wire.PathRenew, serveNode(h, h.renew))
	return onlyKnown(mux, h.log, notFound)
}

// NodeTLS is TLS 1.3 without session tickets. A client certificate is asked for and its key's
// possession proven by the handshake; whether it is good is decided on each request, from the
// record, which an end of the certificate changes at once.
func (h *Head) NodeTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"http/1.1"},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return h.server.Load(), nil },
		VerifyConnection:       fewCertificates,
	}
}

// fewCertificates refuses what no node sends: the connection would keep it in memory.
func fewCertificates(cs tls.ConnectionState) error {
	size := 0
	for _, c := range cs.PeerCertificates {
		size += len(c.Raw)
	}
	if len(cs.PeerCertificates) > 4 || size > 8<<10 {
		return errTooMuch
	}
	return nil
}

func (h *Head) serveBundle(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	io.WriteString(w, h.ring.Load().bundle())
}

// serveLeg reads a body within its limits, runs one leg and answers.
func serveLeg[T any](h *Head, leg func(context.Context, []byte, *peer) (*T, *refusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := &peer{addr: address(r)}
		body, no := readBody(r)
		if no != nil {
			h.refused(w, r.Context(), who, no)
			return
		}
		answer, no := leg(r.Context(), body, who)
		if no != nil {
			h.refused(w, r.Context(), who, no)
			return
		}
		h.seen.note(who.node, true, sighting{At: h.now(), Addr: who.addr, EK: who.ek, Proven: who.proven})
		writeJSON(w, http.StatusOK, answer)
	}
}

// serveNode is serveLeg for a node that shows its certificate.
func serveNode[T any](h *Head, call func(context.Context, []byte, *x509.Certificate, *peer) (*T, *refusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cert := clientCertificate(r)
		serveLeg(h, func(ctx context.Context, body []byte, who *peer) (*T, *refusal) {
			if cert == nil {
				return nil, noCertificate()
			}
			return call(ctx, body, cert, who)
		})(w, r)
	}
}

func noCertificate() *refusal {
	return refuse(wire.NotEnabled, whyNotOnRecord, "no client certificate")
}

func (h *Head) serveSelf(w http.ResponseWriter, r *http.Request) {
	who := &peer{addr: address(r)}
	cert := clientCertificate(r)
	if cert == nil {
		h.refused(w, r.Context(), who, noCertificate())
		return
	}
	answer, no := h.self(r.Context(), cert, who)
	if no != nil {
		h.refused(w, r.Context(), who, no)
		return
	}
	h.seen.note(who.node, true, sighting{At: h.now(), Addr: who.addr, EK: who.ek, Proven: true})
	writeJSON(w, http.StatusOK, answer)
}

func clientCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

// readBody refuses a body that is too large, of unknown length or encoded, without reading it.
func readBody(r *http.Request) ([]byte, *refusal) {
	switch {
	case r.ContentLength > wire.MaxBody:
		return nil, refuse(wire.TooLarge, whyTooLarge, "a body of %d bytes", r.ContentLength)
	case r.ContentLength < 0:
		return nil, refuse(wire.BadRequest, whyForm, "a body of unknown length")
	case r.Header.Get("Content-Encoding") != "":
		return nil, refuse(wire.BadRequest, whyForm, "an encoded body")
	case r.Header.Get("Content-Type") != "application/json":
		return nil, refuse(wire.BadRequest, whyForm, "Content-Type is not application/json")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "the body was cut short")
	}
	return body, nil
}

// refused answers with a code that says no more than the peer has earned, and remembers the reason.
func (h *Head) refused(w http.ResponseWriter, ctx context.Context, who *peer, no *refusal) {
	code := h.remember(ctx, who, no)
	if code == wire.Busy {
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	}
	if code == wire.TooLarge || code == wire.BadRequest {
		w.Header().Set("Connection", "close")
	}
	text := message(code)
	if code == wire.BadRequest {
		text = no.detail // about form only, which the peer knows
	}
	writeJSON(w, code.Status(), &wire.Error{Code: code, Message: text})
}

// remember keeps the reason of a refusal, for `muster why` and after proof for the journal. It returns the code that
// the peer has earned.
func (h *Head) remember(ctx context.Context, who *peer, no *refusal) wire.Code {
	now := h.now()
	one := sighting{At: now, Addr: who.addr, Reason: no.reason, Detail: no.detail, EK: who.ek, Proven: who.proven}
	h.seen.note(who.node, no.reason != whyUnknown && h.isKnown(ctx, who.node), one)
	if who.proven {
		h.journalRefusal(ctx, who, no, now)
		return no.code
	}
	// A stranger costs no disk write, so no line in the journal either: debug only.
	h.log.Debug("refused", "node", who.node, "addr", who.addr, "reason", string(no.reason), "detail", no.detail)
	return no.unproven()
}

func (h *Head) isKnown(ctx context.Context, name string) bool {
	item, err := h.store.Get(ctx, prefixSlot+name)
	return err == nil && item.Revision != 0
}

// journalRefusal records a refusal after proof, at most one a minute for each name and reason. Who waits is on record, and
// asks again and again; that others ask beside him is told once, however many they are: a TPM made in software costs nothing.
func (h *Head) journalRefusal(ctx context.Context, who *peer, no *refusal, now time.Time) {
	about := who.node + "/" + string(no.reason)
	switch no.reason {
	case whyStore, whyPending, whyLearned:
		return
	case whyAnother:
		if !h.refusals.first(about + "/" + no.detail) { // which says who waits
			return
		}
	default:
		if !h.refusals.allow(about, now) {
			return
		}
	}
	ev := event(now, "refuse", who.node, map[string]string{"reason": string(no.reason), "detail": no.detail, "ek": who.ek, "addr": who.addr})
	if err := h.store.Commit(ctx, store.Tx{Events: []store.Event{ev}}); err != nil {
		h.log.Error("refusal not recorded", "event", journal.Unrecorded, "node", who.node, "err", err)
	}
}

// throttle lets each name through once a minute, or once. It holds those of the last two minutes, of which a name that
// was removed meanwhile may be one; and of those that come once, who waits: the administrator alone lets another one wait.
type throttle struct {
	mu     sync.Mutex
	last   map[string]time.Time
	tidied time.Time
	came   map[string]bool // of first
}

func (t *throttle) allow(name string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	over := func(at time.Time) bool { age := now.Sub(at); return age < 0 || age >= time.Minute }
	if last, ok := t.last[name]; ok && !over(last) {
		return false
	}
	if over(t.tidied) {
		maps.DeleteFunc(t.last, func(_ string, last time.Time) bool { return over(last) })
		t.tidied = now
	}
	t.last[name] = now
	return true
}

// first lets a name through once.
func (t *throttle) first(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.came[name] {
		return false
	}
	if t.came == nil {
		t.came = map[string]bool{}
	}
	t.came[name] = true
	return true
}

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("signer: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
}

// onlyKnown answers by unknown for paths and methods that mux does not have. It takes a path in one spelling only,
// where mux would redirect to it.
func onlyKnown(mux *http.ServeMux, log *slog.Logger, unknown func(http.ResponseWriter)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Debug("request", "method", r.Method, "path", r.URL.Path, "addr", r.RemoteAddr)
		_, pattern := mux.Handler(r)
		if pattern == "" || r.URL.RawQuery != "" || r.URL.ForceQuery || path.Clean(r.URL.Path) != r.URL.EscapedPath() {
			w.Header().Set("Connection", "close")
			unknown(w)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// notFound is the wire's own form.
func notFound(w http.ResponseWriter) {
	writeJSON(w, wire.NotFound.Status(), &wire.Error{Code: wire.NotFound, Message: message(wire.NotFound)})
}

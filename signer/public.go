package signer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"muster/signer/store"
)

// PublicHandler serves, over plain HTTP, what needs no secrecy: the CRL that certificates point to,
// OCSP, and whether this head is well. It goes on when the store has failed (I8).
func (h *Head) PublicHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /crl/{file}", h.serveCRL)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", h.serveReady)
	others := onlyKnown(mux, h.log, notFound)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asksOCSP(r) {
			h.log.Debug("request", "method", r.Method, "path", pathOCSP, "addr", r.RemoteAddr)
			h.serveOCSP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	})
}

func (h *Head) serveCRL(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(r.PathValue("file"), crlSuffix)
	ca := h.ring.Load().byID(id)
	if !ok || ca == nil {
		http.Error(w, "no CRL of that name", http.StatusNotFound)
		return
	}
	crl := ca.crl.list.Load()
	if crl == nil {
		http.Error(w, "no CRL yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 5280, 4.2.1.13
	serveSigned(w, r, crl.Raw, h.now(), crl.ThisUpdate, crl.NextUpdate)
}

// cachedFor is how long HTTP caches may keep what was signed, and so for how long they may hide a revocation.
const cachedFor = 5 * time.Minute

// serveSigned answers with something signed, for caches as RFC 5019, 6.2 has it, though never for as long as it is
// good.
func serveSigned(w http.ResponseWriter, r *http.Request, der []byte, now, thisUpdate, nextUpdate time.Time) {
	age := min(cachedFor, max(0, nextUpdate.Sub(now))).Truncate(time.Second)
	sum := sha256.Sum256(der)
	header := w.Header()
	header.Set("ETag", fmt.Sprintf(`"%x"`, sum[:16]))
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, no-transform, must-revalidate", int(age.Seconds())))
	header.Set("Last-Modified", thisUpdate.UTC().Format(http.TimeFormat))
	header.Set("Expires", now.Add(age).UTC().Format(http.TimeFormat))
	// Without a time, so that If-Modified-Since is not heard: within one second there can be two.
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(der))
}

func (h *Head) serveReady(w http.ResponseWriter, r *http.Request) {
	if reason, _ := h.NotSigning(r.Context()); reason != "" {
		http.Error(w, reason, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// NotSigning is why this head could sign nothing now, "" if it could: the word that "muster why" and
// /readyz have for it, and more of it. The store is tried once a second at most.
func (h *Head) NotSigning(ctx context.Context) (why string, err error) {
	if no := h.maySign(h.now()); no != nil {
		return string(no.reason), no
	}
	if err := h.writable.check(h.now(), time.Second, func() error { return h.tryStore(ctx) }); err != nil {
		return string(whyStore), err
	}
	return "", nil
}

// tryStore finds out whether the store takes commits: guards alone write nothing.
// Its finding is for all who ask, so that it must not end with the one who asked first.
func (h *Head) tryStore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	item, err := h.store.Get(ctx, keyCluster)
	if err != nil {
		return err
	}
	return h.store.Commit(ctx, store.Tx{Guards: []store.Guard{item.Guard()}})
}

// probe remembers a finding for a while, so that strangers who ask do not crowd out others.
type probe struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

func (p *probe) check(now time.Time, keep time.Duration, look func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if age := now.Sub(p.at); age < 0 || age >= keep {
		p.at, p.err = now, look()
	}
	return p.err
}

package signer

import (
	"fmt"
	"io"
	"net/http"

	"muster/signer/store"
)

// PublicHandler serves, over plain HTTP, what needs no secrecy: the CRL that certificates point to,
// and whether this head is well. It goes on when the store has failed (I8).
func (h *Head) PublicHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+crlPath(h.ca.id()), h.serveCRL)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", h.serveReady)
	return onlyKnown(mux, h.log)
}

func (h *Head) serveCRL(w http.ResponseWriter, _ *http.Request) {
	der := h.crl.Load()
	if der == nil {
		http.Error(w, "no CRL yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 5280, 4.2.1.13
	w.Write(*der)
}

// serveReady says whether this head can sign now.
func (h *Head) serveReady(w http.ResponseWriter, r *http.Request) {
	if no := h.maySign(h.now()); no != nil {
		http.Error(w, string(no.reason), http.StatusServiceUnavailable)
		return
	}
	// Guards alone write nothing, but find out whether the store would.
	item, err := h.store.Get(r.Context(), keyCluster)
	if err == nil {
		err = h.store.Commit(r.Context(), store.Tx{Guards: []store.Guard{item.Guard()}})
	}
	if err != nil {
		http.Error(w, string(whyStore), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

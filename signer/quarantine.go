package signer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"time"

	"muster/internal/journal"
	"muster/signer/store"
)

// maxUnknown bounds the quarantine. Only what our CA signed gets there, so that a stranger cannot fill it.
const maxUnknown = 4096

// unknown is a node certificate of our CA that a peer proved to have the key of, and that is not on record:
// the store has lost it, by a restore say, or the CA's key was used by somebody else.
type unknown struct {
	Node string    `json:"node"`
	DER  []byte    `json:"der"`
	At   time.Time `json:"at"`
	Addr string    `json:"addr"`
}

// quarantine records such a certificate, once. It stays refused. The cheap looks come first, and the CA's
// signature is checked before anything is written (I10).
func (h *Head) quarantine(ctx context.Context, cert *x509.Certificate, who *peer, now time.Time) {
	ca := h.issuerOf(cert)
	// Whoever has the key of a burnt CA can make any number of them.
	if ca == nil || ca.role == roleBurnt || h.full.lately(now) || now.After(cert.NotAfter) || len(cert.URIs) != 1 || cert.URIs[0].String() != h.spiffe("node", cert.Subject.CommonName).String() {
		return
	}
	serial := serialHex(cert.SerialNumber)
	known, err := h.store.Get(ctx, prefixCert+serial)
	if err != nil || known.Revision != 0 {
		return
	}
	item, err := h.store.Get(ctx, prefixUnknown+serial)
	if err != nil || item.Revision != 0 {
		return
	}
	done, no := h.admit(ctx)
	if no != nil {
		return
	}
	forged := cert.CheckSignatureFrom(ca.cert)
	done()
	if forged != nil {
		return
	}
	if h.countUnknown(ctx) >= maxUnknown {
		h.full.at.Store(now.Unix())
		return
	}
	fields := map[string]string{"serial": serial, "addr": who.addr}
	err = h.store.Commit(ctx, store.Tx{
		Guards: []store.Guard{item.Guard()},
		Puts:   []store.Put{put(item.Key, unknown{Node: cert.Subject.CommonName, DER: cert.Raw, At: now.UTC(), Addr: who.addr})},
		Events: []store.Event{event(now, "unknown-cert", cert.Subject.CommonName, fields)},
	})
	if err != nil {
		h.log.Error("certificate that is not on record not recorded", "event", journal.Unrecorded, "serial", serial, "err", err)
		return
	}
	h.log.Warn("a certificate of this CA is not on record", "node", cert.Subject.CommonName, "serial", serial, "addr", who.addr)
}

// fullness is when the quarantine was found to be full. Counting is not cheap, and what it refuses comes again and
// again.
type fullness struct{ at atomic.Int64 } // Unix seconds

func (f *fullness) lately(now time.Time) bool {
	since := now.Unix() - f.at.Load()
	return since >= 0 && since < 60
}

// issuerOf is the CA that a certificate says it is of; nil: none of ours.
func (h *Head) issuerOf(cert *x509.Certificate) *authority {
	for _, ca := range h.ring.Load().members {
		if !ca.gone && ca.issued(cert) {
			return ca
		}
	}
	return nil
}

// issued says whether a certificate says that a signed it.
func (a *authority) issued(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, a.cert.RawSubject)
}

func (h *Head) countUnknown(ctx context.Context) (n int) {
	for range h.store.List(ctx, prefixUnknown) {
		n++
	}
	return n
}

// listUnknown streams the quarantine.
func (h *Head) listUnknown(ctx context.Context, req ListRequest, out *stream) (any, error) {
	wanted, err := h.chosen(ctx, which{ids: req.IDs, expr: req.Selector})
	if err != nil {
		return nil, err
	}
	var done Listed
	for l, err := range h.lostOnes(ctx) {
		if errors.Is(err, store.ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !wanted(l.node) {
			continue
		}
		done.Count++
		view := NodeView{
			Node: l.node, State: StateUnknown, Serial: l.serial(),
			Issued: l.cert.NotBefore.Add(backdate), Expires: l.cert.NotAfter,
		}
		if err := out.item(view); err != nil {
			return nil, err
		}
	}
	return done, nil
}

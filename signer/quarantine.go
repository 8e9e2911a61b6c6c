package signer

import (
	"bytes"
	"context"
	"crypto/x509"
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
	if ca == nil || now.After(cert.NotAfter) || len(cert.URIs) != 1 || cert.URIs[0].String() != h.spiffe("node", cert.Subject.CommonName).String() {
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
	if forged != nil || h.countUnknown(ctx) >= maxUnknown {
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

// issuerOf is the CA that a certificate says it is of; nil: none of ours.
func (h *Head) issuerOf(cert *x509.Certificate) *authority {
	for _, ca := range h.ring.Load().all() {
		if bytes.Equal(cert.RawIssuer, ca.cert.RawSubject) {
			return ca
		}
	}
	return nil
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
	for item, err := range h.store.List(ctx, prefixUnknown) {
		if err != nil {
			return nil, err
		}
		u, err := parse[unknown](item)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(u.DER)
		if err != nil {
			return nil, err
		}
		if !wanted(u.Node) {
			continue
		}
		done.Count++
		view := NodeView{
			Node: u.Node, State: StateUnknown, Serial: item.Key[len(prefixUnknown):],
			Issued: cert.NotBefore.Add(backdate), Expires: cert.NotAfter,
		}
		if err := out.item(view); err != nil {
			return nil, err
		}
	}
	return done, nil
}

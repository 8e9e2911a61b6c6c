package signer

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"time"

	"muster/internal/durable"
	"muster/signer/store"
)

// superseded is the CRL reason (RFC 5280, 5.3.1) of a certificate that another one replaced.
const superseded = 4

// crlEvery is how often a CRL is signed when nothing changes.
const crlEvery = time.Hour

// ended is why and when a certificate ended before its time.
type ended struct {
	At       time.Time `json:"at"`
	Reason   int       `json:"reason"`
	NotAfter time.Time `json:"not_after"` // after this the CRL need not list it
}

// end records that c ended now because another certificate took its place.
func (c *issued) end(now time.Time) store.Put {
	return put(prefixEnded+c.Serial, ended{At: now.UTC(), Reason: superseded, NotAfter: c.NotAfter})
}

// crlRecord is what must never go down: the number and thisUpdate of the newest CRL.
type crlRecord struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
}

func crlPath(id string) string { return "/crl/" + id + ".crl" }

// crlDue asks for a CRL soon. It never blocks.
func (h *Head) crlDue() {
	select {
	case h.crlAsked <- struct{}{}:
	default:
	}
}

// signCRL makes the next CRL, records its number, and only then publishes it.
func (h *Head) signCRL(ctx context.Context) error {
	now := h.now().UTC()
	if no := h.maySign(now); no != nil {
		return no
	}
	item, err := h.store.Get(ctx, keyCRL)
	if err != nil {
		return err
	}
	last := &crlRecord{}
	if item.Revision != 0 {
		if last, err = parse[crlRecord](item); err != nil {
			return err
		}
	}
	next := crlRecord{Number: last.Number + 1, ThisUpdate: later(now, last.ThisUpdate)}
	entries, err := h.endedEntries(ctx, now)
	if err != nil {
		return err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(next.Number), ThisUpdate: next.ThisUpdate, NextUpdate: next.ThisUpdate.Add(crlLife),
		RevokedCertificateEntries: entries,
	}, h.ca.cert, h.ca.key)
	if err != nil {
		return err
	}
	err = h.store.Commit(ctx, store.Tx{Guards: []store.Guard{item.Guard()}, Puts: []store.Put{put(keyCRL, next)}})
	if err != nil {
		return err
	}
	h.signed(next.ThisUpdate)
	return h.publishCRL(der)
}

func (h *Head) endedEntries(ctx context.Context, now time.Time) ([]x509.RevocationListEntry, error) {
	var entries []x509.RevocationListEntry
	for item, err := range h.store.List(ctx, prefixEnded) {
		if err != nil {
			return nil, err
		}
		e, err := parse[ended](item)
		if err != nil {
			return nil, err
		}
		if now.After(e.NotAfter) {
			continue
		}
		serial, ok := new(big.Int).SetString(item.Key[len(prefixEnded):], 16)
		if !ok {
			return nil, fmt.Errorf("record %s: %w", item.Key, store.ErrDamaged)
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.At, ReasonCode: e.Reason})
	}
	return entries, nil
}

// publishCRL writes the CRL where web servers on this head can load it, and serves it.
func (h *Head) publishCRL(der []byte) error {
	base := filepath.Join(h.dir, "public", h.ca.id()+".crl")
	if err := durable.WriteFile(base, der, 0o644); err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	if err := durable.WriteFile(base+".pem", text, 0o644); err != nil {
		return err
	}
	h.crl.Store(&der)
	return nil
}

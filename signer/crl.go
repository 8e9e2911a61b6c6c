package signer

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"muster/internal/durable"
	"muster/internal/journal"
	"muster/signer/store"
)

// crlEvery is how often a CRL is signed when nothing changes.
const crlEvery = time.Hour

// ended is why and when a certificate ended before its time.
type ended struct {
	CA       string    `json:"ca"` // whose CRL lists it
	At       time.Time `json:"at"`
	Reason   crlReason `json:"reason"`
	NotAfter time.Time `json:"not_after"`
}

// end records that c ended now.
func (c *issued) end(now time.Time, why crlReason) store.Put {
	return put(prefixEnded+c.Serial, ended{CA: c.CA, At: now.UTC(), Reason: why, NotAfter: c.NotAfter})
}

// keptFor is how long after its time a certificate stays on record. A CRL lists it so long, which is one at least
// after its end, as RFC 5280, 3.3, asks for.
const keptFor = crlLife

// crlRecord is what must never go down: the number and thisUpdate of the newest CRL.
type crlRecord struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
}

const crlSuffix = ".crl"

func crlPath(id string) string { return "/crl/" + id + crlSuffix }

func (h *Head) crlFile(ca *authority) string {
	return filepath.Join(h.dir, "public", ca.id()+crlSuffix)
}

// crlDue asks for a CRL soon. It never blocks.
func (h *Head) crlDue() {
	select {
	case h.crlAsked <- struct{}{}:
	default:
	}
}

// signCRLs makes the next CRL of each CA.
func (h *Head) signCRLs(ctx context.Context) error {
	now := h.now().UTC()
	if no := h.maySign(now); no != nil {
		return no
	}
	var failed error
	for _, ca := range h.ring.Load().all() {
		err := h.signCRL(ctx, ca.id(), now)
		for errors.Is(err, store.ErrConflict) { // another head, or this one for somebody else, was first
			if err = h.followRing(ctx); err == nil {
				err = h.signCRL(ctx, ca.id(), now)
			}
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// lastCRL is what the newest CRL of a CA was; zero before the first.
func (h *Head) lastCRL(ctx context.Context, ca *authority) (store.Item, *crlRecord, error) {
	item, err := h.store.Get(ctx, prefixCRL+ca.id())
	item.Key = prefixCRL + ca.id()
	if err != nil || item.Revision == 0 {
		return item, &crlRecord{}, err
	}
	last, err := parse[crlRecord](item)
	return item, last, err
}

// damagedCRL goes on from the CRL that is published and from the witness, where the record of its number cannot be
// read. Without either nobody knows the number, and that CA signs no CRL until a restore.
func (h *Head) damagedCRL(ca *authority, err error) (*crlRecord, error) {
	known := h.book.Load().crl()
	if last := ca.crl.list.Load(); last != nil {
		known = known.orLater(crlRecord{last.Number.Int64(), last.ThisUpdate})
	}
	if !errors.Is(err, store.ErrDamaged) || known.Number == 0 {
		return nil, err
	}
	h.log.Error("the record of the last CRL cannot be read: going on from the one that is published, and the witness", "event", journal.Upkeep, "ca", ca.id(), "err", err)
	return &known, nil
}

// signCRL makes the next CRL of a CA, records its number, and only then publishes it. What ended before the
// call is on it.
func (h *Head) signCRL(ctx context.Context, id string, now time.Time) error {
	r := h.ring.Load() // with the role that the CA has at this moment
	ca := r.byID(id)
	if ca == nil || ca.key == nil {
		return nil
	}
	item, last, err := h.lastCRL(ctx, ca)
	guards := []store.Guard{r.item.Guard(), item.Guard()}
	if err != nil {
		if last, err = h.damagedCRL(ca, err); err != nil {
			return err
		}
		guards = guards[:1]
	}
	next := crlRecord{Number: max(last.Number, ca.publishedNumber(), h.book.Load().crl().Number) + 1, ThisUpdate: later(now, last.ThisUpdate)}
	entries, err := h.endedEntries(ctx, ca, now)
	if err != nil {
		return err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(next.Number), ThisUpdate: next.ThisUpdate, NextUpdate: next.ThisUpdate.Add(crlLife),
		RevokedCertificateEntries: entries,
	}, ca.cert, ca.key)
	if err != nil {
		return err
	}
	err = h.store.Commit(ctx, store.Tx{Guards: guards, Puts: []store.Put{put(item.Key, next)}})
	if err != nil {
		return err
	}
	h.signed(next.ThisUpdate)
	failpoint("crl-recorded")
	h.witnessed(ctx, next)
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	return h.publishCRL(ca, crl)
}

// orLater takes the greater of each.
func (r crlRecord) orLater(o crlRecord) crlRecord {
	return crlRecord{max(r.Number, o.Number), later(r.ThisUpdate, o.ThisUpdate)}
}

// publishedNumber is that of the CRL that others may have seen already.
func (a *authority) publishedNumber() int64 {
	if list := a.crl.list.Load(); list != nil {
		return list.Number.Int64()
	}
	return 0
}

// endedEntries are what a CA's CRL lists. A record that cannot be read must keep nothing off the list: what it was
// about is listed by its key, for each CA, since it says no more whose it was.
func (h *Head) endedEntries(ctx context.Context, ca *authority, now time.Time) ([]x509.RevocationListEntry, error) {
	var entries []x509.RevocationListEntry
	listed := map[string]bool{}
	list := func(key string, at time.Time, why crlReason) {
		if serial, ok := new(big.Int).SetString(key, 16); ok && serial.Sign() > 0 && !listed[key] {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: at, ReasonCode: int(why)})
			listed[key] = true
		}
	}
	for item, err := range h.store.List(ctx, prefixEnded) {
		serial := strings.TrimPrefix(item.Key, prefixEnded)
		var e *ended
		if err == nil {
			e, err = parse[ended](item)
		}
		switch {
		case errors.Is(err, store.ErrDamaged):
			h.log.Error("the record of a certificate's end cannot be read: it is listed all the same", "event", journal.Upkeep, "serial", serial, "err", err)
			list(serial, ca.cert.NotBefore, unspecified)
		case err != nil:
			return nil, err
		case e.CA == ca.id() && !now.After(e.NotAfter.Add(keptFor)):
			list(serial, e.At, e.Reason)
		}
	}
	all := h.ring.Load().ended(ca)
	if all == nil {
		return entries, nil
	}
	// Of a CA that ended, all ended with it.
	for item, err := range h.store.List(ctx, prefixCert) {
		var c *certRecord
		if err == nil {
			c, err = parse[certRecord](item)
		}
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return nil, err
		}
		if err == nil && c.Class == classOCSP { // who believes the CA so far as to read its CRL may ask its responder
			continue
		}
		if err != nil || c.CA == ca.id() && !now.After(c.NotAfter.Add(keptFor)) {
			list(strings.TrimPrefix(item.Key, prefixCert), all.At, all.Reason)
		}
	}
	for l, err := range h.lostOnes(ctx) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return nil, err
		}
		if err != nil || ca.issued(l.cert) && !now.After(l.cert.NotAfter.Add(keptFor)) {
			list(strings.TrimPrefix(l.item.Key, prefixUnknown), all.At, all.Reason)
		}
	}
	return entries, nil
}

// publishCRL serves the CRL, and writes it where web servers on this head can load it. A disk that takes no file keeps
// no revocation back from those who ask.
//
// Of two that are signed at the same moment the one with the higher number stays.
func (h *Head) publishCRL(ca *authority, crl *x509.RevocationList) error {
	h.publishing.Lock()
	defer h.publishing.Unlock()
	if crl.Number.Int64() < ca.crl.number {
		return nil
	}
	ca.crl.list.Store(crl)
	ca.crl.number = crl.Number.Int64()
	base := h.crlFile(ca)
	return cmp.Or(
		durable.WriteFile(base, crl.Raw, 0o644),
		durable.WriteFile(base+".pem", crlPEM(crl), 0o644),
		durable.WriteFile(filepath.Join(h.dir, "public", allCRLs), h.crlsPEM(), 0o644),
	)
}

// allCRLs holds the CRL of each CA, since a web server takes one file for all.
const allCRLs = "crl.pem"

func (h *Head) crlsPEM() []byte {
	var text []byte
	for _, ca := range h.ring.Load().members {
		if crl := ca.crl.list.Load(); crl != nil {
			text = append(text, crlPEM(crl)...)
		}
	}
	return text
}

func crlPEM(crl *x509.RevocationList) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl.Raw})
}

// loadCRLs serves the CRLs of the last run until there are newer ones. A file that is none of the CA's, as a damaged
// disk or a hand may leave it, is not served.
func (h *Head) loadCRLs(context.Context) error {
	for _, ca := range h.ring.Load().members {
		der, err := os.ReadFile(h.crlFile(ca))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var crl *x509.RevocationList
		if err == nil {
			crl, err = x509.ParseRevocationList(der)
		}
		if err == nil {
			err = crl.CheckSignatureFrom(ca.cert)
		}
		if h.try("CRL of the last run is not good", err) {
			ca.crl.list.Store(crl)
		}
	}
	return nil
}

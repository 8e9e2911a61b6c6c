package signer

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"muster/internal/journal"
	"muster/signer/store"
)

// lost is a certificate of the quarantine. It ends as others do, and to that end goes back on record.
type lost struct {
	item store.Item
	node string
	cert *x509.Certificate
}

func readLost(item store.Item) (*lost, error) {
	u, err := parse[unknown](item)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(u.DER)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", item.Key, store.ErrDamaged)
	}
	return &lost{item, u.Node, cert}, nil
}

func (l *lost) serial() string { return serialHex(l.cert.SerialNumber) }

// lostOnes are the certificates of the quarantine. One whose record is damaged comes as its key and ErrDamaged.
func (h *Head) lostOnes(ctx context.Context) iter.Seq2[*lost, error] {
	return func(yield func(*lost, error) bool) {
		for item, err := range h.store.List(ctx, prefixUnknown) {
			l := &lost{item: item}
			if err == nil {
				var read *lost
				if read, err = readLost(item); err == nil {
					l = read
				}
			}
			if errors.Is(err, store.ErrDamaged) {
				h.log.Error("the record of a certificate that was lost cannot be read", "event", journal.Upkeep, "key", item.Key, "err", err)
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// record is what the head would know of the certificate had it not been lost.
func (l *lost) record(ca *authority) certRecord {
	key := sha256.Sum256(l.cert.RawSubjectPublicKeyInfo)
	return certRecord{
		Class: classNode, Name: l.node, CA: ca.id(), Key: hex.EncodeToString(key[:]), NotAfter: l.cert.NotAfter.UTC(), DER: l.cert.Raw,
	}
}

// endLost puts a lost certificate on record as one that has ended; bar says whether its key is barred by that.
func (h *Head) endLost(ctx context.Context, l *lost, bar bool, now time.Time, why crlReason) error {
	ca := h.issuerOf(l.cert)
	if ca == nil {
		return nil // nobody believes that CA any more
	}
	c, serial := l.record(ca), l.serial()
	gone, err := h.store.Get(ctx, prefixEnded+serial)
	if err != nil {
		return err
	}
	gone.Key = prefixEnded + serial
	tx := store.Tx{
		Guards:  []store.Guard{l.item.Guard(), gone.Guard()},
		Puts:    []store.Put{put(prefixCert+serial, c)},
		Deletes: []string{l.item.Key},
		Events: []store.Event{event(now, "revoke", l.node, map[string]string{
			"serial": serial, "class": string(c.Class), "name": l.node, "reason": fmt.Sprint(int(why)), "by": byWhom(ctx),
		})},
	}
	if gone.Revision == 0 {
		tx.Puts = append(tx.Puts, put(gone.Key, ended{CA: c.CA, At: now.UTC(), Reason: why, NotAfter: c.NotAfter}))
	}
	if bar {
		tx.Puts = append(tx.Puts, store.Put{Key: prefixBarred + c.Key, Value: []byte(l.node)})
	}
	return h.store.Commit(ctx, tx)
}

// endLostOf ends the lost certificates of names. Who revokes a node means all that it has.
func (h *Head) endLostOf(ctx context.Context, names []string, now time.Time, why crlReason) error {
	var theirs []*lost
	for l, err := range h.lostOnes(ctx) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err == nil && slices.Contains(names, l.node) {
			theirs = append(theirs, l)
		}
	}
	for _, l := range theirs {
		if err := h.endLost(ctx, l, true, now, why); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return nil
}

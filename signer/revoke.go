package signer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"muster/signer/store"
)

// crlReason is why a certificate ended before its time (RFC 5280, 5.3.1).
type crlReason int

const (
	unspecified          crlReason = 0
	keyCompromise        crlReason = 1
	caCompromise         crlReason = 2
	affiliationChanged   crlReason = 3
	superseded           crlReason = 4
	cessationOfOperation crlReason = 5
	privilegeWithdrawn   crlReason = 9
)

// crlReasons are those that an administrator may give. certificateHold is not among them: what is revoked stays
// so (I7).
var crlReasons = map[string]crlReason{
	"unspecified": unspecified, "keyCompromise": keyCompromise, "affiliationChanged": affiliationChanged,
	"superseded": superseded, "cessationOfOperation": cessationOfOperation, "privilegeWithdrawn": privilegeWithdrawn,
}

// Reasons are the names that RevokeRequest takes, in order.
func Reasons() []string { return slices.Sorted(maps.Keys(crlReasons)) }

// RevokeRequest is `muster certs revoke`: of nodes, or of one certificate.
type RevokeRequest struct {
	IDs    []string `json:"ids,omitempty"`
	All    bool     `json:"all,omitempty"`
	Serial string   `json:"serial,omitempty"` // hex
	Reason string   `json:"reason,omitempty"` // one of Reasons; empty: unspecified

	Selector string `json:"selector,omitempty"` // of package selector: narrows IDs or All
	DryRun   bool   `json:"dry_run,omitempty"`  // with Serial: say what would end, and change nothing
}

// adminRevoke ends certificates. When it returns, each head refuses them on the next request, and the CRL
// of this head lists them.
func (h *Head) adminRevoke(ctx context.Context, req RevokeRequest, out *stream) (any, error) {
	why, ok := crlReasons[req.Reason]
	if !ok && req.Reason != "" {
		return nil, adminError(KindUsage, "one of "+strings.Join(Reasons(), ", "), "%q is no reason for a CRL", req.Reason)
	}
	if req.Serial != "" {
		return h.revokeSerial(ctx, req, why)
	}
	names, err := h.resolve(ctx, which{ids: req.IDs, all: req.All, expr: req.Selector}, false)
	if err != nil {
		return nil, err
	}
	now := h.now()
	if err := h.endLostOf(ctx, names, now, why); err != nil {
		return nil, err
	}
	done, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		s, err := parse[slot](item)
		if err != nil {
			return edit{}, err
		}
		return s.revoke(now, why, byWhom(ctx)), nil
	})
	if err != nil {
		h.crlDue() // some may be done
		return nil, err
	}
	return done, h.listRevoked(ctx)
}

// revoke closes the slot, ends its certificates and bars their keys for ever.
func (s *slot) revoke(now time.Time, why crlReason, by string) edit {
	if s.Revoked {
		return edit{slot: *s, what: unchanged}
	}
	e := edit{slot: *s, what: revoked}
	e.slot.Revoked, e.slot.Grant, e.slot.Pending, e.slot.Learned = true, nil, nil, nil
	fields := map[string]string{"reason": fmt.Sprint(int(why)), "by": by}
	keys := map[string]bool{}
	for field, c := range map[string]*issued{"serial": s.Cert, "old": s.Old} {
		if c == nil {
			continue
		}
		fields[field] = c.Serial
		e.tx.Puts = append(e.tx.Puts, c.end(now, why))
		keys[c.Key] = true
	}
	for key := range keys {
		e.tx.Puts = append(e.tx.Puts, store.Put{Key: prefixBarred + key, Value: []byte(s.Node)})
	}
	e.tx.Events = []store.Event{event(now, "revoke", s.Node, fields)}
	return e
}

// revokeSerial ends one certificate. With a node's newest it is the node that is revoked: another certificate
// for the same key would undo it.
func (h *Head) revokeSerial(ctx context.Context, req RevokeRequest, why crlReason) (any, error) {
	if len(req.IDs) > 0 || req.All {
		return nil, adminError(KindUsage, "either --serial or -i", "--serial names a certificate, and -i nodes")
	}
	serial, err := readSerial(req.Serial)
	if err != nil {
		return nil, err
	}
	now := h.now()
	if req.DryRun {
		item, err := h.store.Get(ctx, prefixUnknown+serial)
		if err != nil {
			return nil, err
		}
		if item.Revision != 0 {
			l, err := readLost(item)
			if err != nil {
				return nil, err
			}
			return &Changed{Schema: changedSchema, Nodes: l.node, Count: 1, Serial: serial}, nil
		}
	}
	found, err := h.findLost(ctx, serial, now, why)
	if err != nil {
		return nil, err
	}
	item, err := h.store.Get(ctx, prefixCert+serial)
	if err != nil {
		return nil, err
	}
	if item.Revision == 0 {
		return nil, adminError(KindNone, "muster certs list -o wide; or: muster certs list --state unknown", "no certificate %s is on record", serial)
	}
	c, err := parse[certRecord](item)
	if err != nil {
		return nil, err
	}
	bar, err := h.store.Get(ctx, prefixBarred+c.Key)
	bar.Key = prefixBarred + c.Key
	if err != nil {
		return nil, err
	}
	gone, err := h.store.Get(ctx, prefixEnded+serial)
	if err != nil && !errors.Is(err, store.ErrDamaged) { // one that is damaged is on the CRL
		return nil, err
	}
	known := err != nil || gone.Revision != 0
	var done *Changed
	var alone, keeps string // of a node that is not revoked with it
	slotItem, err := h.store.Get(ctx, prefixSlot+c.Name)
	if err != nil {
		return nil, err
	}
	if (c.Class == classNode || c.Class == classHost) && slotItem.Revision != 0 {
		done, err = h.changeOne(ctx, c.Name, func(item store.Item) (edit, error) {
			s, err := parse[slot](item)
			if err != nil {
				return edit{}, err
			}
			e := s.revokeSerial(serial, bar, now, why, byWhom(ctx))
			if ends := prefixEnded + serial; !known && !slices.ContainsFunc(e.tx.Puts, func(p store.Put) bool { return p.Key == ends }) {
				e.what = revoked // the slot names another, and this one was good for who looks at dates alone
				e.tx.Puts = append(e.tx.Puts, put(ends, ended{CA: c.CA, At: now.UTC(), Reason: why, NotAfter: c.NotAfter}))
			}
			alone, keeps = "", ""
			if !e.slot.Revoked {
				alone = serial
				if s.Cert != nil {
					keeps = s.Cert.Serial
				}
			}
			if req.DryRun {
				e.what = unchanged
			}
			return e, nil
		})
	} else {
		alone = serial
		if req.DryRun {
			done = &Changed{Schema: changedSchema, Nodes: c.Name, Count: 1}
		} else {
			done, err = h.endOther(ctx, serial, c, now, why)
		}
	}
	if err != nil {
		return nil, err
	}
	if found {
		done.Revoked, done.Unchanged = c.Name, ""
	}
	if alone != "" { // nobody is revoked
		done.Serial, done.Keeps = alone, keeps
		done.Altered, done.Revoked = done.Revoked, ""
	}
	if req.DryRun {
		return done, nil
	}
	if server := h.server.Load(); server != nil && serialHex(server.Leaf.SerialNumber) == serial {
		err = h.renewServer(ctx)
	}
	return done, errors.Join(err, h.listRevoked(ctx))
}

// findLost ends a certificate that the quarantine alone knows, and says whether it did. Whether its key is barred is
// for its node's record to say, where there is one.
func (h *Head) findLost(ctx context.Context, serial string, now time.Time, why crlReason) (bool, error) {
	item, err := h.store.Get(ctx, prefixUnknown+serial)
	if err != nil || item.Revision == 0 {
		return false, err
	}
	l, err := readLost(item)
	if err != nil {
		return false, err
	}
	named, err := h.store.Get(ctx, prefixSlot+l.node)
	if err != nil {
		return false, err
	}
	return true, h.endLost(ctx, l, named.Revision == 0, now, why)
}

// revokeSerial ends the certificate that the node's newest replaces, or all of the node; of one that has ended
// before, it bars the key. bar is the item that does so. The key of the newest is barred with the node alone, which
// a compromised key ends, whichever of its certificates is named.
func (s *slot) revokeSerial(serial string, bar store.Item, now time.Time, why crlReason, by string) edit {
	key := strings.TrimPrefix(bar.Key, prefixBarred)
	if s.Cert != nil && (s.Cert.Serial == serial || s.Cert.Key == key && why == keyCompromise) {
		return s.revoke(now, why, by)
	}
	e := edit{slot: *s, what: unchanged}
	if s.Old != nil && s.Old.Serial == serial {
		e.what, e.slot.Old = revoked, nil
		e.tx.Puts = []store.Put{s.Old.end(now, why)}
	}
	if bar.Revision == 0 && (s.Cert == nil || s.Cert.Key != key) {
		e.what = revoked
		e.tx.Puts = append(e.tx.Puts, store.Put{Key: bar.Key, Value: []byte(s.Node)})
	}
	e.tx.Events = []store.Event{event(now, "revoke", s.Node, map[string]string{"serial": serial, "reason": fmt.Sprint(int(why)), "by": by})}
	return e
}

// endOther ends a certificate that is no node's.
func (h *Head) endOther(ctx context.Context, serial string, c *certRecord, now time.Time, why crlReason) (*Changed, error) {
	done := &Changed{Schema: changedSchema, Nodes: c.Name, Count: 1}
	err := h.store.Commit(ctx, store.Tx{
		Guards: []store.Guard{{Key: prefixEnded + serial}},
		Puts:   []store.Put{put(prefixEnded+serial, ended{CA: c.CA, At: now.UTC(), Reason: why, NotAfter: c.NotAfter})},
		Events: []store.Event{event(now, "revoke", "", map[string]string{
			"serial": serial, "class": string(c.Class), "name": c.Name, "reason": fmt.Sprint(int(why)), "by": byWhom(ctx),
		})},
	})
	switch {
	case errors.Is(err, store.ErrConflict):
		done.Unchanged = c.Name
		return done, nil
	case err == nil:
		done.Revoked = c.Name
	}
	return done, err
}

// readSerial takes a serial number as OpenSSL, browsers and this program print it.
func readSerial(text string) (string, error) {
	digits := strings.ToLower(strings.ReplaceAll(text, ":", ""))
	digits = strings.TrimLeft(strings.TrimPrefix(digits, "0x"), "0")
	if digits == "" || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", adminError(KindUsage, "muster certs list -o wide", "%q is not the serial number of a certificate, in hex", text)
	}
	return strings.Repeat("0", 32-len(digits)) + digits, nil
}

// listRevoked signs the CRL at once. The revocation stands without it: heads look at the record.
func (h *Head) listRevoked(ctx context.Context) error {
	failpoint("revoked")
	err := h.signCRLs(ctx)
	if err == nil {
		return nil
	}
	h.crlDue()
	hint := "journalctl -u muster; the head tries again by itself"
	if no := h.maySign(h.now()); no != nil {
		hint = notSigningHint(no.reason)
	}
	return adminError(KindPartly, hint, "revoked, and every head refuses it; but the CRL is not signed, or not in its files: %v", err)
}

// prune removes the records of certificates that are long over, lost ones too, of their ends, and of the keys that no
// certificate on record is for any more. What cannot be read stays.
func (h *Head) prune(ctx context.Context, now time.Time) error {
	over := func(prefix string, notAfter func(store.Item) (time.Time, error)) (keys []string, err error) {
		for item, err := range h.store.List(ctx, prefix) {
			if err != nil && !errors.Is(err, store.ErrDamaged) {
				return nil, err
			}
			if at, err := notAfter(item); err == nil && now.After(at.Add(keptFor)) {
				keys = append(keys, item.Key)
			}
		}
		return keys, nil
	}
	certs, err := over(prefixCert, func(item store.Item) (time.Time, error) {
		c, err := parse[certRecord](item)
		if err != nil {
			return time.Time{}, err
		}
		return c.NotAfter, nil
	})
	if err != nil {
		return err
	}
	ends, err := over(prefixEnded, func(item store.Item) (time.Time, error) {
		e, err := parse[ended](item)
		if err != nil {
			return time.Time{}, err
		}
		return e.NotAfter, nil
	})
	if err != nil {
		return err
	}
	lostOnes, err := over(prefixUnknown, func(item store.Item) (time.Time, error) {
		l, err := readLost(item)
		if err != nil {
			return time.Time{}, err
		}
		return l.cert.NotAfter, nil
	})
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(slices.Concat(certs, ends, lostOnes), store.MaxOps) {
		if err := h.store.Commit(ctx, store.Tx{Deletes: chunk}); err != nil {
			return err
		}
	}
	return h.pruneKeys(ctx)
}

// pruneKeys frees the keys that no certificate on record is for: a node may change its key each day. The keys are read
// before the certificates, so that one which gets a certificate meanwhile is found with it, or does not stand as it was
// read. With a record that cannot be read all stay, since it may be of any of them.
func (h *Head) pruneKeys(ctx context.Context) error {
	keys := map[string]store.Item{}
	for item, err := range h.store.List(ctx, prefixKey) {
		if err != nil {
			return damagedStays(err)
		}
		keys[strings.TrimPrefix(item.Key, prefixKey)] = item
	}
	for item, err := range h.store.List(ctx, prefixCert) {
		var c *certRecord
		if err == nil {
			c, err = parse[certRecord](item)
		}
		if err != nil {
			return damagedStays(err)
		}
		delete(keys, c.Key)
	}
	for item, err := range h.store.List(ctx, prefixSlot) {
		var s *slot
		if err == nil {
			s, err = parse[slot](item)
		}
		if err != nil {
			return damagedStays(err)
		}
		for _, c := range []*issued{s.Cert, s.Old} { // over, and may be renewed all the same
			if c != nil {
				delete(keys, c.Key)
			}
		}
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Values(keys)), store.MaxOps) {
		var tx store.Tx
		for _, item := range chunk {
			tx.Guards, tx.Deletes = append(tx.Guards, item.Guard()), append(tx.Deletes, item.Key)
		}
		if err := h.store.Commit(ctx, tx); err != nil && !errors.Is(err, store.ErrConflict) { // the next time, then
			return err
		}
	}
	return nil
}

// damagedStays is no failure where a record cannot be read: others say so.
func damagedStays(err error) error {
	if errors.Is(err, store.ErrDamaged) {
		return nil
	}
	return err
}

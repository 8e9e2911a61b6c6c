package signer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"muster/internal/durable"
	"muster/internal/journal"
	"muster/signer/store"
)

// role is where a CA is in its life.
type role string

const (
	roleActive  role = "active"  // it signs
	roleNext    role = "next"    // nodes are to know it before it signs
	roleRetired role = "retired" // its certificates are good until they are over
	roleOver    role = "over"    // its certificates are over; a node that was away long may still pin it
	roleDead    role = "dead"    // its certificates ended with it; nodes come back along the cross-certificate
	roleBurnt   role = "burnt"   // somebody else may have its key: as dead, and nothing may lead from it
)

// caRecord is the cluster's CAs: the newest first, which signs or is about to. Keys are in files beside the store.
type caRecord struct {
	Members []caMember `json:"members"`
}

type caMember struct {
	Role  role      `json:"role"`
	Key   string    `json:"key"`            // file below ca/
	Gone  bool      `json:"gone,omitempty"` // the key is removed: all that it signed is over
	Cert  []byte    `json:"cert"`
	Chain [][]byte  `json:"chain,omitempty"` // of an intermediate: those above it, the root last
	Cross []byte    `json:"cross,omitempty"` // over this CA's key, by the CA before it
	Back  []byte    `json:"back,omitempty"`  // over the key of the CA before it, by this one
	Since time.Time `json:"since"`           // of the role
}

// ring is the cluster's CAs as they are in memory. It is never changed: a rotation makes the next one.
type ring struct {
	members []*authority // the newest first
	item    store.Item   // the record that it is
}

// all are the CAs that sign something, if it is but their CRL.
func (r *ring) all() []*authority {
	return slices.DeleteFunc(slices.Clone(r.members), func(a *authority) bool { return a.key == nil })
}

func (r *ring) byRole(want role) *authority {
	i := slices.IndexFunc(r.members, func(a *authority) bool { return a.role == want })
	if i < 0 {
		return nil
	}
	return r.members[i]
}

// byID is the CA of that id; nil: none of ours.
func (r *ring) byID(id string) *authority {
	i := slices.IndexFunc(r.members, func(a *authority) bool { return a.id() == id })
	if i < 0 {
		return nil
	}
	return r.members[i]
}

// lives says whether the CA of that id vouches for what it signed.
func (r *ring) lives(id string) bool {
	a := r.byID(id)
	return a != nil && !a.ended()
}

// endOf is when c ended with its CA, at the latest, and whether that is burnt; zero: the CA vouches for it.
func (r *ring) endOf(c *issued) (at time.Time, burnt bool) {
	a := r.byID(c.CA)
	switch {
	case a == nil:
		return c.Issued, false
	case a.ended():
		return a.since, a.role == roleBurnt
	}
	return time.Time{}, false
}

// ended is the end of all that a CA has signed, of one that no longer vouches for it; nil: it does.
func (r *ring) ended(ca *authority) *ended {
	if r.lives(ca.id()) {
		return nil
	}
	return &ended{CA: ca.id(), At: ca.since, Reason: ca.endReason(), NotAfter: ca.cert.NotAfter}
}

// endReason is the one that a CRL gives for what ended with its CA.
func (a *authority) endReason() crlReason {
	if a.role == roleBurnt {
		return caCompromise
	}
	return cessationOfOperation
}

// trusted are the roots of the CAs that sign, will sign, or have certificates about.
func (r *ring) trusted() []*x509.Certificate {
	var roots []*x509.Certificate
	for _, a := range r.members {
		if !a.gone && !a.ended() {
			roots = append(roots, a.root())
		}
	}
	return roots
}

// bundle is what nodes are to trust, PEM.
func (r *ring) bundle() string {
	var text []byte
	for _, root := range r.trusted() {
		text = append(text, certificatePEM(root.Raw)...)
	}
	return string(text)
}

// pins are those of the CAs in the bundle.
func (r *ring) pins() []string {
	var pins []string
	for _, a := range r.members {
		if !a.gone && !a.ended() {
			pins = append(pins, a.pin())
		}
	}
	return pins
}

// ended says whether what a signed has ended with it.
func (a *authority) ended() bool { return a.role == roleDead || a.role == roleBurnt }

// sent goes along with a head's certificate: each root, since a node may know only its hash, and each
// cross-certificate, but for those of burnt CAs and those that lead to one that is dead. Its successor has no
// cross-certificate by a burnt CA.
func (r *ring) sent() [][]byte {
	var der [][]byte
	for i, a := range r.members {
		var before *authority // whose key signed a.cross
		if i+1 < len(r.members) {
			before = r.members[i+1]
		}
		// OpenSSL takes the first that fits, so a root that it does not trust must not come before the cross-certificate
		// that leads on.
		if before != nil && a.cross != nil && a.role != roleBurnt {
			der = append(der, a.cross)
		}
		if a.role != roleBurnt {
			der = append(der, a.cert.Raw)
			der = append(der, a.above()...)
		}
		if before == nil {
			continue
		}
		if a.back != nil && !before.ended() && !before.gone {
			der = append(der, a.back)
		}
	}
	return der
}

// above are the certificates over an intermediate, DER.
func (a *authority) above() [][]byte {
	var der [][]byte
	for _, c := range a.chain {
		der = append(der, c.Raw)
	}
	return der
}

// newest is the CA that every node is to know: the one that signs, or the one that will.
func (r *ring) newest() *authority { return r.members[0] }

// ca is the CA that signs now.
func (h *Head) ca() *authority { return h.ring.Load().byRole(roleActive) }

// good says whether c is a certificate that the record still gives and takes.
func (h *Head) good(c *issued, now time.Time) bool {
	return c != nil && now.Before(c.NotAfter) && h.ring.Load().lives(c.CA)
}

// record is the ring as the store keeps it.
func (r *ring) record() caRecord {
	var rec caRecord
	for _, a := range r.members {
		rec.Members = append(rec.Members, caMember{Role: a.role, Key: a.keyFile, Gone: a.gone, Cert: a.cert.Raw, Chain: a.above(), Cross: a.cross, Back: a.back, Since: a.since})
	}
	return rec
}

func (h *Head) loadRing(ctx context.Context) error {
	r, err := h.readRing(ctx)
	if err != nil {
		return err
	}
	h.adopt(r)
	h.tidy()
	return nil
}

// readRing reads the CAs on record, and the key of each that signs anything, CRLs included.
func (h *Head) readRing(ctx context.Context) (*ring, error) {
	item, err := h.store.Get(ctx, keyCAs)
	if err != nil {
		return nil, err
	}
	if item.Revision == 0 {
		return nil, fmt.Errorf("no CA is on record: %w", store.ErrDamaged)
	}
	rec, err := parse[caRecord](item)
	if err != nil {
		return nil, err
	}
	r, was := &ring{item: item}, h.ring.Load()
	for _, m := range rec.Members {
		a, err := h.loadMember(m, was)
		if err != nil {
			return nil, err
		}
		r.members = append(r.members, a)
	}
	if r.byRole(roleActive) == nil {
		return nil, fmt.Errorf("record %s names no CA that signs: %w", keyCAs, store.ErrDamaged)
	}
	return r, nil
}

// adopt makes r the ring, unless the one that is there is as new: what is read from the record while another turns
// the ring may come late. CRL and responder are shared by all that a CA has been.
func (h *Head) adopt(r *ring) {
	h.adopting.Lock()
	defer h.adopting.Unlock()
	if was := h.ring.Load(); was != nil {
		if r.item.Revision <= was.item.Revision {
			return
		}
		for _, a := range r.members {
			if same := was.byID(a.id()); same != nil && a.crl != same.crl {
				a.crl, a.responder = same.crl, same.responder
			}
		}
	}
	h.ring.Store(r)
}

// tidy brings the files in line with the record.
func (h *Head) tidy() {
	if h.setBack != nil {
		return // an older store may not know the CAs that nodes trust now
	}
	r := h.ring.Load()
	h.try("the CAs' keys are not in their places", h.keepKeys(r))
	h.try("public/ca.pem not written", h.publishBundle(r))
}

// followRing takes the ring that is on record, where that is a newer one: another head may have turned it. Of many
// that come at once one reads it, since to decrypt a key takes long.
func (h *Head) followRing(ctx context.Context) error {
	newer := func() (bool, error) {
		item, err := h.store.Get(ctx, keyCAs)
		return item.Revision > h.ring.Load().item.Revision, err
	}
	if is, err := newer(); err != nil || !is {
		return err
	}
	h.following.Lock()
	defer h.following.Unlock()
	if is, err := newer(); err != nil || !is {
		return err
	}
	h.crlDue()
	return h.loadRing(ctx)
}

// notStored is why a transaction that guards the ring failed. It is a conflict, to be tried again, only if the ring on
// record could be followed: with the old one each try would sign in vain.
func (h *Head) notStored(ctx context.Context, err error) *refusal {
	if behind := h.followRing(ctx); behind != nil {
		return storeRefusal(fmt.Errorf("%w (%v)", behind, err))
	}
	return storeRefusal(err)
}

// loadMember is a CA of the record, with the key that it has in was, or in its file.
func (h *Head) loadMember(m caMember, was *ring) (*authority, error) {
	a := &authority{
		crl: &published{}, responder: new(atomic.Pointer[responder]),
		role: m.Role, keyFile: m.Key, gone: m.Gone, cross: m.Cross, back: m.Back, since: m.Since,
	}
	var err error
	if a.cert, err = x509.ParseCertificate(m.Cert); err != nil {
		return nil, fmt.Errorf("record %s: %w", keyCAs, store.ErrDamaged)
	}
	for _, der := range m.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", keyCAs, store.ErrDamaged)
		}
		a.chain = append(a.chain, c)
	}
	if m.Gone {
		return a, a.complete()
	}
	if was != nil {
		if i := slices.IndexFunc(was.members, func(o *authority) bool { return o.key != nil && o.cert.Equal(a.cert) }); i >= 0 {
			a.key = was.members[i].key
			return a, a.check()
		}
	}
	err = h.loadKey(a)
	if err != nil && m.Role != roleActive {
		// The head goes on without it: what the others signed, and this one's last CRL, are good all the same.
		h.log.Error("a CA that does not sign has lost its key, and so signs no CRL", "event", journal.Upkeep, "ca", a.cert.Subject.String(), "err", err)
		return a, a.complete()
	}
	return a, err
}

func (h *Head) loadKey(a *authority) error {
	path := h.caFile(a.keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		// It was not given its name yet when the head ended, see makeNext.
		text, err = os.ReadFile(path + unborn)
	}
	if errors.Is(err, os.ErrNotExist) {
		text, err = os.ReadFile(path) // or just now
	}
	if err != nil {
		return err
	}
	if a.key, err = parseKey(text, h.passphrase); err != nil {
		return err
	}
	if len(h.passphrase) > 0 && !isEncrypted(text) {
		h.log.Warn("the CA's key is not encrypted: its passphrase protects nothing", "event", journal.SettingIgnored, "setting", "ca-passphrase")
	}
	if err := a.check(); err != nil {
		a.key = nil
		return err
	}
	return nil
}

// keepKeys gives the keys that are on record their names, and removes those of CAs that are over.
func (h *Head) keepKeys(r *ring) error {
	var failed error
	moved := false
	for _, a := range r.members {
		path := h.caFile(a.keyFile)
		var err error
		if a.gone {
			err = os.Remove(path)
		} else {
			err = os.Rename(path+unborn, path)
		}
		moved = moved || err == nil
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	if moved {
		failed = errors.Join(failed, durable.SyncDir(h.caFile("")))
	}
	return failed
}

func (h *Head) caFile(name string) string { return filepath.Join(h.dir, "ca", name) }

// publishBundle writes what nodes are to trust where web servers on this head, and people, find it.
func (h *Head) publishBundle(r *ring) error {
	path := filepath.Join(h.dir, "public/ca.pem")
	want := []byte(r.bundle())
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	return durable.WriteFile(path, want, 0o644)
}

// turn makes next the ring in the place of was, on record first. Whoever asked for it may be gone before it is done;
// done it is all the same.
func (h *Head) turn(ctx context.Context, was, next *ring, ev store.Event) error {
	ctx = context.WithoutCancel(ctx)
	rec := put(keyCAs, next.record())
	err := h.store.Commit(ctx, store.Tx{Guards: []store.Guard{was.item.Guard()}, Puts: []store.Put{rec}, Events: []store.Event{ev}})
	failpoint("turned")
	if errors.Is(err, store.ErrConflict) {
		return adminError(KindFailed, "muster ca show", "the CAs were changed meanwhile: %v", errors.Join(err, h.followRing(ctx)))
	}
	item, again := h.store.Get(ctx, keyCAs)
	switch {
	case again == nil && bytes.Equal(item.Value, rec.Value): // also where the store could not say what came of the commit
	case err != nil:
		return err
	default:
		return cmp.Or(again, h.loadRing(ctx))
	}
	next.item = item
	h.adopt(next)
	h.signed(ev.Time)
	h.tidy()
	// What follows is made from the record, and so again at each start.
	if err := errors.Join(h.renewServer(ctx), h.renewResponders(ctx), h.signCRLs(ctx)); err != nil {
		h.crlDue()
		return adminError(KindPartly, "journalctl -u muster; the head tries again by itself", "done, but not all of it is out yet: %v", err)
	}
	return nil
}

// with is the ring after some of its members took other roles. The others stay the same authority.
func (r *ring) with(now time.Time, roles map[string]role) *ring {
	next := &ring{}
	for _, a := range r.members {
		if to, ok := roles[a.id()]; ok {
			a = a.as(to, now)
		}
		next.members = append(next.members, a)
	}
	return next
}

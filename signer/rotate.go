package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muster/internal/durable"
	"muster/internal/wire"
	"muster/signer/store"
)

// RotateRequest is `muster ca rotate`.
//
// A rotation has two steps, and between them nodes learn of the next CA: the first one makes it, and it and the
// old one certify each other; Finish lets it sign. RevokeAll takes both at once and ends what the old one
// signed. Compromised does that too, and lets nothing lead from the old CA to the new.
type RotateRequest struct {
	Finish      bool `json:"finish,omitempty"`
	Force       bool `json:"force,omitempty"` // with Finish: though nodes have not acknowledged
	RevokeAll   bool `json:"revoke_all,omitempty"`
	Compromised bool `json:"compromised,omitempty"`
}

// Rotated is what a rotation did.
type Rotated struct {
	Schema  string `json:"schema"`
	Pin     string `json:"pin"`               // of the newest CA
	Waiting string `json:"waiting,omitempty"` // nodes that have not acknowledged it, folded
	Broken  string `json:"broken,omitempty"`  // nodes that Force left behind, folded
	Ended   int    `json:"ended,omitempty"`   // certificates that ended
}

func (h *Head) adminRotate(ctx context.Context, req RotateRequest, _ *stream) (any, error) {
	if no := h.maySign(h.now()); no != nil {
		return nil, adminError(KindPolicy, "set the head's clock", "%s", no.detail)
	}
	h.rotating.Lock()
	defer h.rotating.Unlock()
	switch {
	case req.RevokeAll || req.Compromised:
		return h.revokeAll(ctx, req.Compromised)
	case req.Finish:
		return h.finishRotation(ctx, req.Force)
	}
	return h.beginRotation(ctx)
}

// beginRotation makes the next CA and tells of it.
func (h *Head) beginRotation(ctx context.Context) (any, error) {
	old := h.ring.Load()
	if old.byRole(roleNext) != nil {
		return nil, adminError(KindPolicy, "muster ca show says which nodes have not acknowledged; then: muster ca rotate --finish", "a rotation is under way")
	}
	now := h.now()
	next, err := h.makeNext(old, now, true)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{"ca": next.newest().id(), "pin": next.newest().pin(), "by": byWhom(ctx)}
	if err := h.turn(ctx, old, next, event(now, "ca-next", "", fields)); err != nil {
		return nil, err
	}
	waiting, err := h.unacknowledged(ctx, next.newest(), now)
	return Rotated{Schema: rotatedSchema, Pin: next.newest().pin(), Waiting: fold(waiting)}, err
}

const rotatedSchema = "muster.rotated/v1"

// makeNext is the ring with a new CA before the others, whose key is in its file already. linked says whether it
// and the one that signs certify each other.
func (h *Head) makeNext(old *ring, now time.Time, linked bool) (*ring, error) {
	if err := h.dropOrphans(old); err != nil {
		return nil, err
	}
	a, err := newAuthority(h.cluster.Name, now)
	if err != nil {
		return nil, err
	}
	a.role, a.keyFile = roleNext, a.id()+keySuffix
	if linked {
		signing := old.byRole(roleActive)
		if signing.cert.MaxPathLenZero {
			return nil, adminError(KindPolicy, "ask whoever made the CA for one without that limit; --compromised makes another without a link",
				"the path length of the CA's certificate is 0, so that it can certify no other CA")
		}
		if a.cross, err = signing.certifyCA(a); err != nil {
			return nil, err
		}
		if a.back, err = a.certifyCA(signing); err != nil {
			return nil, err
		}
	}
	text, err := marshalKey(a.key, h.passphrase)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(h.caFile(a.keyFile), text, 0o600); err != nil {
		return nil, err
	}
	failpoint("keyed")
	return &ring{members: slices.Concat([]*authority{a}, old.members)}, nil
}

const keySuffix = ".key"

// dropOrphans removes the keys of rotations that were cut short before anybody heard of them.
func (h *Head) dropOrphans(r *ring) error {
	files, err := filepath.Glob(h.caFile(strings.Repeat("[0-9a-f]", 16) + keySuffix))
	if err != nil {
		return err
	}
	for _, path := range files {
		if r.byID(strings.TrimSuffix(filepath.Base(path), keySuffix)) == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishRotation lets the next CA sign.
func (h *Head) finishRotation(ctx context.Context, force bool) (any, error) {
	old := h.ring.Load()
	to := old.byRole(roleNext)
	if to == nil {
		return nil, adminError(KindPolicy, "muster ca rotate", "no rotation is under way")
	}
	now := h.now()
	waiting, err := h.unacknowledged(ctx, to, now)
	if err != nil {
		return nil, err
	}
	if len(waiting) > 0 && !force {
		return nil, adminError(KindPolicy, "boot them, or on each: muster-agent run; --finish --force leaves them behind",
			"these nodes have not acknowledged the next CA: %s", fold(waiting))
	}
	next := old.with(now, map[string]role{to.id(): roleActive, old.byRole(roleActive).id(): roleRetired})
	fields := map[string]string{"ca": to.id(), "pin": to.pin(), "by": byWhom(ctx)}
	if len(waiting) > 0 {
		fields["broken"] = fold(waiting)
	}
	if err := h.turn(ctx, old, next, event(now, "ca-active", "", fields)); err != nil {
		return nil, err
	}
	return Rotated{Schema: rotatedSchema, Pin: to.pin(), Broken: fold(waiting)}, nil
}

// revokeAll ends the CA that signs, and with it all that it signed.
func (h *Head) revokeAll(ctx context.Context, compromised bool) (any, error) {
	now, was := h.now(), h.ring.Load()
	next := was
	// What a burnt CA says of its successor is worth nothing, so that one that it has certified may not follow it.
	if was.byRole(roleNext) == nil || compromised {
		var err error
		if next, err = h.makeNext(was, now, !compromised); err != nil {
			return nil, err
		}
	}
	to, kind, fate := next.newest(), "ca-revoke-all", roleDead
	if compromised {
		kind, fate = "ca-compromised", roleBurnt
	}
	roles := map[string]role{to.id(): roleActive}
	ended := 0
	for _, a := range was.all() {
		if a.id() == to.id() {
			continue
		}
		roles[a.id()] = fate
		if !was.lives(a.id()) {
			continue
		}
		n, err := h.certificatesOf(ctx, a.id(), now)
		if err != nil {
			return nil, err
		}
		ended += n
	}
	next = next.with(now, roles)
	fields := map[string]string{"ca": to.id(), "pin": to.pin(), "ended": fmt.Sprint(ended), "by": byWhom(ctx)}
	if err := h.turn(ctx, was, next, event(now, kind, "", fields)); err != nil {
		return nil, err
	}
	return Rotated{Schema: rotatedSchema, Pin: to.pin(), Ended: ended}, nil
}

// certificatesOf counts the certificates of a CA that are not over.
func (h *Head) certificatesOf(ctx context.Context, id string, now time.Time) (n int, err error) {
	for item, err := range h.store.List(ctx, prefixCert) {
		if err != nil {
			return 0, err
		}
		c, err := parse[certRecord](item)
		if err != nil {
			return 0, err
		}
		if c.CA != id || !now.Before(c.NotAfter) {
			continue
		}
		gone, err := h.store.Get(ctx, prefixEnded+item.Key[len(prefixCert):])
		if err != nil {
			return 0, err
		}
		if gone.Revision == 0 {
			n++
		}
	}
	return n, nil
}

// unacknowledged are the nodes with a good certificate that have not said that they know a CA.
func (h *Head) unacknowledged(ctx context.Context, a *authority, now time.Time) ([]string, error) {
	var names []string
	for item, err := range h.store.List(ctx, prefixSlot) {
		if err != nil {
			return nil, err
		}
		s, err := parse[slot](item)
		if err != nil {
			return nil, err
		}
		if !s.Revoked && h.good(s.Cert, now) && s.Cert.CA != a.id() && s.Acked != a.id() {
			names = append(names, s.Node)
		}
	}
	return names, nil
}

// toAcknowledge is the pin of the CA that the node is to acknowledge, "" for none.
func (h *Head) toAcknowledge(s *slot) string {
	a := h.ring.Load().newest()
	if s.Acked == a.id() || s.Cert != nil && s.Cert.CA == a.id() {
		return ""
	}
	return a.pin()
}

// acknowledge records that a node trusts the newest CA: its files say so.
func (h *Head) acknowledge(ctx context.Context, body []byte, cert *x509.Certificate, who *peer) (*wire.Acknowledged, *refusal) {
	var said wire.Acknowledge
	if err := wire.Decode(body, &said); err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	if said.V != wire.Version {
		return nil, refuse(wire.BadRequest, whyForm, "v: %d is not %d", said.V, wire.Version)
	}
	now, a := h.now(), h.ring.Load().newest()
	for {
		item, s, _, no := h.onRecord(ctx, cert, who, now)
		if no != nil {
			return nil, no
		}
		if said.CA != a.pin() || s.Acked == a.id() {
			return &wire.Acknowledged{Time: now.Unix()}, nil // of an older rotation, or said before
		}
		next := *s
		next.Acked = a.id()
		err := h.store.Commit(ctx, store.Tx{
			Guards: []store.Guard{item.Guard()},
			Puts:   []store.Put{put(item.Key, next)},
			Events: []store.Event{event(now, "ca-known", s.Node, map[string]string{"ca": a.id()})},
		})
		if err == nil {
			return &wire.Acknowledged{Time: now.Unix()}, nil
		}
		if no := storeRefusal(err); !no.conflict() {
			return nil, no
		}
	}
}

// retire takes leave of the CAs none of whose certificates is left. Nodes need not trust them any more, and their
// keys are removed: a node that was away for long still pins them, and would obey whoever has such a key.
func (h *Head) retire(ctx context.Context, now time.Time) error {
	h.rotating.Lock()
	defer h.rotating.Unlock()
	for _, a := range h.ring.Load().all() {
		if a.role == roleActive || a.role == roleNext {
			continue
		}
		n, err := h.certificatesOf(ctx, a.id(), now)
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		was, to := h.ring.Load(), roleOver
		if a.role == roleBurnt {
			to = roleBurnt // that is never forgotten
		}
		next := was.with(now, map[string]role{a.id(): to})
		gone := next.byID(a.id())
		gone.keyFile, gone.key = "", nil
		if err := h.turn(ctx, was, next, event(now, "ca-over", "", map[string]string{"ca": a.id()})); err != nil {
			return err
		}
		if err := os.Remove(h.caFile(a.keyFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

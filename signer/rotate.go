package signer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muster/internal/durable"
	"muster/internal/journal"
	"muster/internal/wire"
	"muster/signer/attest"
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
		return nil, adminError(KindPolicy, notSigningHint(no.reason), "%s", no.detail)
	}
	h.rotating.Lock()
	defer h.rotating.Unlock()
	ctx = context.WithoutCancel(ctx) // an interrupt must not leave half of it
	if err := h.followRing(ctx); err != nil {
		return nil, err
	}
	switch {
	case req.RevokeAll || req.Compromised:
		return h.revokeAll(ctx, req)
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
	next, err := h.makeNext(ctx, old, now, bothWays)
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

// link says which cross-certificates there are between a CA and the one before it.
type link int

const (
	noLink   link = iota
	forward       // by the one before, so that nodes come along
	bothWays      // and over its key, so that who trusts the new one alone verifies what the old one signed
)

// makeNext is the ring with a new CA before the others. Its key is in a file, under a name that says that no record
// names it yet.
func (h *Head) makeNext(ctx context.Context, was *ring, now time.Time, to link) (*ring, error) {
	if err := h.dropUnborn(was); err != nil {
		return nil, err
	}
	a, err := newAuthority(h.cluster.Name, now)
	if err != nil {
		return nil, err
	}
	a.role, a.keyFile = roleNext, a.id()+keySuffix
	before := was.newest()
	if to >= forward {
		if before.key == nil {
			return nil, adminError(KindPolicy, "put "+h.caFile(before.keyFile)+" back, and start the head anew; --compromised makes a CA without a link",
				"the key of the newest CA is not there")
		}
		if a.cross, err = before.certifyNext(a); err != nil {
			return nil, err
		}
		if err := a.followsFrom(before, now); err != nil {
			return nil, adminError(KindPolicy, "ask whoever made that CA for one without that limit; --compromised makes a CA without a link",
				"what the next CA signs would not verify for who trusts this one: %v", err)
		}
	}
	if to == bothWays {
		if a.back, err = h.certifyBefore(ctx, a, before, now); err != nil {
			return nil, err
		}
	}
	text, err := marshalKey(a.key, h.passphrase)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(h.caFile(a.keyFile)+unborn, text, 0o600); err != nil {
		return nil, err
	}
	failpoint("keyed")
	return &ring{members: slices.Concat([]*authority{a}, was.members)}, nil
}

const (
	keySuffix = ".key"
	unborn    = ".new" // of a key that no record names yet
)

// dropUnborn removes the keys of rotations that were cut short before they were on record.
func (h *Head) dropUnborn(r *ring) error {
	files, err := filepath.Glob(h.caFile("*" + keySuffix + unborn))
	if err != nil {
		return err
	}
	for _, path := range files {
		if r.byID(strings.TrimSuffix(filepath.Base(path), keySuffix+unborn)) == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// followsFrom tries what a node with before's pin would: to verify a certificate of a's along the cross-certificate.
func (a *authority) followsFrom(before *authority, now time.Time) error {
	cross, err := x509.ParseCertificate(a.cross)
	if err != nil {
		return err
	}
	return a.sample(before.root(), slices.Concat([]*x509.Certificate{cross, before.cert}, before.chain), now)
}

// sample signs a certificate for a key that is nobody's, and verifies it as nodes do.
func (a *authority) sample(root *x509.Certificate, between []*x509.Certificate, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		der, err := a.sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: "sample"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
			DNSNames: []string{"sample.example.org"}, IPAddresses: []net.IP{{10, 54, 0, 1}}, URIs: []*url.URL{{Scheme: "spiffe", Host: "sample.example.org", Path: "/node/sample"}},
		}, key.Public(), time.Hour, now)
		if err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
		opts.Roots.AddCert(root)
		for _, c := range between {
			opts.Intermediates.AddCert(c)
		}
		if _, err := leaf.Verify(opts); err != nil {
			return err
		}
	}
	return nil
}

// certifyBefore makes the link back to a CA, until the last of its certificates is over.
func (h *Head) certifyBefore(ctx context.Context, a, before *authority, now time.Time) ([]byte, error) {
	last, err := h.lastOf(ctx, before, now)
	if err != nil {
		return nil, err
	}
	return a.certifyBefore(before, last.Add(linkSlack))
}

// linkSlack is for how much longer a link back is made than need be, so that it is made anew seldom.
const linkSlack = 48 * time.Hour

// linkBack makes the link back anew while the CA before goes on signing: it must last as long as what that one signs.
func (h *Head) linkBack(ctx context.Context, now time.Time) error {
	h.rotating.Lock()
	defer h.rotating.Unlock()
	was := h.ring.Load()
	a, before := was.byRole(roleNext), was.byRole(roleActive)
	if a == nil || a.key == nil || a.back == nil {
		return nil
	}
	have, err := x509.ParseCertificate(a.back)
	if err != nil {
		return err
	}
	last, err := h.lastOf(ctx, before, now)
	if err != nil || !have.NotAfter.Before(earlier(last, before.cert.NotAfter).Truncate(time.Second)) {
		return err
	}
	other := *a
	if other.back, err = a.certifyBefore(before, last.Add(linkSlack)); err != nil {
		return err
	}
	next := &ring{members: slices.Clone(was.members)}
	next.members[0] = &other
	return h.turn(ctx, was, next, event(now, "ca-link", "", map[string]string{"ca": a.id(), "until": last.Format(time.RFC3339)}))
}

// finishRotation lets the next CA sign.
func (h *Head) finishRotation(ctx context.Context, force bool) (any, error) {
	old := h.ring.Load()
	to := old.byRole(roleNext)
	if to == nil {
		return nil, adminError(KindPolicy, "muster ca rotate", "no rotation is under way")
	}
	if to.key == nil {
		return nil, adminError(KindPolicy, "put "+h.caFile(to.keyFile)+" back, and start the head anew; or: muster ca rotate --revoke-all", "the key of the next CA is not there")
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
	from := old.byRole(roleActive)
	next := old.with(now, map[string]role{to.id(): roleActive, from.id(): roleRetired})
	if next.byID(to.id()).back, err = h.certifyBefore(ctx, to, from, now); err != nil {
		return nil, err
	}
	fields := map[string]string{"ca": to.id(), "pin": to.pin(), "by": byWhom(ctx)}
	if len(waiting) > 0 {
		fields["broken"] = fold(waiting)
	}
	if err := h.turn(ctx, old, next, event(now, "ca-active", "", fields)); err != nil {
		return nil, err
	}
	return Rotated{Schema: rotatedSchema, Pin: to.pin(), Broken: fold(waiting)}, nil
}

// tooSoon is for how long an emergency command is refused when it is given once more: what it makes would end before
// anybody has put its pin anywhere.
const tooSoon = 10 * time.Minute

// revokeAll ends the CA that signs, and with it all that it signed. A next one, which may be about already, ends
// too: it vouches for the old one.
func (h *Head) revokeAll(ctx context.Context, req RotateRequest) (any, error) {
	now, was := h.now(), h.ring.Load()
	// A CA whose key turns out to be stolen is worse than one that was to end: that may follow at once.
	worse := req.Compromised && len(was.members) > 1 && was.members[1].role == roleDead
	if newest := was.newest(); len(was.members) > 1 && was.members[1].ended() && now.Sub(newest.since) < tooSoon && !req.Force && !worse {
		return nil, adminError(KindPolicy, "muster ca show; --force does it again", "that was done at %s, and the CA with the pin %s is what came of it", day(newest.since), newest.pin())
	}
	kind, fate, to := "ca-revoke-all", roleDead, forward
	if req.Compromised {
		kind, fate, to = "ca-compromised", roleBurnt, noLink
		// Who has read the CA's key has read the one beside it, too.
		if err := h.newEpochs(); err != nil {
			return nil, err
		}
	}
	next, err := h.makeNext(ctx, was, now, to)
	if err != nil {
		return nil, err
	}
	made := next.newest()
	roles := map[string]role{made.id(): roleActive}
	done := Rotated{Schema: rotatedSchema, Pin: made.pin()}
	for _, a := range was.members {
		if a.gone || a.role == roleBurnt || a.role == fate {
			continue
		}
		roles[a.id()] = fate
		if a.ended() {
			continue
		}
		use, err := h.usage(ctx, a, now)
		if err != nil {
			return nil, err
		}
		done.Ended += use.good
	}
	next = next.with(now, roles)
	fields := map[string]string{"ca": made.id(), "pin": made.pin(), "ended": fmt.Sprint(done.Ended), "by": byWhom(ctx)}
	if err := h.turn(ctx, was, next, event(now, kind, "", fields)); err != nil {
		return nil, err
	}
	return done, nil
}

// newEpochs makes every challenge that is about worthless.
func (h *Head) newEpochs() error {
	return h.replaceEpochs(func() *attest.Epochs { return attest.NewEpochs(h.now()) })
}

// caUse is what a CA's certificates come to, but for those of its OCSP responder, which is there for the others.
type caUse struct {
	good int       // in date, and not ended one by one
	last time.Time // when the last one is over, ended or not; zero: there is none

	damaged bool // there are records that cannot be read: they may be of any CA's certificates
}

// usage looks through the records of certificates.
func (h *Head) usage(ctx context.Context, a *authority, now time.Time) (use caUse, err error) {
	for item, err := range h.store.List(ctx, prefixCert) {
		var c *certRecord
		if err == nil {
			c, err = parse[certRecord](item)
		}
		if errors.Is(err, store.ErrDamaged) {
			h.log.Error("the record of a certificate cannot be read", "event", journal.Upkeep, "key", item.Key, "err", err)
			use.damaged = true
			continue
		}
		if err != nil {
			return use, err
		}
		if c.CA != a.id() || c.Class == classOCSP {
			continue
		}
		use.last = later(use.last, c.NotAfter)
		if !now.Before(c.NotAfter) {
			continue
		}
		if gone, err := h.store.Get(ctx, prefixEnded+item.Key[len(prefixCert):]); err == nil && gone.Revision == 0 {
			use.good++
		}
	}
	return use, nil
}

// lastOf is when the last certificate of a CA is over, that it has signed up to now.
func (h *Head) lastOf(ctx context.Context, a *authority, now time.Time) (time.Time, error) {
	use, err := h.usage(ctx, a, now)
	return later(use.last, now.Add(headLife)), err
}

// unacknowledged are the nodes with a good certificate that have not said that they know a CA. EST clients have no
// way to say so.
func (h *Head) unacknowledged(ctx context.Context, a *authority, now time.Time) ([]string, error) {
	var names []string
	for item, err := range h.store.List(ctx, prefixSlot) {
		var s *slot
		if err == nil {
			s, err = parse[slot](item)
		}
		if errors.Is(err, store.ErrDamaged) { // who knows
			names = append(names, strings.TrimPrefix(item.Key, prefixSlot))
			continue
		}
		if err != nil {
			return nil, err
		}
		if !s.Host && !s.Revoked && h.good(s.Cert, now) && s.Cert.CA != a.id() && s.Acked != a.id() {
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

// retire takes leave of the CAs whose certificates are all over, ended ones too, since others read CRLs only as long
// as there are any. Nodes need not trust such a CA any more, and its key is removed: a node that was away for
// long still pins it, and would obey whoever has that key. Where a record cannot be read, such a CA is taken to have
// signed a certificate of the longest life as long as it signed any.
func (h *Head) retire(ctx context.Context, now time.Time) error {
	h.rotating.Lock()
	defer h.rotating.Unlock()
	for _, a := range h.ring.Load().members {
		if a.role == roleActive || a.role == roleNext || a.gone {
			continue
		}
		use, err := h.usage(ctx, a, now)
		if err != nil {
			return err
		}
		if use.damaged {
			use.last = later(use.last, earlier(a.since.Add(MaxLife), a.cert.NotAfter))
		}
		if !now.After(use.last.Add(keptFor)) {
			continue
		}
		was, to := h.ring.Load(), roleOver
		if a.ended() {
			to = a.role // that is never forgotten
		}
		next := was.with(now, map[string]role{a.id(): to})
		next.byID(a.id()).gone, next.byID(a.id()).key = true, nil
		if err := h.turn(ctx, was, next, event(now, "ca-over", "", map[string]string{"ca": a.id()})); err != nil {
			return err
		}
	}
	return nil
}

package signer

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// A client may renew whenever it likes, but each time is a row and a line of the CRL.
const (
	renewalWindow  = time.Hour
	renewalsOfName = 10
)

// simpleEnroll is RFC 7030, 4.2.1: a name and its password, and a key. Until the password is seen to be right,
// nothing is parsed, verified or written.
func (h *Head) simpleEnroll(ctx context.Context, r *http.Request, who *peer) (*issued, *refusal) {
	name, password, ok := r.BasicAuth()
	if !ok || len(name) > maxNodeName {
		return nil, refuse(wire.NotEnabled, whyPassword, "no name and password")
	}
	name = strings.Clone(name) // it is remembered, and without that the whole of the header with it
	who.node = name
	now := h.now()
	right, no := h.passwords.try(r.RemoteAddr, name, now)
	if no != nil {
		return nil, no
	}
	item, s, no := h.anySlot(ctx, name)
	if no != nil && no.reason != whyUnknown {
		return nil, no
	}
	if s == nil {
		s = &slot{Node: name}
	}
	if !s.Grant.opens(classHost, s.Node, Password(password)) {
		return nil, refuse(wire.NotEnabled, whyPassword, "a wrong password for %q", name)
	}
	right()
	who.proven = true
	c, no := h.checked(ctx, r)
	if no != nil {
		return nil, no
	}
	grant := s.Grant.ID
	for {
		cert, no := h.settleHost(ctx, c, item, s, now)
		if no == nil || !no.conflict() {
			return cert, no
		}
		// The password stands for its own grant only.
		if item, s, no = h.anySlot(ctx, name); no != nil {
			return nil, no
		}
		if s.grantID() != grant {
			return nil, refuse(wire.NotEnabled, whyPassword, "the grant of %s changed meanwhile", name)
		}
	}
}

// checked is the CSR, and that its sender has the key.
func (h *Head) checked(ctx context.Context, r *http.Request) (*csr, *refusal) {
	c, no := requested(r)
	if no != nil {
		return nil, no
	}
	done, no := h.admit(ctx)
	if no != nil {
		return nil, no
	}
	defer done()
	if err := c.check(); err != nil {
		return nil, refuse(wire.BadRequest, whyCSR, "%v", err)
	}
	return c, nil
}

// settleHost gives the stored certificate to the key that it was made for, or makes one by the grant of s. What the
// client had before ends at once: with its password it can have the answer again, so that none is needed meanwhile.
func (h *Head) settleHost(ctx context.Context, c *csr, item store.Item, s *slot, now time.Time) (*issued, *refusal) {
	stored, no := h.decideHost(s, c.fingerprint, now)
	if stored != nil || no != nil {
		return stored, no
	}
	next, g := *s, *s.Grant
	g.Used, g.Key = true, c.fingerprint
	next.Grant, next.Old = &g, nil
	return h.certified(ctx, c, item, &next, ends(now, s.Cert, s.Old), event(now, "issue", s.Node, map[string]string{
		"class": string(classHost), "level": string(Software), "grant": g.ID,
	}), now)
}

// decideHost looks at the record alone: a certificate to give again, a refusal, or neither, which means that a new
// one may be made by the grant.
func (h *Head) decideHost(s *slot, key string, now time.Time) (*issued, *refusal) {
	if s.Revoked || !s.Grant.Used {
		return nil, mayIssue(s, Software, now)
	}
	if s.Grant.Key != key {
		return nil, refuse(wire.Refused, whyOtherKey, "the grant of %s led to the key %s", s.Node, s.Grant.Key)
	}
	for _, c := range []*issued{s.Cert, s.Old} {
		if h.good(c, now) && c.Key == key {
			return c, nil
		}
	}
	return nil, refuse(wire.NotEnabled, whyExpired, "the certificate that the grant of %s led to is over", s.Node)
}

// simpleReenroll is RFC 7030, 4.2.2: by a certificate on record, for its key or another. The certificate that was
// shown stays good until the new one is, so an answer that was lost can be had again: the identical certificate.
func (h *Head) simpleReenroll(ctx context.Context, r *http.Request, who *peer) (*issued, *refusal) {
	cert := clientCertificate(r)
	if cert == nil {
		return nil, refuse(wire.NotEnabled, whyNotOnRecord, "no client certificate")
	}
	now := h.now()
	if _, _, _, no := h.onRecordOf(ctx, classHost, cert, who, now); no != nil {
		return nil, no
	}
	c, no := h.checked(ctx, r)
	if no != nil {
		return nil, no
	}
	counted := false
	for {
		item, s, shown, no := h.onRecordOf(ctx, classHost, cert, who, now)
		switch {
		case no != nil:
			return nil, no
		case s.Disabled:
			return nil, refuse(wire.NotEnabled, whyDisabled, "%s is disabled", s.Node)
		case shown != s.Cert && s.Cert.Key == c.fingerprint && h.good(s.Cert, now):
			return s.Cert, nil
		case !counted && !h.renewals.take(now, renewalWindow, passwordsTotal, quota{s.Node, renewalsOfName}):
			return nil, refuse(wire.Busy, whyTooOften, "%d certificates in an hour are enough; try again later", renewalsOfName)
		}
		counted = true
		next, ended := *s, []*issued{s.Old}
		if shown == s.Cert {
			used := *shown
			used.Activated = true
			next.Old = &used
		} else {
			ended = []*issued{s.Cert} // its answer was lost, and this one takes its place
		}
		renewed, no := h.certified(ctx, c, item, &next, ends(now, ended...), event(now, "renew", s.Node, map[string]string{
			"class": string(classHost), "level": string(Software), "old": shown.Serial,
		}), now)
		if no == nil || !no.conflict() {
			return renewed, no
		}
	}
}

// certified signs for the key of c, and stores the record next with the certificate in it: the one transaction by
// which a grant is used, or a certificate renewed (I2). also is written with it, and ev completed.
func (h *Head) certified(ctx context.Context, c *csr, item store.Item, next *slot, also []store.Put, ev store.Event, now time.Time) (*issued, *refusal) {
	bound, no := h.keyBindings(ctx, c.fingerprint, next.Node)
	if no != nil {
		return nil, no
	}
	if no := h.maySign(now); no != nil {
		return nil, no
	}
	failpoint("est-claim")
	ring := h.ring.Load() // guarded, as in settle
	cert, err := h.certify(ring.byRole(roleActive), subject{c.fingerprint, c.key, Software}, next, now)
	if err != nil {
		return nil, refuse(wire.Busy, whySigning, "%v", err)
	}
	failpoint("est-signed")
	next.Cert = cert
	ev.Fields["serial"], ev.Fields["key"] = cert.Serial, cert.Key
	err = h.store.Commit(ctx, store.Tx{
		Guards: []store.Guard{item.Guard(), bound.key.Guard(), bound.barred.Guard(), ring.item.Guard()},
		Puts: append(also,
			put(item.Key, next),
			store.Put{Key: bound.key.Key, Value: []byte(next.Node)},
			put(prefixCert+cert.Serial, certRecord{Class: classHost, Name: next.Node, CA: cert.CA, Key: cert.Key, NotAfter: cert.NotAfter}),
		),
		Events: []store.Event{ev},
	})
	if err != nil {
		return nil, h.notStored(ctx, err)
	}
	failpoint("est-stored")
	h.signed(now)
	if len(also) > 0 {
		h.crlDue()
	}
	return cert, nil
}

// ends records that certificates ended because others took their place.
func ends(now time.Time, all ...*issued) []store.Put {
	var puts []store.Put
	for _, c := range all {
		if c != nil {
			puts = append(puts, c.end(now, superseded))
		}
	}
	return puts
}

// keyBindings are the bindings of a key that has no EK: it must be free or of name, and not barred.
func (h *Head) keyBindings(ctx context.Context, key, name string) (b bindings, no *refusal) {
	var err error
	if b.key, err = h.store.Get(ctx, prefixKey+key); err != nil {
		return b, storeRefusal(err)
	}
	if b.barred, err = h.store.Get(ctx, prefixBarred+key); err != nil {
		return b, storeRefusal(err)
	}
	b.key.Key, b.barred.Key = prefixKey+key, prefixBarred+key
	switch {
	case b.barred.Revision != 0:
		return b, refuse(wire.KeyBarred, whyKeyBarred, "the key %s was revoked with a certificate of %s", key, b.barred.Value)
	case b.key.Revision != 0 && string(b.key.Value) != name:
		return b, refuse(wire.Refused, whyKeyTaken, "the key is bound to %s", b.key.Value)
	}
	return b, nil
}

// mayBeHost refuses to give the name of a node, or any name of the heads, to an EST client, and a client's to a node.
// It returns the keys of names that the client holds then, and what makes them its and must stay so.
func (h *Head) mayBeHost(ctx context.Context, s slot, item store.Item, req EnableRequest) (held []string, tx store.Tx, err error) {
	switch {
	case s.Host && !req.Password:
		return nil, tx, adminError(KindPolicy, "muster certs enable --password -i "+s.Node, "%s is an EST client, and no node", s.Node)
	case !s.Host && item.Revision != 0:
		return nil, tx, adminError(KindPolicy, "give the client another name", "%s is a node, whose key is to be in its TPM", s.Node)
	}
	heads, err := h.store.Get(ctx, keyCluster)
	if err != nil {
		return nil, tx, err
	}
	c, err := parse[cluster](heads)
	if err != nil {
		return nil, tx, err
	}
	s.rename(req)
	for _, name := range slices.Concat([]string{s.Node}, s.DNS, s.IP) {
		if slices.ContainsFunc(c.Hosts, func(host string) bool { return nameKey(host) == nameKey(name) }) {
			return nil, tx, adminError(KindPolicy, "muster ca host", "%s is a name of the head's own", name)
		}
	}
	held, tx, err = h.nameHost(ctx, &s, h.now())
	tx.Guards = append(tx.Guards, heads.Guard())
	return held, tx, err
}

// nodesOf are those of names that are no EST clients.
func (h *Head) nodesOf(ctx context.Context, names []string) ([]string, error) {
	var nodes []string
	for _, name := range names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		s, err := parse[slot](item)
		if err != nil {
			return nil, err
		}
		if !s.Host {
			nodes = append(nodes, name)
		}
	}
	if len(nodes) == 0 {
		return nil, adminError(KindNone, "muster certs enable -i 'n[0-99]'", "no nodes are known yet")
	}
	return nodes, nil
}

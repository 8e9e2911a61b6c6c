package signer

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"muster/signer/store"
)

// hold is as what a name or an address is somebody's.
type hold string

const (
	holdNode hold = "node" // a node's own name, which may be a head's as well
	holdHost hold = "host" // an EST client's own name
	holdSAN  hold = "san"  // what an EST client's certificate names beside that; several clients may share it
)

// holders are who has a name, and as what. A store key has them by the name's one spelling: who verifies a certificate
// knows no case of names, and addresses by their bits. A node whose name is in lower case is not among them: its
// record stands under that spelling.
type holders map[string]hold

// nameKey is where a name or an address has its holders.
func nameKey(name string) string {
	if ip := net.ParseIP(name); ip != nil {
		return prefixSAN + ip.String()
	}
	return prefixSAN + strings.ToLower(name)
}

func (h *Head) holders(ctx context.Context, key string) (store.Item, holders, error) {
	item, err := h.store.Get(ctx, key)
	item.Key = key
	if err != nil || item.Revision == 0 {
		return item, holders{}, err
	}
	who, err := parse[holders](item)
	if err != nil {
		return item, nil, err
	}
	return item, *who, nil
}

// refuse is why who may not have name beside those that hold it.
func (all holders) refuse(name, who string, as hold) error {
	for _, other := range slices.Sorted(maps.Keys(all)) {
		has := all[other]
		switch {
		case other == who, as == has && as != holdHost:
		case has == holdNode:
			return adminError(KindPolicy, "muster certs show -i "+other, "%s is the name of another", name)
		case has == holdHost:
			return adminError(KindPolicy, "muster certs show -i "+other, "%s is an EST client's name", name)
		default:
			return adminError(KindPolicy, "muster certs show -i "+other+"; to give it up: muster nodes remove -i "+other, "%s is a name of the EST client %s", name, other)
		}
	}
	return nil
}

// with is the change that makes who a holder.
func (all holders) with(item store.Item, who string, as hold) store.Tx {
	next := maps.Clone(all)
	next[who] = as
	return store.Tx{Guards: []store.Guard{item.Guard()}, Puts: []store.Put{put(item.Key, next)}}
}

// release is the change by which who gives keys up.
func (h *Head) release(ctx context.Context, who string, keys []string) (tx store.Tx, err error) {
	for _, key := range keys {
		item, all, err := h.holders(ctx, key)
		if err != nil {
			return tx, err
		}
		if _, has := all[who]; !has {
			continue
		}
		delete(all, who)
		tx.Guards = append(tx.Guards, item.Guard())
		if len(all) > 0 {
			tx.Puts = append(tx.Puts, put(key, all))
		} else {
			tx.Deletes = append(tx.Deletes, key)
		}
	}
	return tx, nil
}

// nameNode is what makes a name a new node's, unless an EST client has it.
func (h *Head) nameNode(ctx context.Context, name string) (store.Tx, error) {
	key := nameKey(name)
	item, all, err := h.holders(ctx, key)
	if err == nil {
		err = all.refuse(name, name, holdNode)
	}
	if err != nil {
		return store.Tx{}, err
	}
	if key == prefixSAN+name {
		return store.Tx{Guards: []store.Guard{item.Guard()}}, nil
	}
	return all.with(item, name, holdNode), nil
}

// nameHost is what makes names an EST client's, unless they are a node's or another client's. s is the record as it is
// to be. held are the keys of its names and of those that a certificate of it has which is not over; others are given up.
func (h *Head) nameHost(ctx context.Context, s *slot, now time.Time) (held []string, tx store.Tx, err error) {
	own := nameKey(s.Node)
	names := map[string]string{own: s.Node}
	for _, name := range slices.Concat(s.DNS, s.IP) {
		key := nameKey(name)
		names[key] = cmp.Or(names[key], name)
	}
	held = slices.Sorted(maps.Keys(names))
	for _, key := range held {
		as := holdSAN
		if key == own {
			as = holdHost
		}
		one, err := h.nameHostOne(ctx, key, names[key], s.Node, as)
		if err != nil {
			return nil, tx, err
		}
		tx = joinTx(tx, one)
	}
	living, err := s.living(now)
	if err != nil {
		return nil, tx, err
	}
	held = append(held, minus(living, held)...)
	gone, err := h.release(ctx, s.Node, minus(s.Held, held))
	return held, joinTx(tx, gone), err
}

// nameHostOne is nameHost for one name.
func (h *Head) nameHostOne(ctx context.Context, key, name, who string, as hold) (store.Tx, error) {
	item, all, err := h.holders(ctx, key)
	if err != nil {
		return store.Tx{}, err
	}
	if err := all.refuse(name, who, as); err != nil {
		return store.Tx{}, err
	}
	tx := all.with(item, who, as)
	spelt := key[len(prefixSAN):]
	if spelt == who {
		return tx, nil
	}
	node, err := h.store.Get(ctx, prefixSlot+spelt)
	if err != nil {
		return store.Tx{}, err
	}
	if node.Revision != 0 {
		return store.Tx{}, adminError(KindPolicy, "muster certs show -i "+spelt, "%s is the name of another", name)
	}
	tx.Guards = append(tx.Guards, store.Guard{Key: prefixSlot + spelt})
	return tx, nil
}

// living are the keys of what the certificates of s name that are not over.
func (s *slot) living(now time.Time) (keys []string, err error) {
	for _, c := range []*issued{s.Cert, s.Old} {
		if !c.inDate(now) {
			continue
		}
		cert, err := c.parsed()
		if err != nil {
			return nil, err
		}
		for _, name := range cert.DNSNames {
			keys = append(keys, nameKey(name))
		}
		for _, ip := range cert.IPAddresses {
			keys = append(keys, nameKey(ip.String()))
		}
	}
	return keys, nil
}

// freeOfClients refuses names that EST clients have to a head. A node may be a head as well.
func (h *Head) freeOfClients(ctx context.Context, names []string) ([]store.Guard, error) {
	var guards []store.Guard
	for _, name := range names {
		item, all, err := h.holders(ctx, nameKey(name))
		if err != nil {
			return nil, err
		}
		if err := all.refuse(name, "", holdNode); err != nil {
			return nil, err
		}
		guards = append(guards, item.Guard())
	}
	return guards, nil
}

// maxHostNames bounds what an EST client's certificate names, so that its change, what it gives up included, fits a
// transaction.
const maxHostNames = 24

func checkHostNames(req *EnableRequest) error {
	if n := len(req.DNS) + len(req.IP); req.Password && n > maxHostNames {
		return adminError(KindUsage, "name the rest in another client's certificate", "%d names and addresses are more than the %d of an EST client", n, maxHostNames)
	}
	return nil
}

func joinTx(a, b store.Tx) store.Tx {
	return store.Tx{
		Guards: slices.Concat(a.Guards, b.Guards), Puts: slices.Concat(a.Puts, b.Puts),
		Deletes: slices.Concat(a.Deletes, b.Deletes), Events: slices.Concat(a.Events, b.Events),
	}
}

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"muster/signer/store"
	"muster/signer/store/bolt"
)

// multiply fills a store with n copies of the one node that it holds. Each copy has a name and hashes
// of its own, but the bytes of the head's own records: so the bench needs to know nothing of their
// form, and the sizes are right. The copies' certificates are all the first one's.
func multiply(ctx context.Context, dir string, n int) (err error) {
	st, err := bolt.Open(filepath.Join(dir, "store.db"), patience)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	pattern, err := readPattern(ctx, st)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(256) // they share the store's syncs
	const perTx = 20    // a transaction holds 126 writes
	for first := 0; first < n; first += perTx {
		group.Go(func() error {
			var tx store.Tx
			for i := first; i < min(first+perTx, n); i++ {
				pattern.copy(&tx, fmt.Sprintf("m%d", i))
			}
			return st.Commit(ctx, tx)
		})
	}
	return group.Wait()
}

// pattern is what the store and the journal hold of one node.
type pattern struct {
	items  []store.Item
	events []store.Event
	name   string
	own    []string // what no two nodes share: name, hashes, serial, grant
}

func readPattern(ctx context.Context, st store.Store) (*pattern, error) {
	p := &pattern{}
	for e, err := range st.Journal(ctx, 1) {
		if err != nil {
			return nil, err
		}
		if e.Node == "" {
			continue
		}
		p.name = e.Node
		p.events = append(p.events, store.Event{Time: e.Time, Kind: e.Kind, Node: e.Node, Fields: e.Fields})
		for _, key := range []string{"ek", "key", "serial", "grant"} {
			if v := e.Fields[key]; v != "" {
				p.own = append(p.own, v)
			}
		}
	}
	for item, err := range st.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		if strings.Contains(item.Key, "/"+p.name) || string(item.Value) == p.name {
			p.items = append(p.items, item)
		}
	}
	if len(p.items) == 0 || len(p.own) == 0 {
		return nil, fmt.Errorf("node %q has left nothing to copy", p.name)
	}
	return p, nil
}

// copy adds a node to tx.
func (p *pattern) copy(tx *store.Tx, name string) {
	var pairs []string
	for _, v := range p.own {
		random := make([]byte, (len(v)+1)/2)
		rand.Read(random)
		pairs = append(pairs, v, fmt.Sprintf("%x", random)[:len(v)])
	}
	// The name is a short one: only where it stands whole is it the name.
	pairs = append(pairs, `"`+p.name+`"`, `"`+name+`"`, "/"+p.name, "/"+name)
	changed := strings.NewReplacer(pairs...)
	for _, item := range p.items {
		value := name
		if string(item.Value) != p.name {
			value = changed.Replace(string(item.Value))
		}
		tx.Puts = append(tx.Puts, store.Put{Key: changed.Replace(item.Key), Value: []byte(value)})
	}
	for _, e := range p.events {
		fields := map[string]string{}
		for k, v := range e.Fields {
			fields[k] = changed.Replace(v)
		}
		tx.Events = append(tx.Events, store.Event{Time: time.Now().UTC(), Kind: e.Kind, Node: name, Fields: fields})
	}
}

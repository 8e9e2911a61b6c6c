package signer

import (
	"context"
	"slices"
	"strings"

	"muster/signer/store"
)

// HostRequest is `muster ca host`: names and addresses under which nodes reach the heads.
type HostRequest struct {
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// HostView is what the heads' certificates name from now on.
type HostView struct {
	Schema    string   `json:"schema"`
	Hosts     []string `json:"hosts"`
	PublicURL string   `json:"public_url"` // in the certificates of nodes, until the next start
}

const hostsSchema = "muster.hosts/v1"

// adminHost changes the names in the heads' own certificates, and makes this head another one at once.
func (h *Head) adminHost(ctx context.Context, req HostRequest, _ *stream) (any, error) {
	h.rehosting.Lock()
	defer h.rehosting.Unlock()
	ctx = context.WithoutCancel(ctx) // an interrupt must not leave half of it
	item, err := h.store.Get(ctx, keyCluster)
	if err != nil {
		return nil, err
	}
	c, err := parse[cluster](item)
	if err != nil {
		return nil, err
	}
	for _, host := range req.Remove {
		if !slices.Contains(c.Hosts, host) {
			return nil, adminError(KindNone, "muster ca host", "%q is no host of this cluster", host)
		}
	}
	hosts := slices.DeleteFunc(slices.Clone(c.Hosts), func(host string) bool { return slices.Contains(req.Remove, host) })
	for _, host := range req.Add {
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if slices.Equal(hosts, c.Hosts) {
		return HostView{hostsSchema, hosts, h.publicURL}, nil
	}
	// The same rules as at init; the name that comes first is the certificates' common name.
	plan := Plan{Cluster: c.Name, TrustDomain: c.TrustDomain, Hosts: hosts}
	if err := plan.Check(); err != nil {
		return nil, adminError(KindUsage, "muster ca host --add head1.example.org,10.54.0.1", "%v", err)
	}
	c.Hosts = hosts
	now := h.now()
	guards, err := h.freeOfClients(ctx, req.Add)
	if err != nil {
		return nil, err
	}
	err = h.store.Commit(ctx, store.Tx{
		Guards: append(guards, item.Guard()),
		Puts:   []store.Put{put(keyCluster, c)},
		Events: []store.Event{event(now, "hosts", "", map[string]string{"hosts": strings.Join(hosts, ","), "by": byWhom(ctx)})},
	})
	if err != nil {
		return nil, err
	}
	h.hosts.Store(&hosts)
	if err := h.renewServer(ctx); err != nil {
		return nil, adminError(KindPartly, "journalctl -u muster; the head tries again by itself", "the names are on record; but there is no certificate with them yet: %v", err)
	}
	return HostView{hostsSchema, hosts, h.publicURL}, nil
}

// followHosts takes the names that are on record, where another head has changed them.
func (h *Head) followHosts(ctx context.Context) error {
	item, err := h.store.Get(ctx, keyCluster)
	if err != nil {
		return err
	}
	c, err := parse[cluster](item)
	if err == nil {
		h.hosts.Store(&c.Hosts)
	}
	return err
}

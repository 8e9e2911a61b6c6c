package signer

import "slices"

// ring is the cluster's CAs: the one that signs, and the others whose certificates are about. A ring is
// never changed: a rotation makes the next one.
type ring struct {
	active *authority
	others []*authority
}

// all are the ring's CAs, the one that signs first.
func (r *ring) all() []*authority { return slices.Concat([]*authority{r.active}, r.others) }

// byID is the CA of that id; nil: none of ours.
func (r *ring) byID(id string) *authority {
	for _, a := range r.all() {
		if a.id() == id {
			return a
		}
	}
	return nil
}

// ca is the CA that signs now.
func (h *Head) ca() *authority { return h.ring.Load().active }

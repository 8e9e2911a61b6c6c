package signer

import (
	"context"
	"errors"
	"time"

	"muster/signer/store"
)

// StatusView is `muster status`.
type StatusView struct {
	Schema  string        `json:"schema"`
	Cluster string        `json:"cluster"`
	Pin     string        `json:"pin"`
	Signing bool          `json:"signing"`
	Reason  string        `json:"reason,omitempty"` // why it is not
	Detail  string        `json:"detail,omitempty"`
	Hint    string        `json:"hint,omitempty"`
	Clock   ClockView     `json:"clock"`
	Store   StoreView     `json:"store"`
	CA      time.Time     `json:"ca_expires"`
	CRL     *CRLView      `json:"crl"`
	Nodes   map[State]int `json:"nodes"`
	Unknown int           `json:"unknown"` // certificates in quarantine
	Damaged int           `json:"damaged"` // records that cannot be read
}

// StoreView is how far the store has come.
type StoreView struct {
	Epoch   uint64       `json:"epoch"`
	Entries uint64       `json:"entries"` // of the journal
	Hash    store.Digest `json:"hash"`    // of the last one
}

// CRLView is the CRL of the CA that signs.
type CRLView struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"` // in the CRLs of all CAs
}

func (h *Head) adminStatus(ctx context.Context, _ struct{}, _ *stream) (any, error) {
	v := StatusView{
		Schema: "muster.status/v1", Cluster: h.cluster.Name, Pin: h.ca().pin(), Signing: true, Clock: h.clockView(),
		CA: h.ca().cert.NotAfter.UTC(), CRL: h.crlView(), Nodes: map[State]int{},
	}
	if why, err := h.NotSigning(ctx); why != "" {
		v.Signing, v.Reason, v.Detail, v.Hint = false, why, err.Error(), notSigningHint(reason(why))
		var no *refusal
		if errors.As(err, &no) {
			v.Detail = no.detail
		}
	}
	view, err := h.store.View(ctx)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	tail, err := view.Tail(ctx)
	if err != nil {
		return nil, err
	}
	g, _ := readGeneration(ctx, view) // a damaged one is why nothing is signed
	v.Store = StoreView{g.Epoch, tail.Seq, tail.Hash}
	now := h.now()
	for item, err := range view.List(ctx, prefixSlot) {
		var s *slot
		if err == nil {
			s, err = h.readSlot(item)
		}
		switch {
		case errors.Is(err, store.ErrDamaged):
			v.Damaged++
		case err != nil:
			return nil, err
		default:
			v.Nodes[s.state(now)]++
		}
	}
	v.Unknown = h.countUnknown(ctx)
	return v, nil
}

func (h *Head) crlView() *CRLView {
	list := h.ca().crl.list.Load()
	if list == nil {
		return nil
	}
	v := &CRLView{list.Number.Int64(), list.ThisUpdate, list.NextUpdate, 0}
	for _, ca := range h.ring.Load().all() {
		if list := ca.crl.list.Load(); list != nil {
			v.Entries += len(list.RevokedCertificateEntries)
		}
	}
	return v
}

func notSigningHint(why reason) string {
	switch why {
	case whyRollback:
		return rollbackHint
	case whyClock:
		return "set the head's clock; if it is right: muster clock accept"
	}
	return "journalctl -u muster"
}

package signer

import (
	"context"
	"maps"
	"slices"

	"muster/signer/inventory"
	"muster/signer/store"
)

// GroupView is one group of nodes. A group is there as long as a node belongs to it.
type GroupView struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	Nodes string `json:"nodes"` // folded
}

// adminGroups streams a GroupView for each group.
func (h *Head) adminGroups(ctx context.Context, _ struct{}, out *stream) (any, error) {
	look := &lookup{h: h, ctx: ctx}
	slots, err := look.records()
	if err != nil {
		return nil, err
	}
	members := map[string][]string{}
	for _, s := range slots {
		for _, group := range s.Groups {
			members[group] = append(members[group], s.Node)
		}
	}
	for _, group := range slices.Sorted(maps.Keys(members)) {
		if err := out.item(GroupView{group, len(members[group]), fold(members[group])}); err != nil {
			return nil, err
		}
	}
	return len(members), nil
}

// GroupRequest is `muster nodes group add` and `remove`.
type GroupRequest struct {
	Group    string   `json:"group"`
	Leave    bool     `json:"leave,omitempty"` // take the nodes out of it
	IDs      []string `json:"ids,omitempty"`
	All      bool     `json:"all,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

func (h *Head) adminGroup(ctx context.Context, req GroupRequest, out *stream) (any, error) {
	if !inventory.CheckGroup(req.Group) {
		return nil, adminError(KindUsage, "muster nodes group add rack1 -i 'n[0-15]'", "%q is not a group's name", req.Group)
	}
	names, err := h.resolve(ctx, which{ids: req.IDs, all: req.All, expr: req.Selector}, false)
	if err != nil {
		return nil, err
	}
	now, kind := h.now(), "join"
	if req.Leave {
		kind = "leave"
		if _, err := (&lookup{h: h, ctx: ctx}).group(req.Group); err != nil { // misspelt, most likely
			return nil, err
		}
	}
	return h.change(ctx, names, out, func(item store.Item) (edit, error) {
		s, err := parse[slot](item)
		if err != nil {
			return edit{}, err
		}
		e := edit{slot: *s, what: altered}
		if slices.Contains(s.Groups, req.Group) != req.Leave {
			e.what = unchanged
			return e, nil
		}
		e.slot.Groups = minus(s.Groups, []string{req.Group})
		if !req.Leave {
			e.slot.Groups = append(e.slot.Groups, req.Group)
			slices.Sort(e.slot.Groups)
		}
		if len(e.slot.Groups) > inventory.MaxGroups {
			return edit{}, adminError(KindPolicy, "muster nodes group", "%s belongs to %d groups already", s.Node, inventory.MaxGroups)
		}
		e.tx.Events = []store.Event{event(now, kind, s.Node, map[string]string{"group": req.Group, "by": byWhom(ctx)})}
		return e, nil
	})
}

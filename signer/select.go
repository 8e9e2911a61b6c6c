package signer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"muster/signer/inventory"
	"muster/signer/nodeset"
	"muster/signer/selector"
	"muster/signer/store"
)

// which is how a request names nodes: by ids, or all, and of those the ones that fit an expression of
// package selector. An expression alone chooses from all.
type which struct {
	ids  []string
	all  bool
	expr string

	unknown string // the hint about a name that has no record
}

// resolve turns selectors into names. Unless they may be created, a name without a record fails
// the whole command.
func (h *Head) resolve(ctx context.Context, w which, create bool) ([]string, error) {
	if w.all && len(w.ids) > 0 || !w.all && len(w.ids) == 0 && w.expr == "" {
		return nil, adminError(KindUsage, "-i 'n[0-99]' for some, -a for all", "say which nodes: either -i or -a")
	}
	fits, err := h.fits(ctx, w.expr)
	if err != nil {
		return nil, err
	}
	var names []string
	if len(w.ids) == 0 {
		names, err = h.everyName(ctx)
	} else {
		names, err = h.named(ctx, w, create && w.expr == "")
	}
	if err != nil || w.expr == "" {
		return names, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !fits(name) })
	if len(names) == 0 {
		return nil, adminError(KindNone, "muster certs list", "--selector %q fits none of the nodes", w.expr)
	}
	return names, nil
}

// named are the nodes that the ids name.
func (h *Head) named(ctx context.Context, w which, create bool) ([]string, error) {
	set, err := h.parseIDs(ctx, w.ids)
	if err != nil {
		return nil, err
	}
	names := slices.Collect(set.All())
	var bad []string
	for _, name := range names {
		if len(name) > maxNodeName {
			return nil, adminError(KindUsage, "name the node shorter", "%q cannot be a node's name: a certificate's common name has at most %d characters", name, maxNodeName)
		}
		if !inventory.IsNodeName(name) {
			return nil, adminError(KindUsage, "begin and end names with a letter or a digit", "%q cannot be a node's name", name)
		}
		if create {
			continue
		}
		known, err := h.knows(ctx, name)
		if err != nil {
			return nil, err
		}
		if !known {
			bad = append(bad, name)
		}
	}
	if len(bad) > 0 {
		return nil, adminError(KindNone, cmp.Or(w.unknown, "muster certs list"), "no such node: %s", fold(bad))
	}
	return names, nil
}

// knows says whether there is a record of name, be it damaged.
func (h *Head) knows(ctx context.Context, name string) (bool, error) {
	item, err := h.store.Get(ctx, prefixSlot+name)
	if errors.Is(err, store.ErrDamaged) {
		return true, nil
	}
	return item.Revision != 0, err
}

func (h *Head) everyName(ctx context.Context) ([]string, error) {
	var names []string
	for item, err := range h.store.List(ctx, prefixSlot) {
		if err != nil {
			return nil, err
		}
		names = append(names, item.Key[len(prefixSlot):])
	}
	if len(names) == 0 {
		return nil, adminError(KindNone, "muster certs enable -i 'n[0-99]'", "no nodes are known yet")
	}
	return names, nil
}

// maxNodeName is in characters.
const maxNodeName = inventory.MaxName

// maxSelector bounds the work that an expression can ask for, in bytes.
const maxSelector = 1 << 20

// parseIDs reads node sets in which groups, MACs, UUIDs and IP addresses stand for the nodes that have them
// on record. A name of the record is a name, whatever else it looks like.
func (h *Head) parseIDs(ctx context.Context, ids []string) (nodeset.Set, error) {
	expr := strings.Join(ids, ",")
	if len(expr) > maxSelector {
		return nodeset.Set{}, adminError(KindUsage, "use ranges, as n[0-99], or several commands", "the nodes take %d bytes to name, more than %d", len(expr), maxSelector)
	}
	look := &lookup{h: h, ctx: ctx}
	set, err := nodeset.Parser{Group: look.group, Alias: look.address}.Parse(expr)
	var bad *nodeset.Error
	switch {
	case look.err != nil:
		return nodeset.Set{}, look.err
	case errors.As(err, &bad):
		hint := "write nodes as 'n[0-99],gpu[01-16]', in quotes"
		if errors.Is(err, nodeset.ErrTooMany) {
			hint = "use several commands"
		}
		return set, adminError(KindUsage, hint, "%v\n%s", bad, bad.Caret())
	case err == nil && set.Len() == 0:
		return set, adminError(KindNone, "muster certs list", "%q selects no node", expr)
	}
	return set, err
}

// lookup finds nodes by what the record says of them. It reads the record once, when it must.
type lookup struct {
	h     *Head
	ctx   context.Context
	slots []*slot
	err   error // why it failed: an AdminError or the store's
}

func (l *lookup) fail(err error) error {
	l.err = err
	return err
}

// records are those that can be read. A damaged one belongs to no group: it keeps none of the others
// back (I8), and no command could do anything with it.
func (l *lookup) records() ([]*slot, error) {
	if l.slots != nil {
		return l.slots, nil
	}
	l.slots = []*slot{}
	for item, err := range l.h.store.List(l.ctx, prefixSlot) {
		var s *slot
		if err == nil {
			s, err = l.h.readSlot(item)
		}
		if errors.Is(err, store.ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, l.fail(err)
		}
		l.slots = append(l.slots, s)
	}
	return l.slots, nil
}

// having are the nodes whose record says so, none being no error.
func (l *lookup) having(ok func(*slot) bool) ([]string, error) {
	slots, err := l.records()
	var names []string
	for _, s := range slots {
		if ok(s) {
			names = append(names, s.Node)
		}
	}
	return names, err
}

// group is a [nodeset.Parser]'s.
func (l *lookup) group(name string) (nodeset.Set, error) {
	names, err := l.having(func(s *slot) bool { return name == "*" || slices.Contains(s.Groups, name) })
	if err != nil {
		return nodeset.Set{}, err
	}
	if len(names) == 0 && name != "*" {
		return nodeset.Set{}, l.fail(adminError(KindNone, "muster nodes group", "no node belongs to a group %q", name))
	}
	return nodeset.Of(names...)
}

// address is a [nodeset.Parser]'s Alias.
func (l *lookup) address(text string) (nodeset.Set, bool, error) {
	mac, isMAC := inventory.ReadMAC(text)
	uuid, isUUID := inventory.ReadUUID(text)
	ip, isIP := inventory.ReadIP(text)
	if !isMAC && !isUUID && !isIP {
		return nodeset.Set{}, false, nil
	}
	if known, err := l.h.knows(l.ctx, text); known || err != nil {
		if err != nil {
			l.fail(err)
		}
		return nodeset.Set{}, false, err
	}
	var names []string
	var err error
	switch {
	case isMAC:
		names, err = l.bound(prefixMAC + mac)
	case isUUID:
		names, err = l.bound(prefixUUID + uuid)
	case isIP:
		names, err = l.having(func(s *slot) bool { return slices.Contains(s.IP, ip) })
	}
	switch {
	case err != nil:
		return nodeset.Set{}, false, err
	case len(names) == 0:
		return nodeset.Set{}, false, l.fail(adminError(KindNone, "muster nodes list", "no node has %s on record", text))
	case len(names) > 1:
		return nodeset.Set{}, false, l.fail(adminError(KindUsage, "name the one that is meant", "%s is on record for %s", text, fold(names)))
	}
	set, err := nodeset.Of(names...)
	return set, true, err
}

// bound is the node that a unique key belongs to.
func (l *lookup) bound(key string) ([]string, error) {
	item, err := l.h.store.Get(l.ctx, key)
	if err != nil {
		return nil, l.fail(err)
	}
	if item.Revision == 0 {
		return nil, nil
	}
	return []string{string(item.Value)}, nil
}

// chosen says of a name whether a query is about it; a query that names no nodes is about all.
func (h *Head) chosen(ctx context.Context, w which) (func(name string) bool, error) {
	fits, err := h.fits(ctx, w.expr)
	if err != nil || len(w.ids) == 0 {
		return fits, err
	}
	set, err := h.parseIDs(ctx, w.ids)
	if err != nil {
		return nil, err
	}
	return func(name string) bool { return set.Contains(name) && fits(name) }, nil
}

// fits says of a name whether its record fits an expression of package selector; to none, all fit.
func (h *Head) fits(ctx context.Context, expr string) (func(name string) bool, error) {
	if expr == "" {
		return func(string) bool { return true }, nil
	}
	e, err := selector.Parse(expr)
	if err != nil {
		return nil, adminError(KindUsage, "--selector 'status[state] == active and not %gpu'", "%v", err)
	}
	look := &lookup{h: h, ctx: ctx}
	for _, name := range e.Groups() {
		if _, err := look.group(name); err != nil {
			return nil, err
		}
	}
	slots, err := look.records()
	if err != nil {
		return nil, err
	}
	now := h.now()
	fit := map[string]bool{}
	for _, s := range slots {
		v := s.view(now, true)
		fit[s.Node] = e.Match(v.values)
	}
	return func(name string) bool { return fit[name] }, nil
}

// values are the operands of package selector.
func (v NodeView) values(field string) []string {
	var one string
	switch field {
	case "%":
		return v.Groups
	case "node[name]":
		one = v.Node
	case "node[mac]":
		return v.MAC
	case "node[uuid]":
		one = v.UUID
	case "node[ip]":
		return v.IP
	case "node[dns]":
		return v.DNS
	case "node[ek]":
		one = v.EK
	case "status[state]":
		one = string(v.State)
	case "status[level]":
		one = string(v.Level)
	case "status[serial]":
		one = v.Serial
	case "status[issued]":
		one = stamp(v.Issued)
	case "status[expires]":
		one = stamp(v.Expires)
	}
	if one == "" {
		return nil
	}
	return []string{one}
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

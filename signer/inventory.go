package signer

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"muster/signer/inventory"
	"muster/signer/nodeset"
	"muster/signer/store"
)

// ImportRequest is `muster nodes import`. The command line reads the file, by its own right to.
type ImportRequest struct {
	File   string           `json:"file"` // its name, for messages and the journal
	Format inventory.Format `json:"format"`
	Data   []byte           `json:"data"`
	IDs    []string         `json:"ids,omitempty"` // node sets: of the file, these nodes only
	DryRun bool             `json:"dry_run,omitempty"`
}

// maxFileName is in bytes: the journal has it once for each node.
const maxFileName = 1 << 10

// MaxImport bounds a file, in bytes.
const MaxImport = 32 << 20

// imported is when node names were imported first.
type imported struct {
	At time.Time `json:"at"`
}

// adminImport makes the record say what a file says. All of the file is judged before anything is changed, so that
// one fault in it changes nothing at all. What it does not speak of stays.
func (h *Head) adminImport(ctx context.Context, req ImportRequest, out *stream) (any, error) {
	if len(req.File) > maxFileName {
		return nil, adminError(KindUsage, "muster nodes import - < FILE, with --format", "the file's name has %d bytes, more than %d", len(req.File), maxFileName)
	}
	// 1. What the file says.
	file, err := inventory.Parse(req.File, req.Format, req.Data)
	if err != nil {
		return nil, adminError(KindUsage, "nothing was changed; muster nodes import --help has the formats", "%v", err)
	}
	p := &plan{h: h, file: req.File, whole: file.Whole, entries: map[string]*inventory.Entry{}, now: h.now(), by: byWhom(ctx)}
	if err := p.take(ctx, file, req.IDs); err != nil {
		return nil, err
	}
	// 2. All of it is judged.
	did := map[outcome][]string{}
	for _, name := range p.names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		e, err := p.edit(ctx, item, true)
		if err != nil {
			return nil, err
		}
		did[e.what] = append(did[e.what], name)
	}
	done := changed(p.names, did)
	if req.DryRun {
		return done, nil
	}
	// 3. Names are the inventory's from now on.
	if err := h.haveInventory(ctx, p.now); err != nil {
		return nil, err
	}
	// 4. What moves from node to node is given up first, so that it belongs to two at no moment.
	var released *Changed
	if len(p.giving) > 0 {
		if released, err = h.change(ctx, p.giving, out, p.release); err != nil {
			return nil, err
		}
	}
	// 5. The rest.
	if _, err := h.change(ctx, p.names, out, func(item store.Item) (edit, error) { return p.edit(ctx, item, false) }); err != nil {
		if released != nil {
			err = partly(err, map[outcome][]string{altered: p.giving})
		}
		return nil, err
	}
	return done, nil
}

// mayCreate says whether enable makes records of names that have none: where somebody asks for it, or nobody has
// imported an inventory.
func (h *Head) mayCreate(ctx context.Context, req EnableRequest) (bool, error) {
	if req.Create || req.Password { // an EST client is no node
		return true, nil
	}
	item, err := h.store.Get(ctx, keyInventory)
	return item.Revision == 0, err
}

func (h *Head) haveInventory(ctx context.Context, now time.Time) error {
	err := h.store.Commit(ctx, store.Tx{Guards: []store.Guard{{Key: keyInventory}}, Puts: []store.Put{put(keyInventory, imported{now.UTC()})}})
	if errors.Is(err, store.ErrConflict) { // it was there
		return nil
	}
	return err
}

// plan is what an import is to change.
type plan struct {
	h       *Head
	file    string
	whole   []string                    // groups that the file names all nodes of
	entries map[string]*inventory.Entry // by name
	names   []string                    // of the entries, in the order of the file
	giving  []string                    // nodes that have what the file gives to others
	now     time.Time
	by      string
}

// take notes the entries of those nodes of the file that were asked for, and one for each node that a group loses.
func (p *plan) take(ctx context.Context, file inventory.File, ids []string) error {
	wanted := func(string) bool { return true }
	if len(ids) > 0 {
		set, err := nodeset.Parse(strings.Join(ids, ","))
		if err != nil {
			return adminError(KindUsage, "write nodes as 'n[0-99],gpu[01-16]', in quotes", "%v", err)
		}
		wanted = set.Contains
	}
	for i := range file.Entries {
		p.add(&file.Entries[i], wanted)
	}
	look := &lookup{h: p.h, ctx: ctx}
	members, err := look.having(func(s *slot) bool {
		return slices.ContainsFunc(s.Groups, func(g string) bool { return slices.Contains(p.whole, g) })
	})
	if err != nil {
		return err
	}
	for _, name := range members {
		if p.entries[name] == nil {
			p.add(&inventory.Entry{Line: 1, Name: name, Has: []inventory.Field{inventory.Name, inventory.InGroups}}, wanted)
		}
	}
	if len(p.names) == 0 {
		return adminError(KindNone, "nothing was changed; look at the file, and at -i", "%s names no node that is to be imported", p.file)
	}
	return nil
}

func (p *plan) add(e *inventory.Entry, wanted func(string) bool) {
	if wanted(e.Name) {
		p.entries[e.Name] = e
		p.names = append(p.names, e.Name)
	}
}

// wrong is about a field of an entry, with the place in the file before what err says.
func (p *plan) wrong(e *inventory.Entry, field inventory.Field, err error) error {
	var no *AdminError
	if !errors.As(err, &no) {
		return err
	}
	at := &inventory.Error{File: p.file, Line: e.Line, Field: field, Msg: no.Message}
	return adminError(no.Kind, no.Hint, "%v", at)
}

// edit makes a record say what the file says. While the file is being judged, what another node has is free
// where the file takes it from that node; it then is that node's to release.
func (p *plan) edit(ctx context.Context, item store.Item, judging bool) (edit, error) {
	name := item.Key[len(prefixSlot):]
	entry := p.entries[name]
	s, e := &slot{Node: name}, edit{what: madeNew}
	if item.Revision != 0 {
		var err error
		if s, err = parse[slot](item); err != nil {
			return edit{}, err
		}
		e.what = altered
	}
	if s.Host {
		return edit{}, p.wrong(entry, inventory.Name, adminError(KindPolicy, "give the node another name", "%s is an EST client, and no node", name))
	}
	if item.Revision == 0 {
		var err error
		if e.tx, err = p.h.nameNode(ctx, name); err != nil {
			return edit{}, p.wrong(entry, inventory.Name, err)
		}
	}
	e.slot = p.merged(s, entry)
	if item.Revision != 0 && reflect.DeepEqual(*s, e.slot) {
		e.what = unchanged
		return e, nil
	}
	for _, move := range []struct {
		field   inventory.Field
		prefix  string
		was, is []string
	}{
		{inventory.MAC, prefixMAC, s.MAC, e.slot.MAC},
		{inventory.UUID, prefixUUID, one(s.UUID), one(e.slot.UUID)},
	} {
		if err := p.rebind(ctx, &e, entry, move.field, move.prefix, move.was, move.is, judging); err != nil {
			return edit{}, err
		}
	}
	if ek := e.slot.EK; ek != s.EK || e.slot.Pinned != s.Pinned {
		owner, err := p.h.mayPin(ctx, s, ek, false)
		if err != nil {
			return edit{}, p.wrong(entry, inventory.EK, err)
		}
		e.tx.Guards = append(e.tx.Guards, owner.Guard())
		e.tx.Puts = append(e.tx.Puts, store.Put{Key: owner.Key, Value: []byte(name)})
	}
	e.tx.Events = []store.Event{p.event(s, &e.slot)}
	return e, nil
}

// event is the line of the journal about a change: what the record says now, where it said something else.
func (p *plan) event(was, is *slot) store.Event {
	fields := map[string]string{"by": p.by, "file": p.file}
	for _, f := range []struct {
		field   inventory.Field
		was, is string
	}{
		{inventory.MAC, commas(was.MAC), commas(is.MAC)},
		{inventory.UUID, was.UUID, is.UUID},
		{inventory.EK, pin(was), pin(is)},
		{inventory.InGroups, commas(was.Groups), commas(is.Groups)},
		{inventory.DNS, commas(was.DNS), commas(is.DNS)},
		{inventory.IP, commas(was.IP), commas(is.IP)},
	} {
		if f.was != f.is {
			fields[string(f.field)] = f.is
		}
	}
	return event(p.now, "import", is.Node, fields)
}

// pin is the EK that the administrator recorded.
func pin(s *slot) string {
	if s.Pinned {
		return s.EK
	}
	return ""
}

// merged is a record after the file. An EK that the file leaves empty stays: an import takes no TPM away.
func (p *plan) merged(s *slot, e *inventory.Entry) slot {
	next := *s
	for _, field := range e.Has {
		switch field {
		case inventory.MAC:
			next.MAC = e.MAC
		case inventory.UUID:
			next.UUID = e.UUID
		case inventory.DNS:
			next.DNS = e.DNS
		case inventory.IP:
			next.IP = e.IP
		case inventory.EK:
			if e.EK != "" {
				next.take(e.EK, true)
			}
		case inventory.InGroups:
			groups := slices.Clone(e.Groups)
			if p.whole != nil { // of other groups it says nothing
				groups = append(groups, minus(s.Groups, p.whole)...)
			}
			slices.Sort(groups)
			next.Groups = slices.Compact(groups)
			if len(next.Groups) == 0 {
				next.Groups = nil
			}
		}
	}
	return next
}

// rebind moves the unique keys of a node: from what it was known by to what it is.
func (p *plan) rebind(ctx context.Context, e *edit, entry *inventory.Entry, field inventory.Field, prefix string, was, is []string, judging bool) error {
	for _, value := range minus(was, is) {
		owner, err := p.h.store.Get(ctx, prefix+value)
		if err != nil {
			return err
		}
		if string(owner.Value) == e.slot.Node {
			e.tx.Guards = append(e.tx.Guards, owner.Guard())
			e.tx.Deletes = append(e.tx.Deletes, owner.Key)
		}
	}
	for _, value := range minus(is, was) {
		owner, err := p.h.store.Get(ctx, prefix+value)
		if err != nil {
			return err
		}
		owner.Key = prefix + value
		if has := string(owner.Value); owner.Revision != 0 && has != e.slot.Node {
			if !judging || !p.takesFrom(has, field) {
				return p.wrong(entry, field, adminError(KindPolicy, "give "+has+" its own in the same file, or: muster nodes remove -i "+has,
					"%s belongs to %s", value, has))
			}
			if !slices.Contains(p.giving, has) {
				p.giving = append(p.giving, has)
			}
		}
		e.tx.Guards = append(e.tx.Guards, owner.Guard())
		e.tx.Puts = append(e.tx.Puts, store.Put{Key: owner.Key, Value: []byte(e.slot.Node)})
	}
	return nil
}

// takesFrom says whether the file gives a node something else in a field. It cannot be the same: the file has
// that for another node.
func (p *plan) takesFrom(name string, field inventory.Field) bool {
	entry := p.entries[name]
	return entry != nil && slices.Contains(entry.Has, field)
}

// release takes from a node the MACs and the UUID that the file does not leave it.
func (p *plan) release(item store.Item) (edit, error) {
	s, err := parse[slot](item)
	if err != nil {
		return edit{}, err
	}
	next, after := *s, p.merged(s, p.entries[s.Node])
	e := edit{what: altered}
	for _, mac := range minus(s.MAC, after.MAC) {
		e.tx.Deletes = append(e.tx.Deletes, prefixMAC+mac)
	}
	next.MAC = minus(s.MAC, minus(s.MAC, after.MAC))
	if s.UUID != after.UUID {
		next.UUID = ""
		if s.UUID != "" {
			e.tx.Deletes = append(e.tx.Deletes, prefixUUID+s.UUID)
		}
	}
	e.slot = next
	e.tx.Events = []store.Event{p.event(s, &next)}
	return e, nil
}

// minus are the values that are not in less.
func minus(values, less []string) []string {
	var left []string
	for _, v := range values {
		if !slices.Contains(less, v) {
			left = append(left, v)
		}
	}
	return left
}

func one(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}

func commas(values []string) string { return strings.Join(values, ",") }

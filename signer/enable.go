package signer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"muster/internal/wire"
	"muster/signer/inventory"
	"muster/signer/nodeset"
	"muster/signer/store"
)

// EnableRequest is `muster certs enable`.
type EnableRequest struct {
	IDs   []string      `json:"ids,omitempty"` // nodeset expressions
	All   bool          `json:"all,omitempty"`
	For   time.Duration `json:"for"`
	Level wire.Level    `json:"level,omitempty"` // at least; empty: what an open grant asks for, else tofu
	EK    string        `json:"ek,omitempty"`    // fingerprint to pin; for one node only
	Again bool          `json:"again,omitempty"` // revoked nodes too
	DNS   []string      `json:"dns,omitempty"`
	IP    []string      `json:"ip,omitempty"`

	Selector string `json:"selector,omitempty"` // of package selector: narrows IDs or All
	Create   bool   `json:"create,omitempty"`   // names that an inventory does not have, too
	// Life of the next certificates, and at how many percent of it left they are renewed; 0: as on record.
	Life      time.Duration `json:"life,omitempty"`
	RefreshAt int           `json:"refresh_at,omitempty"`
	// Password makes an EST client of each, with a one-time password, in the place of a node.
	Password bool `json:"password,omitempty"`
	Approve  bool `json:"approve,omitempty"` // a TPM that is not on record waits for `certs approve`
	Learn    bool `json:"learn,omitempty"`   // note EKs, and issue nothing
	Learned  bool `json:"learned,omitempty"` // pin the EK that was learned
	// Expect are the learned EKs that the administrator saw, by name; a node that another one was learned for is refused.
	Expect   map[string]string `json:"expect,omitempty"`
	TakeBack bool              `json:"take_back,omitempty"` // EK may be one that `certs replace` took out of the node
}

const changedSchema = "muster.changed/v1"

// Changed is what a change did: every node named is in exactly one of the lists, each folded.
type Changed struct {
	Schema    string    `json:"schema"`
	Nodes     string    `json:"nodes"`
	Count     int       `json:"count"`
	New       string    `json:"new,omitempty"`      // had no record
	Opened    string    `json:"opened,omitempty"`   // had one, and a new grant now
	Extended  string    `json:"extended,omitempty"` // had an open grant, which stays open longer now
	Kept      string    `json:"kept,omitempty"`     // had an open grant, which stays open as long as before
	Closed    string    `json:"closed,omitempty"`   // by disable
	Revoked   string    `json:"revoked,omitempty"`
	Altered   string    `json:"changed,omitempty"` // had a record, which says something else now
	Removed   string    `json:"removed,omitempty"`
	Approved  string    `json:"approved,omitempty"`
	Held      string    `json:"held,omitempty"`     // of those enabled: the TPM is to wait for approval, as an earlier enable asked
	Replaced  string    `json:"replaced,omitempty"` // the TPM is to be another one
	Unchanged string    `json:"unchanged,omitempty"`
	Until     time.Time `json:"until,omitzero"` // when the last of the windows closes
	// Serial is the certificate that revoke --serial ended alone, and Keeps the one that its node goes on with.
	Serial string `json:"serial,omitempty"`
	Keeps  string `json:"keeps,omitempty"`
	// Unrenewed are, of those closed or unchanged by disable, the nodes with a certificate in date.
	Unrenewed string `json:"unrenewed,omitempty"`
	// Passwords of EST clients, which are nowhere else.
	Passwords []Credential      `json:"passwords,omitempty"`
	EKs       map[string]string `json:"eks,omitempty"` // that were approved, by name
}

// MaxWindow bounds how long a grant may wait: an open one is a door.
const MaxWindow = 30 * 24 * time.Hour

// perTx is how many nodes one transaction changes at most, so that others get their turn; fewer where it would
// be more than a store takes.
const perTx = 60

func (h *Head) adminEnable(ctx context.Context, req EnableRequest, out *stream) (any, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	create, err := h.mayCreate(ctx, req)
	if err != nil {
		return nil, err
	}
	names, err := h.resolve(ctx, which{
		ids: req.IDs, all: req.All, expr: req.Selector,
		unknown: "is it spelt right? muster nodes list; for a name that the inventory does not have: muster certs enable --create",
	}, create)
	if err != nil {
		return nil, err
	}
	if len(names) != 1 && (req.EK != "" || len(req.DNS) > 0 || len(req.IP) > 0) {
		return nil, adminError(KindUsage, "name one node, or leave --ek, --dns and --ip out", "--ek, --dns and --ip are for one node, not for %d", len(names))
	}
	if req.Password && len(names) > perTx {
		return nil, adminError(KindUsage, "use several commands", "passwords for %d clients at once are too many: %d at most", len(names), perTx)
	}
	if req.wholesale() { // EST clients have a password each
		if names, err = h.nodesOf(ctx, names); err != nil {
			return nil, err
		}
	}
	if err := h.reachable(req.Level); err != nil {
		return nil, err
	}
	// All is looked at before anything is changed, so that a refusal changes nothing at all.
	whose := map[string]string{}
	var unlearned, ended []string
	for _, name := range names {
		item, err := h.store.Get(ctx, prefixSlot+name)
		if err != nil {
			return nil, err
		}
		s, owner, err := h.mayEnable(ctx, item, req)
		if errors.Is(err, errUnlearned) {
			unlearned = append(unlearned, name)
			continue
		}
		if err != nil && s != nil && s.Revoked && !req.Again && len(names) > 1 {
			ended = append(ended, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		if other, twice := whose[owner.Key]; twice && owner.Key != "" {
			return nil, adminError(KindPolicy, "muster certs show -i "+name, "one TPM, with the EK %s, was learned for %s and for %s", owner.Key[len(prefixEK):], other, name)
		}
		whose[owner.Key] = name
	}
	if len(ended) > 0 {
		return nil, adminError(KindPolicy, "to leave them out: muster certs enable "+req.without(ended)+"; to let them enrol again, with another key: --again", "revoked: %s", fold(ended))
	}
	if len(unlearned) > 0 && len(unlearned) < len(names) {
		return nil, adminError(KindPolicy, "to leave them out: muster certs enable --learned "+req.without(unlearned), "no EK of %s was learned", fold(unlearned))
	}
	if len(unlearned) > 0 {
		return nil, notLearned(unlearned...)
	}
	now := h.now()
	var last time.Time
	held := map[string]bool{}
	result, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		e, err := h.enable(ctx, item, req, now)
		if err == nil && e.what != unchanged {
			last = later(last, e.slot.Grant.Until)
			held[e.slot.Node] = e.slot.waits() && !req.Approve
		}
		return e, err
	})
	maps.DeleteFunc(held, func(_ string, is bool) bool { return !is })
	result.Held = fold(slices.Sorted(maps.Keys(held)))
	result.Until = last.UTC().Truncate(time.Second)
	return result, err
}

func (r *EnableRequest) check() error {
	if err := checkWindow(r.For); err != nil {
		return err
	}
	if r.Level != "" && r.Level.Rank() == 0 {
		return adminError(KindUsage, "--level tofu, --level vendor or --level pinned", "level %q is not one that this head can prove", r.Level)
	}
	if r.EK != "" && !isFingerprint(r.EK) {
		return notFingerprint(r.EK)
	}
	if r.Password && (r.Approve || r.Learn || r.Learned) {
		return adminError(KindUsage, "leave --password out, or the other", "--approve, --learn and --learned are for TPMs, and --password for who has none")
	}
	if r.Learn && (r.Approve || r.Learned || r.EK != "" || r.Level == wire.Pinned) || r.Learned && r.EK != "" {
		return adminError(KindUsage, "first --learn; later --learned", "--learn is for EKs that are not known yet; --learned and --ek each name one")
	}
	if r.Life != 0 && (r.Life < MinLife || r.Life > MaxLife) {
		return adminError(KindUsage, "--life 30d", "a life of %v is not between %v and %d days", r.Life, MinLife, int(MaxLife.Hours()/24))
	}
	if r.RefreshAt != 0 && (r.RefreshAt < MinRefreshAt || r.RefreshAt > MaxRefreshAt) {
		return adminError(KindUsage, "--refresh-at 33%", "%d%% of the life left is not between %d%% and %d%%", r.RefreshAt, MinRefreshAt, MaxRefreshAt)
	}
	if r.Password && (r.All || r.Level != "" || r.EK != "" || r.RefreshAt != 0) {
		return adminError(KindUsage, "muster certs enable --password -i host9", "--password is for EST clients that are named; -a, --level, --ek and --refresh-at are for nodes")
	}
	for _, name := range r.DNS {
		if !inventory.IsHostName(name) {
			return adminError(KindUsage, "", "--dns %q is not a DNS name", name)
		}
	}
	for _, ip := range r.IP {
		if net.ParseIP(ip) == nil {
			return adminError(KindUsage, "", "--ip %q is not an IP address", ip)
		}
	}
	return checkHostNames(r)
}

// wholesale says whether nodes are chosen from all that there are.
func (r *EnableRequest) wholesale() bool {
	return !r.Password && (len(r.IDs) == 0 || slices.ContainsFunc(r.IDs, func(id string) bool { return strings.Contains(id, "*") }))
}

// without is how the request names nodes, but for some, as one types it.
func (r *EnableRequest) without(names []string) string {
	ids := "*"
	if len(r.IDs) > 0 {
		ids = strings.Join(r.IDs, ",")
	}
	flags := "-i '" + ids + "!" + fold(names) + "'"
	if r.Selector != "" {
		flags += " --selector '" + r.Selector + "'"
	}
	return flags
}

// errUnlearned is why a node cannot be enabled with --learned.
var errUnlearned = errors.New("no EK was learned")

func notLearned(names ...string) error {
	nodes := fold(names)
	return adminError(KindPolicy, "muster certs enable --learn -i '"+nodes+"', and boot", "no EK of %s was learned", nodes)
}

// reachable refuses a level that nothing could reach.
func (h *Head) reachable(level wire.Level) error {
	if level != wire.Vendor || h.makers.Roots() > 0 {
		return nil
	}
	return adminError(KindPolicy, "put the TPM makers' root certificates there, PEM or DER", "no root is in %s, so nothing could reach level vendor", h.makers.Path())
}

func checkWindow(d time.Duration) error {
	if d <= 0 || d > MaxWindow {
		return adminError(KindUsage, "muster certs enable --for 1h …", "a window of %v is not between 0 and %d days", d, int(MaxWindow.Hours()/24))
	}
	return nil
}

func notFingerprint(ek string) error {
	return adminError(KindUsage, "on the node: muster-agent ek", "EK %q is not a SHA-256 in lower-case hex", ek)
}

func isFingerprint(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// mayEnable refuses what no transaction may do. It returns the record that the request may change, and
// the item that says whose the EK is, where the request names one.
func (h *Head) mayEnable(ctx context.Context, item store.Item, req EnableRequest) (s *slot, owner store.Item, err error) {
	name := item.Key[len(prefixSlot):]
	s = &slot{Node: name}
	if item.Revision != 0 {
		if s, err = parse[slot](item); err != nil {
			return nil, owner, err
		}
	}
	if s.Revoked && !req.Again {
		again := "muster certs enable --again -i "
		if s.Host {
			again = "muster certs enable --again --password -i "
		}
		return s, owner, adminError(KindPolicy, again+name+" lets it enrol again, with another key", "%s is revoked", name)
	}
	if s.Host || req.Password {
		_, _, err := h.mayBeHost(ctx, *s, item, req)
		return s, owner, err
	}
	if item.Revision == 0 {
		if _, err := h.nameNode(ctx, name); err != nil {
			return nil, owner, err
		}
	}
	ek := req.EK
	if req.Learned {
		if s.Learned == nil && s.Pinned {
			return s, owner, nil
		}
		if s.Learned == nil {
			return nil, owner, fmt.Errorf("%s: %w", name, errUnlearned)
		}
		if ek = s.Learned.EK; req.Expect[name] != ek {
			return nil, owner, adminError(KindPolicy, "muster certs show -i "+name, "the EK that was learned for %s is not the one that was shown", name)
		}
	}
	if req.Level == wire.Pinned && !s.Pinned && ek == "" {
		hint, known := "on the node: muster-agent ek; then here: muster certs enable -i "+name+" --ek SHA256", ""
		if s.Learned != nil {
			hint, known = "if that is the right one: muster certs enable --learned -i "+name, "; one was learned"
		}
		if s.EK != "" {
			hint, known = "if that TPM is the right one: muster certs enable -i "+name+" --ek "+s.EK, "; the one that it has was taken on first use"
		}
		return nil, owner, adminError(KindPolicy, hint, "no EK of %s was recorded by you, so nothing could reach level pinned%s", name, known)
	}
	if ek == "" {
		return s, owner, nil
	}
	owner, err = h.mayPin(ctx, s, ek, req.TakeBack)
	return s, owner, err
}

// mayComeBack refuses an EK that was taken out of s, unless the administrator says so beside naming it: a table or a
// habit of old would bring it back. command is what takes him at his word.
func mayComeBack(s *slot, ek string, takeBack bool, command string) error {
	if takeBack || !slices.Contains(s.Replaced, ek) {
		return nil
	}
	return adminError(KindPolicy, "if it is to come back: "+command+" -i "+s.Node+" --take-back --ek "+ek,
		"the TPM with this EK was taken out of %s by muster certs replace", s.Node)
}

// mayPin refuses to bind an EK to a second name, a name to a second EK, or to one that was taken out of it. It returns the
// item that says whose the EK is.
func (h *Head) mayPin(ctx context.Context, s *slot, ek string, takeBack bool) (owner store.Item, err error) {
	command := "muster certs enable"
	if s.EK != "" {
		command = "muster certs replace"
	}
	if err := mayComeBack(s, ek, takeBack, command); err != nil {
		return owner, err
	}
	if s.EK != "" && s.EK != ek {
		return owner, adminError(KindPolicy, "if its board was changed: muster certs replace -i "+s.Node+" --ek "+ek, "%s is bound to another EK, %s", s.Node, s.EK)
	}
	return h.owned(ctx, ek, s.Node)
}

// owned returns the item that says whose an EK is. It must be free, or name's.
func (h *Head) owned(ctx context.Context, ek, name string) (store.Item, error) {
	owner, err := h.store.Get(ctx, prefixEK+ek)
	if err == nil && owner.Revision != 0 && string(owner.Value) != name {
		err = adminError(KindPolicy, "muster certs show -i "+string(owner.Value), "the EK is bound to %s, not to %s", owner.Value, name)
	}
	return owner, err
}

// enable opens a grant in the record of one node, or extends the one that is open. The request is
// judged again, by the record that the transaction guards: a TPM may have been bound meanwhile.
func (h *Head) enable(ctx context.Context, item store.Item, req EnableRequest, now time.Time) (edit, error) {
	rec, owner, err := h.mayEnable(ctx, item, req)
	if errors.Is(err, errUnlearned) {
		return edit{}, notLearned(item.Key[len(prefixSlot):])
	}
	if err != nil {
		return edit{}, err
	}
	e := edit{slot: *rec, what: madeNew}
	if item.Revision != 0 {
		e.what = opened
	}
	s, until := &e.slot, now.Add(req.For).UTC()
	if req.Learn && s.EK != "" || req.Learned && s.Learned == nil {
		e.what = unchanged // there is nothing to learn, or nothing to pin
		return e, nil
	}
	if s.Revoked { // what it had has ended, and is on record as that
		s.Revoked, s.Cert, s.Old, s.Grant = false, nil, nil, nil
	}
	switch {
	case req.Password: // another one each time, since nobody knows the last
		if s.Held, e.tx, err = h.mayBeHost(ctx, *s, item, req); err != nil {
			return edit{}, err
		}
		s.Host, e.password = true, newPassword()
		s.Grant = &grant{ID: newID(), Until: until, Level: Software, Password: e.password.hash(classHost, s.Node)}
	case s.open(now) && s.Grant.Learn == req.Learn:
		e.what = extended
		g := *s.Grant
		if !until.After(g.Until) {
			e.what = kept // a window is never made shorter; disable closes it
		}
		g.Until = later(g.Until, until)
		s.Grant = &g
	default:
		was := s.Grant
		s.Grant = &grant{ID: newID(), Until: until, Level: wire.TOFU, Learn: req.Learn}
		if was != nil && !was.Used && !s.Disabled {
			s.Grant.Approve = was.Approve // asked for once, it holds until disable
		} else {
			s.Pending = nil
		}
		if req.Learn { // anew
			s.Learned = nil
		}
	}
	if req.Level != "" {
		s.Grant.Level = req.Level
	}
	s.Grant.Approve = s.Grant.Approve || req.Approve
	s.Disabled = false
	s.rename(req)
	if e.what == madeNew && !s.Host {
		if e.tx, err = h.nameNode(ctx, s.Node); err != nil {
			return edit{}, err
		}
	}
	fields := map[string]string{"grant": s.Grant.ID, "until": s.Grant.Until.Format(time.RFC3339), "level": string(s.Grant.Level), "by": byWhom(ctx)}
	if req.Life != 0 {
		s.Life, fields["life"] = req.Life, req.Life.String()
	}
	if req.RefreshAt != 0 {
		s.RefreshAt, fields["refresh_at"] = req.RefreshAt, strconv.Itoa(req.RefreshAt)+"%"
	}
	if owner.Key != "" {
		s.take(owner.Key[len(prefixEK):], true)
		fields["ek"] = s.EK
		e.tx.Guards = append(e.tx.Guards, owner.Guard())
		e.tx.Puts = append(e.tx.Puts, store.Put{Key: owner.Key, Value: []byte(s.Node)})
	}
	e.tx.Events = []store.Event{event(now, "enable", s.Node, fields)}
	return e, nil
}

// rename takes the names and addresses of req, where it has some.
func (s *slot) rename(req EnableRequest) {
	if len(req.DNS) > 0 {
		s.DNS = req.DNS
	}
	if len(req.IP) > 0 {
		s.IP = req.IP
	}
}

// DisableRequest is `muster certs disable`.
type DisableRequest struct {
	IDs      []string `json:"ids,omitempty"`
	All      bool     `json:"all,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

func (h *Head) adminDisable(ctx context.Context, req DisableRequest, out *stream) (any, error) {
	names, err := h.resolve(ctx, which{ids: req.IDs, all: req.All, expr: req.Selector}, false)
	if err != nil {
		return nil, err
	}
	now := h.now()
	unrenewed := map[string]bool{}
	done, err := h.change(ctx, names, out, func(item store.Item) (edit, error) {
		s, err := h.readSlot(item)
		if err != nil {
			return edit{}, err
		}
		if !s.Revoked && s.Cert.inDate(now) {
			unrenewed[s.Node] = true
		}
		e := edit{slot: *s, what: closed}
		if s.Disabled {
			e.what = unchanged
			return e, nil
		}
		e.slot.Disabled, e.slot.Pending, e.slot.Learned = true, nil, nil
		e.tx.Events = []store.Event{event(now, "disable", s.Node, map[string]string{"by": byWhom(ctx)})}
		return e, nil
	})
	if err == nil {
		done.Unrenewed = fold(slices.Collect(maps.Keys(unrenewed)))
	}
	return done, err
}

// edit is the change of one record, and what to call it.
type edit struct {
	slot     slot
	tx       store.Tx // beside the slot itself
	what     outcome
	password Password // of an EST client that was enabled
}

// joined is tx with the edit of item.
func (e *edit) joined(tx store.Tx, item store.Item) store.Tx {
	tx.Guards = slices.Concat(tx.Guards, []store.Guard{item.Guard()}, e.tx.Guards)
	tx.Puts = slices.Concat(tx.Puts, e.tx.Puts)
	tx.Deletes = slices.Concat(tx.Deletes, e.tx.Deletes)
	tx.Events = slices.Concat(tx.Events, e.tx.Events)
	if e.what == removed {
		tx.Deletes = append(tx.Deletes, item.Key)
	} else {
		tx.Puts = append(tx.Puts, put(item.Key, e.slot))
	}
	return tx
}

type outcome int

const (
	unchanged outcome = iota
	madeNew
	opened
	extended
	kept
	closed
	revoked
	altered
	removed
	approved
	replaced
)

// change edits the records of names, some in each transaction. A record that somebody else changes
// meanwhile is read and edited again.
func (h *Head) change(ctx context.Context, names []string, out *stream, one func(store.Item) (edit, error)) (*Changed, error) {
	did := map[outcome][]string{}
	var passwords []Credential
	for rest := names; len(rest) > 0; {
		edits, err := h.changeChunk(ctx, rest[:min(perTx, len(rest))], one)
		if err != nil {
			return changed(names, did), partly(err, did)
		}
		for _, e := range edits {
			did[e.what] = append(did[e.what], e.slot.Node)
			if e.password != "" {
				passwords = append(passwords, Credential{e.slot.Node, e.password})
			}
		}
		rest = rest[len(edits):]
		done := 0
		for _, list := range did {
			done += len(list)
		}
		if len(names) > perTx {
			out.progress(done, len(names))
		}
	}
	result := changed(names, did)
	result.Passwords = passwords
	return result, nil
}

// partly adds to an error what was done before it.
func partly(err error, did map[outcome][]string) error {
	before := slices.Concat(slices.Collect(maps.Values(did))...)
	if len(before) == 0 {
		return err
	}
	return adminError(KindPartly, "do the rest again", "%v; done before that: %s", err, fold(before))
}

// changeChunk edits as many of names, from the first on, as one transaction takes.
func (h *Head) changeChunk(ctx context.Context, names []string, one func(store.Item) (edit, error)) ([]edit, error) {
	for {
		var tx store.Tx
		var edits []edit
		for _, name := range names {
			item, err := h.store.Get(ctx, prefixSlot+name)
			if err != nil {
				return nil, err
			}
			e, err := one(item)
			if err != nil {
				return nil, err
			}
			with := tx
			if e.what != unchanged {
				with = e.joined(tx, item)
			}
			if len(edits) > 0 && with.Check() != nil {
				break
			}
			edits, tx = append(edits, e), with
		}
		if err := h.store.Commit(ctx, tx); !errors.Is(err, store.ErrConflict) {
			return edits, err
		}
	}
}

// changeOne edits the record of one node.
func (h *Head) changeOne(ctx context.Context, name string, one func(store.Item) (edit, error)) (*Changed, error) {
	edits, err := h.changeChunk(ctx, []string{name}, one)
	did := map[outcome][]string{}
	for _, e := range edits {
		did[e.what] = []string{name}
	}
	return changed([]string{name}, did), err
}

func changed(names []string, did map[outcome][]string) *Changed {
	return &Changed{
		Schema: changedSchema, Nodes: fold(names), Count: len(names),
		New: fold(did[madeNew]), Opened: fold(did[opened]), Extended: fold(did[extended]), Kept: fold(did[kept]),
		Closed: fold(did[closed]), Revoked: fold(did[revoked]), Altered: fold(did[altered]), Removed: fold(did[removed]),
		Approved: fold(did[approved]), Replaced: fold(did[replaced]), Unchanged: fold(did[unchanged]),
	}
}

// fold is for people; names of the record always fold.
func fold(names []string) string {
	set, err := nodeset.Of(names...)
	if err != nil {
		return strings.Join(names, ",")
	}
	return set.String()
}

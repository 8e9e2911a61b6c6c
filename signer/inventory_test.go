package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"muster/signer/inventory"
	"muster/signer/store"
)

// imports runs an import of a CSV file, which must succeed.
func (s *site) imports(csv string) *Changed {
	s.t.Helper()
	done, err := s.tryImport(csv)
	s.must(err)
	return done
}

func (s *site) tryImport(csv string) (*Changed, error) {
	done, err := s.adminImport(context.Background(), ImportRequest{File: "f.csv", Format: inventory.CSV, Data: []byte(csv)}, noStream())
	if err != nil {
		return nil, err
	}
	return done.(*Changed), nil
}

// state is everything on record, by key. The journal is not in it.
func (s *site) state() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for item, err := range s.store.List(context.Background(), "") {
		s.must(err)
		all[item.Key] = string(item.Value)
	}
	return all
}

// wellBound fails the test unless the unique keys and the records say the same.
func (s *site) wellBound() {
	s.t.Helper()
	want, got := map[string]string{}, map[string]string{}
	for key, value := range s.state() {
		switch {
		case strings.HasPrefix(key, prefixSlot):
			rec := s.record(key[len(prefixSlot):])
			for _, mac := range rec.MAC {
				want[prefixMAC+mac] = rec.Node
			}
			if rec.UUID != "" {
				want[prefixUUID+rec.UUID] = rec.Node
			}
			if rec.EK != "" {
				want[prefixEK+rec.EK] = rec.Node
			}
		case strings.HasPrefix(key, prefixMAC), strings.HasPrefix(key, prefixUUID), strings.HasPrefix(key, prefixEK):
			got[key] = value
		}
	}
	if !maps.Equal(want, got) {
		s.t.Errorf("the keys say %v, the records %v", got, want)
	}
}

// TestImportMany: ten thousand nodes in one go, and the same file again.
func TestImportMany(t *testing.T) {
	s := newSite(t)
	var b bytes.Buffer
	b.WriteString("name,mac,uuid,ek,groups,ip\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "n%d,02:00:00:00:%02x:%02x,%08x-0000-0000-0000-000000000001,%064x,rack%d,10.0.%d.%d\n",
			i, i>>8, i&255, i, i+1, i/100, i>>8, i&255)
	}
	done := s.imports(b.String())
	if done.New != "n[0-9999]" || done.Altered != "" || done.Unchanged != "" {
		t.Errorf("got %+v", done)
	}
	s.wellBound()
	journal := s.journal()
	n := 0
	for _, e := range journal {
		if e.Kind == "import" {
			n++
		}
	}
	if n != 10_000 {
		t.Errorf("%d entries in the journal", n)
	}
	before := s.state()
	if done = s.imports(b.String()); done.Unchanged != "n[0-9999]" || done.New != "" || done.Altered != "" {
		t.Errorf("again: got %+v", done)
	}
	if !maps.Equal(before, s.state()) || len(s.journal()) != len(journal) {
		t.Error("the second import changed something")
	}
}

// TestImportFault: one wrong line, the last of many, changes nothing.
func TestImportFault(t *testing.T) {
	s := newSite(t)
	s.enable("bound")
	s.imports("name,mac,uuid,ek\nold,02:00:00:00:00:99,00000000-0000-0000-0000-000000000099," + strings.Repeat("9", 64) + "\n")
	s.enrol(aChip(t).nodeKey(), "bound")
	for name, c := range map[string]struct{ last, want string }{
		"MAC taken":        {"x,02:00:00:00:00:99,,", "f.csv:202: mac: 02:00:00:00:00:99 belongs to old"},
		"UUID taken":       {"x,,00000000-0000-0000-0000-000000000099,", "f.csv:202: uuid: 00000000-0000-0000-0000-000000000099 belongs to old"},
		"EK of another":    {"x,,," + strings.Repeat("9", 64), "f.csv:202: ek: the EK is bound to old, not to x"},
		"EK of a node":     {"bound,,," + strings.Repeat("8", 64), "f.csv:202: ek: bound is bound to another EK"},
		"form":             {"x,zz,,", `f.csv:202: mac: "zz" is not a MAC address`},
		"name":             {"x y,,,", "f.csv:202: name: 2 values"},
		"name is address":  {"10.0.0.1,,,", `f.csv:202: name: "10.0.0.1" is an address`},
		"twice":            {"n7,,,", "f.csv:202: name: n7 stands on line 9 too"},
		"columns":          {"x", "f.csv:202: wrong number of fields"},
		"quotes":           {`x,"`, "f.csv:202: extraneous or missing"},
		"EK, proven later": {"x,,," + s.record("bound").EK, "f.csv:202: ek: the EK is bound to bound, not to x"},
	} {
		var b strings.Builder
		b.WriteString("name,mac,uuid,ek\n")
		for i := range 200 {
			fmt.Fprintf(&b, "n%d,,,\n", i)
		}
		before, journal := s.state(), len(s.journal())
		_, err := s.tryImport(b.String() + c.last + "\n")
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		if !maps.Equal(before, s.state()) || len(s.journal()) != journal {
			t.Errorf("%s: something was changed", name)
		}
	}
}

// TestImportMoves: MACs and UUIDs go from node to node, in a ring too, and belong to one at every moment.
func TestImportMoves(t *testing.T) {
	s := newSite(t)
	s.imports("name,mac,uuid\na,02:00:00:00:00:01,00000000-0000-0000-0000-000000000001\n" +
		"b,02:00:00:00:00:02 02:00:00:00:00:22,00000000-0000-0000-0000-000000000002\nc,02:00:00:00:00:03,\n")
	s.Head.store = &lookedAt{Store: s.store, look: s.oneOwner}
	done := s.imports("name,mac,uuid\na,02:00:00:00:00:02,00000000-0000-0000-0000-000000000002\n" +
		"b,02:00:00:00:00:03,00000000-0000-0000-0000-000000000001\nc,02:00:00:00:00:01,\n")
	if done.Altered != "a,b,c" {
		t.Errorf("got %+v", done)
	}
	s.wellBound()
	if rec := s.record("b"); !slices.Equal(rec.MAC, []string{"02:00:00:00:00:03"}) || rec.UUID != "00000000-0000-0000-0000-000000000001" {
		t.Errorf("got %+v", rec)
	}
	// What the file does not speak of stays.
	s.imports("name,groups\na,gpu\n")
	if rec := s.record("a"); !slices.Equal(rec.MAC, []string{"02:00:00:00:00:02"}) || !slices.Equal(rec.Groups, []string{"gpu"}) {
		t.Errorf("got %+v", rec)
	}
	// Of a node that the file does not name, nothing is taken.
	if _, err := s.tryImport("name,mac\nd,02:00:00:00:00:01\n"); err == nil {
		t.Error("d took the MAC of c")
	}
	s.wellBound()
}

// lookedAt looks at the store after each commit.
type lookedAt struct {
	store.Store
	look func()
}

func (w *lookedAt) Commit(ctx context.Context, tx store.Tx) error {
	err := w.Store.Commit(ctx, tx)
	w.look()
	return err
}

// oneOwner fails the test if two records have the same MAC or UUID.
func (s *site) oneOwner() {
	s.t.Helper()
	owner := map[string]string{}
	for key := range s.state() {
		name, ok := strings.CutPrefix(key, prefixSlot)
		if !ok {
			continue
		}
		rec := s.record(name)
		for _, value := range append(one(rec.UUID), rec.MAC...) {
			if was := owner[value]; was != "" {
				s.t.Errorf("%s belongs to %s and to %s", value, was, name)
			}
			owner[value] = name
		}
	}
}

// TestImportRace: an EK that a node proves between the judgement and the change is not overwritten.
func TestImportRace(t *testing.T) {
	s := newSite(t)
	s.enable("n1")
	node, enrolled := aChip(t).nodeKey(), false
	s.Head.store = &before{Store: s.store, look: func(tx store.Tx) {
		if !enrolled && slices.ContainsFunc(tx.Events, func(e store.Event) bool { return e.Kind == "import" }) {
			enrolled = true
			s.enrol(node, "n1")
		}
	}}
	_, err := s.tryImport("name,ek\nn1," + strings.Repeat("7", 64) + "\n")
	var no *AdminError
	if !errors.As(err, &no) || no.Kind != KindPolicy {
		t.Errorf("got %v", err)
	}
	if rec := s.record("n1"); !enrolled || rec.Pinned || rec.EK == strings.Repeat("7", 64) {
		t.Errorf("got %+v", rec)
	}
	s.wellBound()
}

// TestImportMoveRace: a MAC that comes back to its first node while it moves is not taken from it.
func TestImportMoveRace(t *testing.T) {
	s := newSite(t)
	s.imports("name,mac\na," + mac1 + "\nb," + mac2 + "\n")
	moved := false
	s.Head.store = &lookedAt{Store: s.store, look: func() {
		if len(s.record("a").MAC) == 0 && !moved {
			moved = true
			s.imports("name,mac\na," + mac1 + "\n")
		}
	}}
	_, err := s.tryImport("name,mac\na," + mac3 + "\nb," + mac1 + "\n")
	var no *AdminError
	if !moved || !errors.As(err, &no) || no.Kind != KindPartly || !strings.Contains(no.Message, "belongs to a; done before that: a") {
		t.Errorf("got %v", err)
	}
	s.wellBound()
}

// before looks at each transaction before it is committed.
type before struct {
	store.Store
	look func(store.Tx)
}

func (b *before) Commit(ctx context.Context, tx store.Tx) error {
	b.look(tx)
	return b.Store.Commit(ctx, tx)
}

// TestImportFileName: anybody at the socket may write what he likes there, but not as much.
func TestImportFileName(t *testing.T) {
	s := newSite(t)
	req := ImportRequest{File: strings.Repeat("x", maxFileName+1), Format: inventory.CSV, Data: []byte("name\nn1\n")}
	_, err := s.adminImport(context.Background(), req, noStream())
	var no *AdminError
	if !errors.As(err, &no) || no.Kind != KindUsage || len(s.state()[prefixSlot+"n1"]) > 0 {
		t.Errorf("got %v", err)
	}
	req.File = req.File[1:]
	_, err = s.adminImport(context.Background(), req, noStream())
	s.must(err)
}

// TestImportPins: an EK in the file counts as one of enable --ek.
func TestImportPins(t *testing.T) {
	s := newSite(t)
	node := aChip(t).nodeKey()
	ek := node.ekHash()
	s.imports("name,ek\nn1,SHA256:" + strings.ToUpper(ek) + "\n")
	s.enable("n1", atLevel("pinned"))
	s.enrol(node, "other")
	if rec := s.record("n1"); rec.Cert == nil || rec.Cert.Level != "pinned" {
		t.Errorf("got %+v", rec)
	}
	s.imports("name,ek\nn1,\n")
	if rec := s.record("n1"); rec.EK != ek || !rec.Pinned {
		t.Errorf("an empty field took the EK away: %+v", rec)
	}
}

// TestEnableCreate: names are free until there is an inventory.
func TestEnableCreate(t *testing.T) {
	s := newSite(t)
	s.enable("n1")
	s.imports("name\nn2\n")
	var no *AdminError
	if err := s.tryEnable("n[1-3]"); !errors.As(err, &no) || no.Kind != KindNone || !strings.Contains(no.Hint, "--create") {
		t.Errorf("got %v", err)
	}
	if s.record("n2").Grant != nil {
		t.Error("n2 was enabled beside an unknown node")
	}
	s.enable("n[1-2]")
	s.enable("n3", func(r *EnableRequest) { r.Create = true })
	if s.record("n3").Grant == nil {
		t.Error("n3 was not made")
	}
}

package signer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestSelect: each way of naming nodes, and each way to fail; a failure changes nothing.
func TestSelect(t *testing.T) {
	s := newSite(t)
	s.imports("name,mac,uuid,groups,ip\n" +
		"n0," + mac1 + "," + uuid1 + ",rack1 gpu,10.0.0.1 fd00::1\nn1," + mac2 + "," + uuid2 + ",rack1,10.0.0.2\n" +
		"n2,,,rack2 gpu,10.0.0.9\nn3,,,rack2,10.0.0.9\nlogin,,,roles:login,\n")
	s.enable("n[0-1]")
	ctx := context.Background()
	for expr, want := range map[string]string{
		"n0":                         "n0",
		mac1:                         "n0",
		"0A-0B-0C-0D-0E-02":          "n1",
		"0a0b.0c0d.0e02":             "n1",
		strings.ToUpper(uuid2):       "n1",
		"10.0.0.1":                   "n0",
		"FD00:0::1":                  "n0",
		"::ffff:10.0.0.2":            "n1",
		"@rack1":                     "n[0-1]",
		"%gpu":                       "n[0,2]",
		"@rack[1-2]":                 "n[0-3]",
		"@rack1&@gpu":                "n0",
		"@rack2!@gpu":                "n3",
		"@rack1,n[2-3]!" + mac2:      "n[0,2-3]",
		"@rack1^10.0.0.1":            "n1",
		"@roles:login":               "login",
		"*":                          "login,n[0-3]",
		"@*!@gpu":                    "login,n[1,3]",
		" 10.0.0.1 , " + mac2 + "\t": "n[0-1]",
	} {
		names, err := s.resolve(ctx, which{ids: []string{expr}}, false)
		if err != nil || fold(names) != want {
			t.Errorf("%s: got %s, %v, want %s", expr, fold(names), err, want)
		}
	}
	for expr, want := range map[string]string{
		"status[state]==open":             "n[0-1]",
		"%gpu and not s[state] == open":   "n2",
		"n[mac] == " + mac2:               "n1",
		"n[ip] == 10.0.0.9 and %rack2":    "n[2-3]",
		"node[uuid] != x and n[name]>=n2": "n[2-3]",
	} {
		names, err := s.resolve(ctx, which{ids: []string{"n[0-3]"}, expr: expr}, false)
		if err != nil || fold(names) != want {
			t.Errorf("--selector %s: got %s, %v, want %s", expr, fold(names), err, want)
		}
	}
	if names, err := s.resolve(ctx, which{expr: "%gpu"}, false); err != nil || fold(names) != "n[0,2]" {
		t.Errorf("a selector alone: got %v, %v", names, err)
	}

	before := s.state()
	for _, c := range []struct {
		w    which
		kind ErrorKind
		want string
	}{
		{which{ids: []string{"@nobody"}}, KindNone, `no node belongs to a group "nobody"`},
		{which{ids: []string{"n0,@rack[1-3]"}}, KindNone, `no node belongs to a group "rack3"`},
		{which{ids: []string{"n0", mac3}}, KindNone, "no node has " + mac3},
		{which{ids: []string{"n0,10.0.0.77"}}, KindNone, "no node has 10.0.0.77"},
		{which{ids: []string{"10.0.0.9"}}, KindUsage, "10.0.0.9 is on record for n[2-3]"},
		{which{ids: []string{"00000000-0000-0000-0000-000000000009"}}, KindNone, "no node has 00000000-"},
		{which{ids: []string{"@rack1&@rack2"}}, KindNone, "selects no node"},
		{which{ids: []string{"4c4c4"}}, KindNone, "no such node: 4c4c4"},
		{which{ids: []string{"n[0-3]"}, expr: "%nobody"}, KindNone, `no node belongs to a group "nobody"`},
		{which{ids: []string{"n[0-3]"}, expr: "%roles:login"}, KindNone, "fits none"},
		{which{ids: []string{"n0"}, expr: "hardware[ram] > 3"}, KindUsage, "is no operand"},
		{which{ids: []string{"n0,n9"}, expr: "%gpu"}, KindNone, "no such node: n9"},
		{which{}, KindUsage, "say which nodes"},
	} {
		// Whether names may be made or not.
		for _, create := range []bool{false, true} {
			if create && slices.ContainsFunc(c.w.ids, func(id string) bool { return id == "4c4c4" }) {
				continue // a name like any other
			}
			_, err := s.adminEnable(ctx, EnableRequest{IDs: c.w.ids, Selector: c.w.expr, For: 1e9, Create: create}, noStream())
			var no *AdminError
			if !errors.As(err, &no) || no.Kind != c.kind || !strings.Contains(no.Message, c.want) {
				t.Errorf("%+v: got %v, want %s", c.w, err, c.want)
			}
		}
	}
	if after := s.state(); len(after) != len(before) {
		t.Error("a refused command changed something")
	}
}

// TestNameBeatsAddress: a name of the record is that name, though it reads like an address.
func TestNameBeatsAddress(t *testing.T) {
	s := newSite(t)
	s.imports("name,ip\nn0,10.0.0.1\n")
	s.putRecord(&slot{Node: "10.0.0.1"})
	names, err := s.resolve(context.Background(), which{ids: []string{"10.0.0.1"}}, false)
	if err != nil || fold(names) != "10.0.0.1" {
		t.Errorf("got %v, %v", names, err)
	}
}

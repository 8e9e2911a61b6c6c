package signer

import (
	"context"
	"strings"
	"testing"

	"muster/internal/wire"
)

// hinted is a node that tells what board it has.
type hinted struct {
	enroller
	hints wire.Hints
}

func (h hinted) ChallengeRequest(node string) wire.ChallengeRequest {
	c := h.enroller.ChallengeRequest(node)
	c.Hints = h.hints
	return c
}

func (h hinted) Answer(node string, c wire.Challenge) (wire.EnrollRequest, error) {
	a, err := h.enroller.Answer(node, c)
	a.Hints = h.hints
	return a, err
}

const (
	mac1, mac2, mac3 = "0a:0b:0c:0d:0e:01", "0a:0b:0c:0d:0e:02", "0a:0b:0c:0d:0e:03"
	uuid1, uuid2     = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
)

// TestClaimed: the way to the slot, for a TPM that was never seen.
func TestClaimed(t *testing.T) {
	s := newSite(t)
	s.imports("name,mac,uuid\nn1," + mac1 + "," + uuid1 + "\nn2," + mac2 + "," + uuid2 + "\nbare,,\nempty,,\n")
	s.enable("*!empty")
	stranger := aStandin(t)
	for name, c := range map[string]struct {
		node  string
		macs  string
		uuid  string
		slot  string // empty: refused
		why   reason
		about string // the name under which `muster why` has it
	}{
		"name alone":                 {node: "n1", slot: "n1"},
		"name and MAC":               {node: "n1", macs: mac1, slot: "n1"},
		"name and one MAC of two":    {node: "n1", macs: mac3 + " " + mac1, slot: "n1"},
		"name and UUID, upper case":  {node: "n1", uuid: strings.ToUpper(uuid1), slot: "n1"},
		"nothing recorded":           {node: "bare", macs: mac3, uuid: "00000000-0000-0000-0000-000000000009", slot: "bare"},
		"nothing told":               {node: "n1", uuid: "00000000-0000-0000-0000-000000000000", macs: "00:00:00:00:00:00 rubbish", slot: "n1"},
		"MAC of nobody":              {node: "n1", macs: mac3, why: whyOtherBoard, about: "n1"},
		"UUID of nobody":             {node: "n1", macs: mac1, uuid: "00000000-0000-0000-0000-000000000009", slot: "n1"}, // by the MAC
		"UUID alone, of nobody":      {node: "n1", uuid: "00000000-0000-0000-0000-000000000009", why: whyOtherBoard, about: "n1"},
		"MAC of another":             {node: "n1", macs: mac2, slot: "n2"},
		"UUID of another":            {node: "n1", uuid: uuid2, slot: "n2"},
		"new card in the same board": {node: "n1", macs: mac3, uuid: uuid1, slot: "n1"},
		"no name, a MAC":             {macs: "0A-0B-0C-0D-0E-02", slot: "n2"},
		"no name, a UUID":            {uuid: uuid1, slot: "n1"},
		"unknown name, a MAC":        {node: "localhost", macs: mac1, slot: "n1"},
		"MACs of two":                {node: "x", macs: mac1 + " " + mac2, why: whyAmbiguous, about: "x"},
		"MAC and UUID of two":        {node: "x", macs: mac1, uuid: uuid2, why: whyAmbiguous, about: "x"},
		"of nobody":                  {node: "x", macs: mac3, why: whyUnknown, about: "x"},
		"not enabled":                {node: "empty", macs: mac1, why: whyNotEnabled, about: "empty"}, // the name is there, and nothing contradicts
	} {
		t.Run(name, func(t *testing.T) {
			node := hinted{stranger, wire.Hints{MACs: strings.Fields(c.macs), UUID: c.uuid}}
			r := s.post(wire.PathChallenge, node.ChallengeRequest(c.node))
			if c.slot == "" {
				refusedWith(t, r, wire.NotEnabled)
				if why := s.reason(c.about); why != c.why {
					t.Errorf("refused because of %q, want %q", why, c.why)
				}
				return
			}
			if ch := decoded[wire.Challenge](t, r); ch.Slot != c.slot || ch.Level != wire.TOFU {
				t.Errorf("led to %s at level %s, want %s at tofu", ch.Slot, ch.Level, c.slot)
			}
		})
	}
}

// TestHintsProveNothing: with name, MAC and UUID all right, another TPM gets no more than one that says nothing.
func TestHintsProveNothing(t *testing.T) {
	s := newSite(t)
	node, stranger := aChip(t).nodeKey(), aStandin(t)
	right := wire.Hints{MACs: []string{mac1}, UUID: uuid1}
	s.imports("name,mac,uuid,ek\nn1," + mac1 + "," + uuid1 + "," + node.ekHash() + "\nn2," + mac2 + ",,\n")
	s.enable("n[1-2]")

	// The slot is pinned to another TPM.
	refusedWith(t, s.post(wire.PathChallenge, hinted{stranger, right}.ChallengeRequest("n1")), wire.NotEnabled)
	refusedWith(t, s.post(wire.PathChallenge, hinted{stranger, right}.ChallengeRequest("")), wire.NotEnabled)
	if why := s.reason("n1"); why != whyOtherTPM {
		t.Errorf("refused because of %q", why)
	}
	// The grant asks for what only an EK on record gives.
	_, err := s.adminImport(context.Background(), ImportRequest{File: "f", Format: "csv", Data: []byte("name,ek\nn2," + strings.Repeat("7", 64) + "\n")}, noStream())
	s.must(err)
	s.enable("n2", atLevel(wire.Pinned))
	refusedWith(t, s.post(wire.PathChallenge, hinted{stranger, wire.Hints{MACs: []string{mac2}}}.ChallengeRequest("n2")), wire.NotEnabled)

	// An EK on record leads to its own slot, whatever name and board are claimed.
	got := s.enrol(hinted{node, wire.Hints{MACs: []string{mac2}}}, "n2")
	if cert := certificate(t, got.Cert); cert.Subject.CommonName != "n1" || s.record("n1").Cert.Level != wire.Pinned {
		t.Errorf("got a certificate for %s at level %s", cert.Subject.CommonName, s.record("n1").Cert.Level)
	}
}

// TestWhyOtherBoard: the administrator is told what contradicts, and what to do.
func TestWhyOtherBoard(t *testing.T) {
	s := newSite(t)
	s.imports("name,mac\nn1," + mac1 + "\n")
	s.enable("n1")
	s.post(wire.PathChallenge, hinted{aStandin(t), wire.Hints{MACs: []string{mac3}}}.ChallengeRequest("n1"))
	view, err := s.adminWhy(context.Background(), WhyRequest{ID: mac1}, noStream())
	s.must(err)
	w := view.(WhyView)
	if w.Node != "n1" || !strings.Contains(w.Sentence, "its MAC is "+mac3+", and n1 is on record with "+mac1) || w.Hint == "" {
		t.Errorf("got %q, hint %q", w.Sentence, w.Hint)
	}
}

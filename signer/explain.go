package signer

import (
	"context"
	"fmt"
	"time"
)

// WhyRequest is `muster why`.
type WhyRequest struct {
	ID string `json:"id"`
}

// WhyView is what happened last to a node, in a sentence, and what to do.
type WhyView struct {
	Schema   string    `json:"schema"`
	Node     string    `json:"node"`
	State    State     `json:"state,omitempty"`
	Sentence string    `json:"sentence"`
	Hint     string    `json:"hint,omitempty"`
	Last     *sighting `json:"last,omitempty"` // since this head started
}

func (h *Head) adminWhy(ctx context.Context, req WhyRequest, _ *stream) (any, error) {
	set, err := parseIDs([]string{req.ID})
	if err != nil {
		return nil, err
	}
	if set.Len() != 1 {
		return nil, adminError(KindUsage, "muster why n0", "%q is %d nodes, not one", req.ID, set.Len())
	}
	var name string
	for name = range set.All() {
	}
	item, err := h.store.Get(ctx, prefixSlot+name)
	if err != nil {
		return nil, err
	}
	view := WhyView{Schema: "muster.why/v1", Node: name}
	last, seen := h.seen.of(name)
	if seen {
		view.Last = &last
	}
	if item.Revision == 0 {
		view.Sentence, view.Hint = explainUnknown(name, view.Last)
		if !seen {
			return nil, adminError(KindNone, view.Hint, "%s", view.Sentence)
		}
		return view, nil
	}
	s, err := parse[slot](item)
	if err != nil {
		return nil, err
	}
	now := h.now()
	view.State = s.state(now)
	view.Sentence, view.Hint = explain(s, view.Last, now)
	return view, nil
}

func explainUnknown(name string, last *sighting) (sentence, hint string) {
	enable := "muster certs enable -i " + name
	if last == nil {
		return name + " was never seen and never enabled", enable
	}
	return fmt.Sprintf("%s asked %s%s, and is not known", name, times(last.Count), from(last)), enable
}

// explain is the one sentence about a node of the record. What it was refused for last comes
// first, then what the record says.
func explain(s *slot, last *sighting, now time.Time) (sentence, hint string) {
	if last != nil && last.Reason != "" {
		if sentence, hint, ok := explainRefusal(s, last, now); ok {
			return sentence, hint
		}
	}
	name := s.Node
	switch s.state(now) {
	case StateRevoked:
		return name + " is revoked", ""
	case StateActive:
		return fmt.Sprintf("%s is well: certificate %.8s… in use since %s, good until %s, level %s",
			name, s.Cert.Serial, day(s.Cert.Issued), day(s.Cert.NotAfter), s.Cert.Level), ""
	case StateIssued:
		return fmt.Sprintf("%s got certificate %.8s… on %s and has not used it yet", name, s.Cert.Serial, day(s.Cert.Issued)),
			"on the node: muster-agent doctor"
	case StateExpired:
		return fmt.Sprintf("the certificate of %s was over on %s", name, day(s.Cert.NotAfter)), "muster certs enable -i " + name
	case StateOpen:
		asked := "has not asked since this head started"
		if last != nil {
			asked = "has not asked since; it last did" + from(last)
		}
		return fmt.Sprintf("%s may enrol until %s, and %s", name, day(s.Grant.Until), asked), "boot the node; on it: muster-agent doctor"
	}
	if s.Disabled {
		return name + " was disabled", "muster certs enable -i " + name
	}
	if s.Grant != nil && !s.Grant.Used {
		return fmt.Sprintf("the window of %s was over on %s, and it had not asked", name, day(s.Grant.Until)), "muster certs enable -i " + name
	}
	return name + " is not enabled", "muster certs enable -i " + name
}

// explainRefusal has a sentence for each reason that can stand for a node of the record; ok is
// false where the record has moved on since.
func explainRefusal(s *slot, last *sighting, now time.Time) (sentence, hint string, ok bool) {
	name, enable := s.Node, "muster certs enable -i "+s.Node
	switch last.Reason {
	case whyNotEnabled, whyWindowOver, whyDisabled, whyExpired:
		if s.open(now) {
			return "", "", false
		}
		return fmt.Sprintf("%s asked %s%s, and was refused: %s", name, times(last.Count), from(last), last.Detail), enable, true
	case whyLevel:
		return fmt.Sprintf("%s asked%s with the EK %s, which is not recorded, and the grant asks for more", name, from(last), last.EK),
			enable + " --level pinned --ek " + last.EK, true
	case whyOtherTPM:
		return fmt.Sprintf("another TPM (EK %s) asked %s%s, to be %s, which is bound to the EK %s",
			last.EK, times(last.Count), from(last), name, s.EK), "muster certs show -i " + name, true
	case whyOtherKey:
		if s.open(now) {
			return "", "", false
		}
		return fmt.Sprintf("%s came back%s with a new key, and its grant is used up", name, from(last)), enable, true
	case whyEKTaken, whyKeyTaken:
		return fmt.Sprintf("%s asked%s and was refused: %s", name, from(last), last.Detail), "muster certs list", true
	case whyNotOnRecord:
		return fmt.Sprintf("%s showed a certificate%s that is not on record: %s", name, from(last), last.Detail), enable, true
	case whyForm, whyCSR, whyTooLarge:
		return fmt.Sprintf("%s sent a request%s that was malformed: %s", name, from(last), last.Detail),
			"use a muster-agent of this head's release", true
	case whyStale:
		return fmt.Sprintf("%s answered%s a challenge that is no longer good", name, from(last)), "if this goes on: is the node's clock right?", true
	case whyStore:
		return fmt.Sprintf("%s asked%s, and the store could not serve: %s", name, from(last), last.Detail), "journalctl -u muster", true
	case whyClock:
		return fmt.Sprintf("%s asked%s, and this head will not sign: %s", name, from(last), last.Detail), "set the head's clock", true
	case whySigning:
		return fmt.Sprintf("%s asked%s, and the CA cannot sign: %s", name, from(last), last.Detail), "muster ca show", true
	case whyOverload:
		return fmt.Sprintf("%s asked%s while this head was busy; it tries again by itself", name, from(last)), "", true
	}
	return "", "", false
}

func from(last *sighting) string {
	return fmt.Sprintf(" from %s at %s", last.Addr, last.At.Local().Format("15:04:05"))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times, last", n)
}

func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

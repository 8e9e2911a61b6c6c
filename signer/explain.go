package signer

import (
	"context"
	"fmt"
	"strings"
	"time"

	"muster/internal/wire"
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
	Last     *sighting `json:"last,omitempty"`   // since this head started
	Report   *report   `json:"report,omitempty"` // of a machine that has proved nothing, and has not asked since
}

func (h *Head) adminWhy(ctx context.Context, req WhyRequest, _ *stream) (any, error) {
	name, err := h.oneName(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	item, err := h.store.Get(ctx, prefixSlot+name)
	if err != nil {
		return nil, err
	}
	seen := h.seen.of(name)
	view := WhyView{Schema: "muster.why/v1", Node: name, Last: seen.last, Report: seen.report}
	if item.Revision == 0 {
		create, err := h.mayCreate(ctx, EnableRequest{})
		if err != nil {
			return nil, err
		}
		view.Sentence, view.Hint = explainUnknown(name, seen, create)
		if seen.last == nil && seen.report == nil {
			return nil, adminError(KindNone, view.Hint, "%s", view.Sentence)
		}
	} else {
		s, err := h.readSlot(item)
		if err != nil {
			return nil, err
		}
		now := h.now()
		view.State = s.state(now)
		view.Sentence, view.Hint = explain(s, view.Last, now)
	}
	if no := h.maySign(h.now()); no != nil && (view.Last == nil || view.Last.Reason != no.reason) {
		view.Sentence = fmt.Sprintf("this head signs nothing: %s; %s", no.detail, view.Sentence)
		view.Hint = strings.TrimSuffix(notSigningHint(no.reason)+"; "+view.Hint, "; ")
	}
	if view.Report != nil {
		view.add(explainReport(name, view.Report))
	}
	return view, nil
}

func (h *Head) oneName(ctx context.Context, id string) (name string, err error) {
	set, err := h.parseIDs(ctx, []string{id})
	if err != nil {
		return "", err
	}
	if set.Len() != 1 {
		return "", adminError(KindUsage, "muster why n0", "%q is %d nodes, not one", id, set.Len())
	}
	for name = range set.All() {
	}
	return name, nil
}

// add puts a report after what is known, and hides none of that: anybody can send one.
func (v *WhyView) add(sentence, hint string) {
	v.Sentence += "; " + sentence
	if v.Hint != "" {
		hint = v.Hint + "; " + hint
	}
	v.Hint = hint
}

// explainUnknown is about a name that has no record; create says whether enable makes one by itself.
func explainUnknown(name string, seen trace, create bool) (sentence, hint string) {
	enable := "muster certs enable -i " + name
	switch {
	case seen.last != nil && seen.last.Reason == whyPassword: // of EST
		enable = "for an EST client: muster certs enable --password -i " + name
	case !create:
		enable = "muster certs enable --create -i " + name
	}
	switch {
	case seen.last != nil && seen.last.Reason == whyAmbiguous:
		return fmt.Sprintf("%s asked %s%s, and is not known: %s", name, times(seen.last.Count), from(seen.last.Addr, seen.last.At), seen.last.Detail), "muster nodes list"
	case seen.last != nil:
		return fmt.Sprintf("%s asked %s%s, and is not known", name, times(seen.last.Count), from(seen.last.Addr, seen.last.At)), enable
	case seen.report != nil:
		return name + " was never enabled", enable
	}
	return name + " was never seen and never enabled", "muster certs list shows the names that are; if it is right: " + enable
}

// explain is the one sentence about a node of the record. What it was refused for last comes
// first, then what the record says.
func explain(s *slot, last *sighting, now time.Time) (sentence, hint string) {
	if s.Host {
		return explainHost(s, last, now)
	}
	if last != nil && last.Reason != "" {
		if sentence, hint, ok := explainRefusal(s, last, now); ok {
			return sentence, hint
		}
	}
	name := s.Node
	switch s.state(now) {
	case StateRevoked:
		return name + " is revoked", "to let it enrol again, with another key: muster certs enable --again -i " + name
	case StateActive:
		return fmt.Sprintf("%s is well: certificate %.8s… in use since %s, good until %s, level %s",
			name, s.Cert.Serial, day(s.Cert.Issued), day(s.Cert.NotAfter), s.Cert.Level), ""
	case StateIssued:
		return fmt.Sprintf("%s got certificate %.8s… on %s and has not used it yet", name, s.Cert.Serial, day(s.Cert.Issued)),
			"on the node: muster-agent doctor"
	case StateExpired:
		if s.Cert.burnt {
			return fmt.Sprintf("the CA of the certificate of %s was ended, as somebody else may have its key, and the node is not to believe whoever follows it", name), newPin
		}
		if !s.Cert.ended.IsZero() {
			return fmt.Sprintf("the CA of the certificate of %s was ended; it gets another when it asks with the same TPM and key", name), "boot the node; on it: muster-agent run"
		}
		return fmt.Sprintf("the certificate of %s was over on %s; it gets another when it asks with the same TPM and key", name, day(s.Cert.NotAfter)),
			"boot the node; on it: muster-agent run"
	case StatePending:
		return explainPending(s)
	case StateOpen:
		if s.Learned != nil && s.Grant.Learn {
			return explainLearned(s)
		}
		asked := "has not asked since this head started"
		if last != nil {
			asked = "has not asked since; it last did" + from(last.Addr, last.At)
		}
		may := "may enrol"
		switch {
		case s.Grant.Learn:
			may = "may show its TPM"
		case s.holds():
			may = "may ask for your approval"
		}
		return fmt.Sprintf("%s %s until %s, and %s", name, may, day(s.Grant.Until), asked), "boot the node; on it: muster-agent doctor"
	}
	if s.Learned != nil && !s.Disabled {
		return explainLearned(s)
	}
	if s.Disabled {
		return name + " was disabled" + unrenewed(s, now), "muster certs enable -i " + name
	}
	if s.Grant != nil && !s.Grant.Used && !s.knows() {
		return fmt.Sprintf("the window of %s was over on %s, and it had not asked", name, day(s.Grant.Until)), "muster certs enable -i " + name
	}
	return name + " is not enabled", "muster certs enable -i " + name
}

// unrenewed is what disable means for a certificate that is good yet.
func unrenewed(s *slot, now time.Time) string {
	if !s.Disabled || !s.Cert.inDate(now) {
		return ""
	}
	return fmt.Sprintf("; its certificate %.8s… is good until %s, and is not renewed", s.Cert.Serial, day(s.Cert.NotAfter))
}

// newPin is what a node needs whose CA is burnt.
const newPin = "muster ca show prints the new pin: on the node's kernel command line muster.ca=PIN, and muster.forget=1 for one boot; a ca.pem in its image wins over that, so put the new one there"

// explainPending names the TPM, so that nobody approves another than he means.
func explainPending(s *slot) (sentence, hint string) {
	p, name := s.Pending, s.Node
	return fmt.Sprintf("%s waits for approval: a TPM with the EK %s proved itself from %s on %s, level %s", name, p.EK, p.Addr, day(p.Since), p.Level),
		"if muster-agent ek on the node prints that EK: muster certs approve -i " + name + "; if not: muster certs approve -i " + name + " --ek SHA256"
}

func explainLearned(s *slot) (sentence, hint string) {
	l, name := s.Learned, s.Node
	return fmt.Sprintf("the EK %s was learned for %s from %s on %s, level %s", l.EK, name, l.Addr, day(l.Since), l.Level),
		"if it is the right one: muster certs enable --learned -i " + name
}

// explainRefusal has a sentence for each reason that can stand for a node of the record; ok is
// false where the record has moved on since.
func explainRefusal(s *slot, last *sighting, now time.Time) (sentence, hint string, ok bool) {
	name, enable := s.Node, "muster certs enable -i "+s.Node
	switch last.Reason {
	case whyExpired:
		return fmt.Sprintf("%s showed its certificate%s, which is over; an agent gets another by itself", name, from(last.Addr, last.At)), "on the node: muster-agent run", true
	case whyTooSoon:
		return fmt.Sprintf("%s asked%s for another key, and was refused: %s", name, from(last.Addr, last.At), last.Detail), "on the node: muster-agent renew, for the key that it has", true
	case whyNotEnabled, whyWindowOver, whyDisabled:
		if s.open(now) || s.state(now) == StatePending {
			return "", "", false
		}
		return fmt.Sprintf("%s asked %s%s, and was refused: %s%s", name, times(last.Count), from(last.Addr, last.At), last.Detail, unrenewed(s, now)), enable, true
	case whyLevel:
		return fmt.Sprintf("%s asked%s with the EK %s, which is not recorded, and the grant asks for more", name, from(last.Addr, last.At), last.EK),
			enable + " --level pinned --ek " + last.EK, true
	case whyPending, whyLearned:
		return "", "", false // the record says so
	case whyAnother:
		first, what := s.Pending, "waits"
		if first == nil || s.Grant != nil && s.Grant.Learn {
			first, what = s.Learned, "was learned"
		}
		if first == nil {
			return "", "", false
		}
		return fmt.Sprintf("two TPMs ask to be %s: the EK %s %s, and the EK %s asked %s%s", name, first.EK, what, last.EK, times(last.Count), from(last.Addr, last.At)),
			"the right one is what muster-agent ek prints on the node: " + choose(s) + " --ek SHA256", true
	case whyReplaced:
		back := enable
		if s.EK != "" {
			back = "muster certs replace -i " + name
		}
		return fmt.Sprintf("the board that was taken out of %s (EK %s) asked %s%s", name, last.EK, times(last.Count), from(last.Addr, last.At)),
			"if it is the right one after all: " + back + " --take-back --ek " + last.EK, true
	case whyVendor:
		return fmt.Sprintf("%s asked%s with the EK %s, and its maker does not vouch for it: %s", name, from(last.Addr, last.At), last.EK, last.Detail),
			"the makers' certificates belong into ek-roots/ in the state directory; or name the EK: " + enable + " --ek " + last.EK, true
	case whyOtherTPM:
		return fmt.Sprintf("another TPM (EK %s) asked %s%s, to be %s, which is bound to the EK %s",
			last.EK, times(last.Count), from(last.Addr, last.At), name, s.EK), "if its board was changed: muster certs replace -i " + name, true
	case whyOtherKey:
		if s.open(now) {
			return "", "", false
		}
		return fmt.Sprintf("%s asked%s with another key than the one on record (was its TPM cleared?), and no grant is open",
			name, from(last.Addr, last.At)), enable, true
	case whyOtherBoard:
		return fmt.Sprintf("another machine asked %s%s, to be %s: %s", times(last.Count), from(last.Addr, last.At), name, last.Detail),
			"if the board was changed, import what it has now: muster nodes list -i " + name + " -o csv > nodes.csv, which you correct, and then muster nodes import nodes.csv", true
	case whyAmbiguous:
		return fmt.Sprintf("a machine asked %s%s, to be %s: %s", times(last.Count), from(last.Addr, last.At), name, last.Detail), "muster nodes list", true
	case whyEKTaken, whyKeyTaken:
		return fmt.Sprintf("%s asked%s and was refused: %s", name, from(last.Addr, last.At), last.Detail), "muster certs list", true
	case whyCAEnded:
		if s.Cert != nil && s.Cert.burnt {
			return fmt.Sprintf("%s showed a certificate%s of a CA that was ended, as somebody else may have its key", name, from(last.Addr, last.At)), newPin, true
		}
		return fmt.Sprintf("%s showed a certificate%s of a CA that was ended; its agent gets another by itself", name, from(last.Addr, last.At)), "on the node: muster-agent run", true
	case whyKeyBarred:
		return fmt.Sprintf("%s asked%s with a key that was revoked; an agent makes another one by itself", name, from(last.Addr, last.At)), "on the node: muster-agent run", true
	case whyClass:
		return fmt.Sprintf("%s showed its certificate%s to EST, which is not for nodes", name, from(last.Addr, last.At)), "on the node: muster-agent renew", true
	case whyNotOnRecord:
		return fmt.Sprintf("%s showed a certificate%s that is not on record: %s", name, from(last.Addr, last.At), last.Detail), enable, true
	case whyForm, whyCSR, whyTooLarge:
		return fmt.Sprintf("%s sent a request%s that was malformed: %s", name, from(last.Addr, last.At), last.Detail),
			"use a muster-agent of this head's release", true
	case whyStale:
		return fmt.Sprintf("%s answered%s a challenge that is no longer good", name, from(last.Addr, last.At)), "if this goes on: is the node's clock right?", true
	case whyStore:
		return fmt.Sprintf("%s asked%s, and the store could not serve: %s", name, from(last.Addr, last.At), last.Detail), "journalctl -u muster", true
	case whyClock:
		return fmt.Sprintf("%s asked%s, and this head will not sign: %s", name, from(last.Addr, last.At), last.Detail), notSigningHint(whyClock), true
	case whyRollback:
		return fmt.Sprintf("%s asked%s, and this head will not sign, since its store was set back: %s", name, from(last.Addr, last.At), last.Detail), rollbackHint, true
	case whySigning:
		return fmt.Sprintf("%s asked%s, and the CA cannot sign: %s", name, from(last.Addr, last.At), last.Detail), "muster ca show", true
	case whyOverload:
		return fmt.Sprintf("%s asked%s while this head was busy; it tries again by itself", name, from(last.Addr, last.At)), "", true
	}
	return "", "", false
}

// explainReport is what an unproven report comes to. It never says that the node itself sent it.
func explainReport(name string, r *report) (sentence, hint string) {
	says, hint := explainTrouble(r.Code)
	often := ""
	if r.Count > 1 {
		often = " " + times(r.Count)
	}
	return fmt.Sprintf("a machine that calls itself %s reported%s%s that %s", name, often, from(r.Addr, r.At), says), hint
}

// explainTrouble has a sentence and a remedy for each of wire.Troubles.
func explainTrouble(code wire.Trouble) (says, hint string) {
	switch code {
	case wire.NoTPM:
		return "it has no usable TPM: its firmware shows none",
			"in the node's firmware, switch the TPM on (Intel PTT, AMD fTPM or the discrete TPM), or fit one"
	case wire.TPMMissing:
		return "it has no usable TPM: there is none where it looks",
			"on the node: see that the kernel has its driver (tpm_crb, tpm_tis, tpm_tis_spi), and what --tpm names"
	case wire.TPM12:
		return "it has no usable TPM: it is a TPM 1.2",
			"switch the TPM to 2.0 in the node's firmware if it offers that, or fit a TPM 2.0"
	case wire.TPMBusy:
		return "it has no usable TPM: another program holds it",
			"on the node: stop that program (tpm2-abrmd, another agent), or use --tpm device:/dev/tpmrm0"
	case wire.TPMLocked:
		return "it has no usable TPM: a password, a lockout or a hierarchy that is switched off is in the way",
			"on the node: muster-agent doctor; or clear the TPM in its firmware"
	case wire.InstallFailed:
		return "it cannot write its files", "on the node: see that /run/muster can be written and has room, then muster-agent run"
	case wire.BadAnswer:
		return "a head's answer makes no sense to it", "node and head must be of releases that understand each other"
	case wire.NVFull:
		return "its TPM's NV has no room for the certificate, which it fetches at each boot",
			"nothing, if heads are in reach at its boots; else on the node: see 'tpm2_getcap handles-nv-index' for what can be removed"
	case wire.NVTaken:
		return "something else is stored at Muster's places in its TPM's NV, so that it fetches the certificate at each boot",
			"nothing, if heads are in reach at its boots; else on the node: see 'tpm2_nvreadpublic', and set other nv-slots in agent.toml"
	case wire.NVLocked:
		return "its TPM's owner hierarchy has a password or is switched off, so that it fetches the certificate at each boot",
			"nothing, if heads are in reach at its boots; else on the node: tpm2_changeauth -c owner -p PASSWORD"
	}
	return "it has no usable TPM: the TPM fails", "on the node: muster-agent doctor; power it off completely, update the TPM's firmware or replace it"
}

// choose is the command that names the right one of several TPMs.
func choose(s *slot) string {
	if s.waits() {
		return "muster certs approve -i " + s.Node
	}
	return "muster certs enable -i " + s.Node
}

func from(addr string, at time.Time) string {
	return fmt.Sprintf(" from %s at %s", addr, at.Local().Format("15:04:05"))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times, last", n)
}

func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

package signer

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
)

func reportOf(node string, code wire.Trouble) wire.Report {
	return wire.Report{V: wire.Version, Node: node, Code: code}
}

// reportFrom sends a report as a machine at addr does.
func (s *site) reportFrom(addr string, r wire.Report) reply {
	s.t.Helper()
	return sendReport(s.Head, addr, string(wire.Encode(r)))
}

func sendReport(h *Head, addr, body string) reply {
	r := httptest.NewRequest(http.MethodPost, wire.PathReport, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = addr + ":1000"
	w := httptest.NewRecorder()
	h.NodeHandler().ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

// TestReport: each trouble has a sentence of its own and a remedy, and the sentence says whose word it is.
func TestReport(t *testing.T) {
	s := newSite(t)
	seen := map[string]bool{}
	for _, code := range wire.Troubles {
		decoded[wire.Reported](t, s.reportFrom("10.0.0.7", reportOf("n7", code)))
		view := s.why("n7")
		begin := "n7 was never enabled; a machine that calls itself n7 reported from 10.0.0.7 at "
		if says := strings.TrimPrefix(view.Sentence, begin); says == view.Sentence || seen[says] {
			t.Errorf("%s: %s", code, view.Sentence)
		} else {
			seen[says] = true
		}
		if r := view.Report; !strings.HasPrefix(view.Hint, "muster certs enable -i n7; ") || r == nil || r.Code != code || r.Count != 1 || view.Last != nil {
			t.Errorf("%s: %+v", code, view)
		}
	}
	s.reportFrom("10.0.0.8", reportOf("n7", wire.Troubles[len(wire.Troubles)-1]))
	if view := s.why("n7"); view.Report.Count != 2 || !strings.Contains(view.Sentence, " reported 2 times, last from 10.0.0.8 at ") {
		t.Errorf("%+v", view)
	}
}

// TestReportHidesNothing: whatever the record or a proof says of a node comes first, as it was.
func TestReportHidesNothing(t *testing.T) {
	stranger := aChip(t).nodeKey()
	for name, prepare := range map[string]func(*site, *key){
		"active": func(s *site, k *key) {
			s.enable("n0")
			equal(t, "use", use(s.Head, certificate(t, s.enrol(k, "n0").Cert)), "")
		},
		"issued":   func(s *site, k *key) { s.enable("n0"); s.enrol(k, "n0") },
		"open":     func(s *site, k *key) { s.enable("n0") },
		"disabled": func(s *site, k *key) { s.enable("n0"); s.disable("n0") },
		"expired":  func(s *site, k *key) { s.enable("n0"); s.enrol(k, "n0"); s.clock.move(nodeLife) },
		"revoked":  func(s *site, k *key) { s.enable("n0"); s.putRecord(&slot{Node: "n0", Revoked: true}) },
		"another TPM": func(s *site, k *key) {
			s.enable("n0", pinned(k.ekHash()))
			s.post(wire.PathChallenge, stranger.ChallengeRequest("n0"))
		},
		"refused after proof": func(s *site, k *key) {
			s.enable("n0")
			s.enrol(k, "n0")
			refusedWith(t, s.post(wire.PathEnroll, s.answered(k.chip.nodeKey(), "n0")), wire.Refused)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := newSite(t), aChip(t).nodeKey()
			prepare(s, k)
			before := s.why("n0")
			for range 3 {
				decoded[wire.Reported](t, s.reportFrom("10.0.0.7", reportOf("n0", wire.NoTPM)))
			}
			after := s.why("n0")
			if !strings.HasPrefix(after.Sentence, before.Sentence+"; a machine that calls itself n0 reported 3 times, last from 10.0.0.7 at ") {
				t.Errorf("before: %s\nafter: %s", before.Sentence, after.Sentence)
			}
			if !strings.HasPrefix(after.Hint, before.Hint) || after.State != before.State {
				t.Errorf("before: %+v\nafter: %+v", before, after)
			}
			if before.Last != nil && (after.Last == nil || *after.Last != *before.Last) {
				t.Errorf("the sighting was %+v, and is %+v", before.Last, after.Last)
			}
		})
	}
}

// TestReportIsOver when the node proves itself, or asks from where the report came; a stranger's
// request does not end it.
func TestReportIsOver(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()))
	report := func() { decoded[wire.Reported](t, s.reportFrom("10.0.0.7", reportOf("n0", wire.TPMFailed))) }
	report()
	refusedWith(t, s.post(wire.PathChallenge, aChip(t).nodeKey().ChallengeRequest("n0")), wire.NotEnabled)
	if s.why("n0").Report == nil {
		t.Error("a stranger elsewhere ended the report")
	}
	s.enrol(k, "n0")
	if view := s.why("n0"); view.Report != nil || strings.Contains(view.Sentence, "reported") {
		t.Errorf("after a proof: %+v", view)
	}
	report()
	s.seen.note("n0", true, sighting{Addr: "10.0.0.7"})
	if s.why("n0").Report != nil {
		t.Error("it asked from the same address, and its report stands")
	}
}

func TestReportForm(t *testing.T) {
	s := newSite(t)
	good := string(wire.Encode(reportOf("n0", wire.NoTPM)))
	for name, body := range map[string]string{
		"no such code":  strings.Replace(good, "no_tpm", "no_tpm2", 1),
		"no code":       strings.Replace(good, "no_tpm", "", 1),
		"version":       strings.Replace(good, `"v":1`, `"v":2`, 1),
		"free text":     strings.Replace(good, `"code"`, `"text":"hello","code"`, 1),
		"white space":   good + "\n",
		"long name":     string(wire.Encode(reportOf(strings.Repeat("n", 254), wire.NoTPM))),
		"a claim":       string(wire.Encode(wire.ChallengeRequest{V: 1, Node: "n0"})),
		"nothing":       "",
		"many MACs":     string(wire.Encode(wire.Report{V: 1, Hints: wire.Hints{MACs: make([]string, 33)}, Code: wire.NoTPM})),
		"a long serial": string(wire.Encode(wire.Report{V: 1, Hints: wire.Hints{Serial: strings.Repeat("x", 254)}, Code: wire.NoTPM})),
	} {
		t.Run(name, func(t *testing.T) { refusedWith(t, sendReport(s.Head, "10.0.0.7", body), wire.BadRequest) })
		s.clock.move(reportWindow)
	}
	refusedWith(t, sendReport(s.Head, "10.0.0.7", good+strings.Repeat(" ", wire.MaxBody)), wire.TooLarge)
	if s.seen.of("n0") != (trace{}) {
		t.Error("a report of a wrong form was remembered")
	}
	decoded[wire.Reported](t, sendReport(s.Head, "10.0.0.7", good))
	decoded[wire.Reported](t, sendReport(s.Head, "10.0.0.7", string(wire.Encode(reportOf("", wire.NoTPM)))))
	if s.seen.of("").report != nil {
		t.Error("a report of no name was remembered")
	}
}

// TestReportTellsNothing: the answer is the same for a name of any state, or of none.
func TestReportTellsNothing(t *testing.T) {
	s, names, _ := unproven(t)
	for _, name := range append(names, "nobody", "") {
		r := s.reportFrom("10.0.0.7", reportOf(name, wire.NoTPM))
		if string(r.body) != "{}" || r.status != http.StatusOK {
			t.Errorf("%q: %d %s", name, r.status, r.body)
		}
		s.clock.move(reportWindow)
	}
}

// TestReportsWriteNothing, and are bounded, whoever sends them (I10).
func TestReportsWriteNothing(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	revision, entries, files := s.revision(), len(s.journal()), s.files()
	taken := 0
	for i := range 3 * reportsTotal / 2 {
		addr := fmt.Sprintf("10.0.%d.%d", i>>8&255, i&255)
		for _, name := range []string{"n0", fmt.Sprintf("x%d", i)} {
			if s.reportFrom(addr, reportOf(name, wire.NoTPM)).status == http.StatusOK {
				taken++
			}
		}
	}
	equal(t, "reports taken", taken, reportsTotal)
	equal(t, "strangers", len(s.seen.strangers), maxStrangers)
	equal(t, "strangers in order", s.seen.order.Len(), maxStrangers)
	equal(t, "known", len(s.seen.known), 1)
	if n := len(s.reports.from); n > reportsTotal {
		t.Errorf("the limit remembers %d addresses", n)
	}
	for path, sum := range s.files() {
		if files[path] != sum {
			t.Errorf("%s was changed", path)
		}
	}
	equal(t, "journal entries", len(s.journal()), entries)
	equal(t, "revision", s.revision(), revision+1)
	r := s.reportFrom("10.9.9.9", reportOf("n0", wire.NoTPM))
	refusedWith(t, r, wire.Busy)
	if r.header.Get("Retry-After") == "" {
		t.Error("busy without Retry-After")
	}
	s.clock.move(reportWindow)
	decoded[wire.Reported](t, s.reportFrom("10.9.9.9", reportOf("n0", wire.NoTPM)))
	equal(t, "addresses in the next window", len(s.reports.from), 1)
}

// TestReportLimit of one address, of an IPv6 /64, and after the clock went back.
func TestReportLimit(t *testing.T) {
	l, now := &reportLimit{}, noon
	from := func(addr string) bool { return l.allow(addr, now) }
	for i := range reportsPerAddress + 1 {
		equal(t, fmt.Sprintf("report %d of one address", i), from("10.0.0.7:1"), i < reportsPerAddress)
	}
	equal(t, "its neighbour", from("10.0.0.8:1"), true)
	equal(t, "the same, in a moment", l.allow("10.0.0.7:2", now.Add(reportWindow-1)), false)
	now = now.Add(reportWindow)
	equal(t, "the same, in the next window", from("10.0.0.7:2"), true)
	for range reportsPerAddress {
		from("10.0.0.7:3")
	}
	now = now.Add(-time.Hour)
	equal(t, "the same, when the clock went back", from("10.0.0.7:3"), true)
	now = now.Add(reportWindow)
	taken := 0
	for i := range reportsTotal {
		if from(fmt.Sprintf("[fd00::%x]:1", i)) {
			taken++
		}
	}
	equal(t, "reports of one /64", taken, reportsTotal/2)
	equal(t, "another network", from("[fd00:1::1]:1"), true)
}

// TestReportOverTheNetwork is what a node without a certificate sends, and the limits of connections
// are those of every other request.
func TestReportOverTheNetwork(t *testing.T) {
	d := newSite(t).serve(t)
	body := string(wire.Encode(reportOf("n7", wire.TPM12)))
	r, _ := d.raw(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: head\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", wire.PathReport, len(body), body))
	equal(t, "status", r.status, http.StatusOK)
	if view := d.why("n7"); view.Report == nil || view.Report.Addr != "127.0.0.1" {
		t.Errorf("%+v", view)
	}
	r, _ = d.raw(t, "GET "+wire.PathReport+" HTTP/1.1\r\nHost: head\r\n\r\n")
	refusedWith(t, r, wire.NotFound)
}

package signer

import (
	"errors"
	"net/http"
	"time"

	"muster/internal/wire"
)

// report is what a machine said of itself. Nothing in it is proven, not even the name.
type report struct {
	At    time.Time    `json:"at"`
	Addr  string       `json:"addr"`
	Code  wire.Trouble `json:"code"`
	Count int          `json:"count"` // of the same code, in a row
}

// serveReport takes a machine's word for what keeps it from its certificate, into memory and nowhere
// else. The answer is the same whatever is known of the name.
func (h *Head) serveReport(w http.ResponseWriter, r *http.Request) {
	addr := address(r)
	said, no := h.report(r, h.now())
	if no != nil {
		h.refused(w, r.Context(), &peer{addr: addr}, no)
		return
	}
	h.log.Debug("reported", "node", said.Node, "addr", addr, "code", string(said.Code))
	if said.Node != "" {
		h.seen.report(said.Node, h.isKnown(r.Context(), said.Node), report{At: h.now(), Addr: addr, Code: said.Code})
	}
	writeJSON(w, http.StatusOK, &wire.Reported{})
}

func (h *Head) report(r *http.Request, now time.Time) (*wire.Report, *refusal) {
	if !h.reports.allow(r.RemoteAddr, now) {
		return nil, refuse(wire.Busy, whyOverload, "too many reports")
	}
	body, no := readBody(r)
	if no != nil {
		return nil, no
	}
	said, err := parseReport(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "%v", err)
	}
	return said, nil
}

// parseReport checks the form of a report's body. Its errors may be told to anybody.
func parseReport(body []byte) (*wire.Report, error) {
	var said wire.Report
	if err := wire.Decode(body, &said); err != nil {
		return nil, err
	}
	if err := wire.CheckPeer(said.V, said.Node, said.Hints); err != nil {
		return nil, err
	}
	if !said.Code.Known() {
		return nil, errors.New("code: none of the protocol's")
	}
	return &said, nil
}

// A node sends one report for each run that fails, so that these are many.
const (
	reportWindow      = 10 * time.Second
	reportsPerAddress = 16 // in one window
	reportsTotal      = 4096
)

// reportLimit counts the reports of one window.
type reportLimit struct{ tally }

// allow counts a report from remote (HOST:PORT), unless there were too many. As with connections, an
// IPv6 /64 may be one host or a whole cluster: it may have half of all.
func (l *reportLimit) allow(remote string, now time.Time) bool {
	var all []quota
	for _, p := range remoteSources(remote) {
		most := reportsTotal / 2
		if p.IsSingleIP() {
			most = reportsPerAddress
		}
		all = append(all, quota{p, most})
	}
	return l.take(now, reportWindow, reportsTotal, all...)
}

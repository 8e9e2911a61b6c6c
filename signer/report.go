package signer

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
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

// reportLimit counts the reports of one window. It forgets them with the window, so that what it
// holds is bounded by what it let through.
type reportLimit struct {
	mu    sync.Mutex
	since time.Time
	total int
	from  map[netip.Prefix]int
}

// allow counts a report from remote (HOST:PORT), unless there were too many. As with connections, an
// IPv6 /64 may be one host or a whole cluster: it may have half of all.
func (l *reportLimit) allow(remote string, now time.Time) bool {
	var source []netip.Prefix
	if addr, err := netip.ParseAddrPort(remote); err == nil {
		source = sources(net.TCPAddrFromAddrPort(addr))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := now.Sub(l.since); age < 0 || age >= reportWindow {
		l.since, l.total, l.from = now, 0, map[netip.Prefix]int{}
	}
	if l.total >= reportsTotal {
		return false
	}
	for _, p := range source {
		most := reportsTotal / 2
		if p.IsSingleIP() {
			most = reportsPerAddress
		}
		if l.from[p] >= most {
			return false
		}
	}
	l.total++
	for _, p := range source {
		l.from[p]++
	}
	return true
}

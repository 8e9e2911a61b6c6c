package signer

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

// maxStrangers bounds what is remembered of names that have no record.
const maxStrangers = 1024

// sighting is the last thing that happened to a name. It is kept in memory only, so that a peer that
// has proved nothing costs no disk write.
type sighting struct {
	At     time.Time `json:"at"`
	Addr   string    `json:"addr"`
	Reason reason    `json:"reason"` // empty: all went well
	Detail string    `json:"detail,omitempty"`
	EK     string    `json:"ek,omitempty"`
	Proven bool      `json:"proven,omitempty"`
	Count  int       `json:"count"` // of the same reason, in a row
}

// trace is what is remembered of a name. A sighting and a report stand beside each other: the one
// does not push the other out.
type trace struct {
	last   *sighting // nil: it did not ask
	report *report   // nil: none, or the machine has asked since
}

// sightings remembers a trace of each name: for names of the record as many as there are, for others
// the newest maxStrangers. Strangers so never push out a node's.
type sightings struct {
	mu        sync.Mutex
	known     map[string]trace
	strangers map[string]*list.Element // of stranger
	order     *list.List               // oldest first
}

type stranger struct {
	name string
	trace
}

func newSightings() *sightings {
	return &sightings{known: map[string]trace{}, strangers: map[string]*list.Element{}, order: list.New()}
}

// maxDetail bounds the detail of a sighting, in bytes: strangers write parts of it, and it is kept for each name.
const maxDetail = 300

// note remembers a request. known says that name has a record. A request ends what was reported
// before it: one that proves itself, or one from where the report came.
func (s *sightings) note(name string, known bool, one sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.trace(name)
	if was.last != nil && was.last.Reason == one.Reason {
		one.Count = was.last.Count
	}
	one.Count++
	if len(one.Detail) > maxDetail {
		// A copy: a part alone would keep all of it in memory.
		one.Detail = strings.Clone(strings.ToValidUTF8(one.Detail[:maxDetail], "")) + "…"
	}
	was.last = &one
	if was.report != nil && (one.Proven || one.Addr == was.report.Addr) {
		was.report = nil
	}
	s.keep(name, known, was)
}

// report remembers a report, and leaves the sighting.
func (s *sightings) report(name string, known bool, one report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.trace(name)
	if was.report != nil && was.report.Code == one.Code {
		one.Count = was.report.Count
	}
	one.Count++
	was.report = &one
	s.keep(name, known, was)
}

func (s *sightings) keep(name string, known bool, t trace) {
	if known {
		s.known[name] = t
		return
	}
	if e, ok := s.strangers[name]; ok {
		e.Value = stranger{name, t}
		s.order.MoveToBack(e)
		return
	}
	s.strangers[name] = s.order.PushBack(stranger{name, t})
	if s.order.Len() > maxStrangers {
		oldest := s.order.Remove(s.order.Front()).(stranger)
		delete(s.strangers, oldest.name)
	}
}

// forget drops what is remembered of a name that has no record any more.
func (s *sightings) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, name)
}

// of is the trace of a name; nothing in it is changed later.
func (s *sightings) of(name string) trace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trace(name)
}

func (s *sightings) trace(name string) trace {
	if t, ok := s.known[name]; ok {
		return t
	}
	if e, ok := s.strangers[name]; ok {
		return e.Value.(stranger).trace
	}
	return trace{}
}

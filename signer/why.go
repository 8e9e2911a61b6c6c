package signer

import (
	"container/list"
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

// sightings remembers the last sighting of each name: for names of the record as many as there are,
// for others the newest maxStrangers. Strangers so never push out a node's.
type sightings struct {
	mu        sync.Mutex
	known     map[string]sighting
	strangers map[string]*list.Element // of stranger
	order     *list.List               // oldest first
}

type stranger struct {
	name string
	sighting
}

func newSightings() *sightings {
	return &sightings{known: map[string]sighting{}, strangers: map[string]*list.Element{}, order: list.New()}
}

// note remembers one. known says that name has a record.
func (s *sightings) note(name string, known bool, one sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last(name); ok && last.Reason == one.Reason {
		one.Count = last.Count
	}
	one.Count++
	if known {
		s.known[name] = one
		return
	}
	if e, ok := s.strangers[name]; ok {
		e.Value = stranger{name, one}
		s.order.MoveToBack(e)
		return
	}
	s.strangers[name] = s.order.PushBack(stranger{name, one})
	if s.order.Len() > maxStrangers {
		oldest := s.order.Remove(s.order.Front()).(stranger)
		delete(s.strangers, oldest.name)
	}
}

func (s *sightings) of(name string) (sighting, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last(name)
}

func (s *sightings) last(name string) (sighting, bool) {
	if one, ok := s.known[name]; ok {
		return one, true
	}
	if e, ok := s.strangers[name]; ok {
		return e.Value.(stranger).sighting, true
	}
	return sighting{}, false
}

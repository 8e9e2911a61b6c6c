package bolt

import "sync/atomic"

// Stats counts since Open. Syncs and Bytes are those of bbolt's commits.
type Stats struct {
	Commits uint64 // applied
	Groups  uint64 // transactions of bbolt
	Syncs   uint64 // fdatasync: two for a group, first the pages, then the meta page that leads to them
	Bytes   uint64 // written
}

type counters struct {
	commits, groups atomic.Uint64
}

// Stats returns the counts up to now.
func (s *Store) Stats() Stats {
	groups := s.commits.stats.groups.Load()
	db := s.db.Stats()
	return Stats{
		Commits: s.commits.stats.commits.Load(),
		Groups:  groups,
		Syncs:   2 * groups,
		Bytes:   uint64(db.TxStats.GetPageAlloc()) + groups*pageSize,
	}
}

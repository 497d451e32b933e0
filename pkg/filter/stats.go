package filter

import (
	"maps"
	"sync"
)

// Stats is how often rules were synced, by what came of it, and who keeps them now.
type Stats struct {
	Syncs   map[Result]uint64
	Keeper  string // empty: nobody yet, or an underlay lock, of which there is one keeper only
	Version string // of the keeper's tool; empty if that is not known
}

// Result is what came of a sync.
type Result string

// Results of a sync.
const (
	Unchanged Result = "unchanged" // all was as wanted
	Written   Result = "written"   // something else was wanted than before, or for the first time
	Repaired  Result = "repaired"  // somebody else had changed it
	Failed    Result = "failed"
)

// resultOf returns the result of a sync that has changed something, or nothing.
func resultOf(changes []string, repaired bool, err error) Result {
	switch {
	case err != nil:
		return Failed
	case len(changes) == 0:
		return Unchanged
	case repaired:
		return Repaired
	}
	return Written
}

// stats counts syncs.
type stats struct {
	mu sync.Mutex
	Stats
}

func (s *stats) count(r Result, by activeKeeper) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Syncs == nil {
		s.Syncs = map[Result]uint64{}
	}
	s.Syncs[r]++
	s.Keeper, s.Version = by.name, by.traits.Version
}

func (s *stats) get() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	copied := s.Stats
	copied.Syncs = maps.Clone(s.Syncs)
	return copied
}

// Stats returns what was counted so far. It may be called from any goroutine.
func (f *Filter) Stats() Stats { return f.stats.get() }

// Stats returns what was counted so far, without changes of the peers, which are written by
// themselves. It may be called from any goroutine.
func (l *Lock) Stats() Stats { return l.stats.get() }

package filter

import (
	"maps"
	"sync"

	"flanneld/pkg/firewall"
)

// Stats are the numbers of syncs by result, and the keeper in use.
type Stats struct {
	Syncs   map[Result]uint64
	Keeper  string // empty before the first sync, and for an underlay lock, which has only one keeper
	Version string // of the keeper's tool; empty if unknown
}

// Result is the result of a sync.
type Result string

// Results of a sync.
const (
	Unchanged Result = "unchanged" // nothing to do
	Written   Result = "written"   // changed, because the wanted rules are new
	Repaired  Result = "repaired"  // changed, because another program had changed the rules
	Failed    Result = "failed"
)

// stats counts syncs.
type stats struct {
	mu sync.Mutex
	Stats
}

// count counts a sync with a keeper.
func (s *stats) count(by firewall.Traits, changes []string, repaired bool, err error) {
	result := Written
	switch {
	case err != nil:
		result = Failed
	case len(changes) == 0:
		result = Unchanged
	case repaired:
		result = Repaired
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Syncs == nil {
		s.Syncs = map[Result]uint64{}
	}
	s.Syncs[result]++
	s.Keeper, s.Version = by.Name, by.Version
}

func (s *stats) get() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	copied := s.Stats
	copied.Syncs = maps.Clone(s.Syncs)
	return copied
}

// Stats returns the totals so far. It may be called from any goroutine.
func (f *Filter) Stats() Stats { return f.stats.get() }

// Stats returns the totals so far, without edits of peers. It may be called from any goroutine.
func (l *Lock) Stats() Stats { return l.stats.get() }

package reconcile

import (
	"maps"
	"sync"
	"time"

	"flanneld/pkg/dataplane"
)

// Stats is what a Loop has done since New, and what its latest passes have left.
type Stats struct {
	Passes   map[Outcome]uint64
	PassTime Timing
	Done     map[OpClass]uint64 // operations
	Failed   map[OpClass]uint64 // attempts of operations
	// Repairs are the operations that restored what somebody else had changed, and RepairTime is of
	// the passes with any, each from the first event that told of a change.
	Repairs    map[dataplane.Kind]uint64
	RepairTime Timing
	// Drift is how many objects were not as wanted at the end of the last pass that compared all.
	Drift   map[dataplane.Kind]int
	Skipped map[string]int // peers, by the kind of their fault
}

// Outcome is why there was a pass, and how it ended.
type Outcome struct {
	Trigger Trigger
	Result  Result
}

// Trigger is a reason for a pass.
type Trigger string

// Triggers of a pass. Of several, the first counts.
const (
	OnChange Trigger = "change" // something else is wanted than before
	OnEvent  Trigger = "event"  // somebody may have changed the kernel
	OnResync Trigger = "resync" // the last reading is too old
	OnRetry  Trigger = "retry"  // something failed, or was left for later
)

// Result is how a pass ended.
type Result string

// Results of a pass.
const (
	Unchanged  Result = "unchanged"  // there was nothing to do
	Changed    Result = "changed"    // all is as wanted now
	Incomplete Result = "incomplete" // something is not as wanted
	Unread     Result = "unread"     // the kernel could not be read
)

// Timing is how often something was done and how long that took in all.
type Timing struct {
	Count uint64
	Total time.Duration
}

func (t *Timing) add(d time.Duration) {
	t.Count++
	t.Total += d
}

// OpClass is a class of operations.
type OpClass struct {
	Verb dataplane.Verb
	Kind dataplane.Kind
}

// stats are counted by the goroutine that makes passes, once for each.
type stats struct {
	sync.Mutex
	Stats
}

func newStats() stats {
	return stats{Stats: Stats{
		Passes: map[Outcome]uint64{}, Done: map[OpClass]uint64{}, Failed: map[OpClass]uint64{}, Repairs: map[dataplane.Kind]uint64{},
	}}
}

// Stats returns what was counted so far. It may be called from any goroutine.
func (l *Loop) Stats() Stats {
	l.stats.Lock()
	defer l.stats.Unlock()
	s := l.stats.Stats
	s.Passes, s.Done, s.Failed = maps.Clone(s.Passes), maps.Clone(s.Done), maps.Clone(s.Failed)
	s.Repairs, s.Drift, s.Skipped = maps.Clone(s.Repairs), maps.Clone(s.Drift), maps.Clone(s.Skipped)
	return s
}

// count counts a pass that has ended.
func (l *Loop) count(p *pass, r Result) {
	now := time.Now()
	var skipped map[string]int
	for _, peer := range l.plan.Skipped() {
		if skipped == nil {
			skipped = map[string]int{}
		}
		skipped[peer.Kind]++
	}
	s := &l.stats
	s.Lock()
	defer s.Unlock()
	s.Passes[Outcome{p.trigger(), r}]++
	s.PassTime.add(now.Sub(p.begun))
	for class, n := range p.applied.counts {
		s.Done[class] += uint64(n)
	}
	for class, n := range p.refused.counts {
		s.Failed[class] += uint64(n)
	}
	for class, n := range p.repaired.counts {
		s.Repairs[class.Kind] += uint64(n)
	}
	if p.repaired.n > 0 && p.eventAt > 0 {
		s.RepairTime.add(now.Sub(l.created) - p.eventAt)
	}
	if s.Skipped = skipped; !p.partial && r != Unread {
		s.Drift = p.drift
	}
}

func (p *pass) trigger() Trigger {
	switch {
	case p.changed:
		return OnChange
	case p.eventAt > 0:
		return OnEvent
	case p.readingOld:
		return OnResync
	}
	return OnRetry
}

// result is how a pass ended that could read the kernel.
func (p *pass) result() Result {
	switch {
	case p.baseMissing || len(p.drift) > 0:
		return Incomplete
	case p.applied.n > 0:
		return Changed
	}
	return Unchanged
}

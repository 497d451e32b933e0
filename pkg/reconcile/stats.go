package reconcile

import (
	"maps"
	"sync"
	"time"

	"flanneld/pkg/dataplane"
)

// Stats are the totals of a Loop since New, and the state after its latest passes.
type Stats struct {
	Passes   map[Outcome]uint64
	PassTime Timing
	Done     map[OpClass]uint64 // successful operations
	Failed   map[OpClass]uint64 // failed operations
	// Repairs are operations that restored objects which another program had changed. RepairTime is
	// the duration of passes with repairs, from the first event about a change.
	Repairs    map[dataplane.Kind]uint64
	RepairTime Timing
	// Propagation is the time from the registry's event about a peer to the end of the pass that has
	// programmed it. Events that one pass has handled count once, from the first of them.
	Propagation Timing
	// Drift is the number of objects that were not as wanted at the end of the last whole pass; nil
	// before the first.
	Drift   map[dataplane.Kind]int
	Skipped map[string]int // number of skipped peers, by reason
}

// Outcome is the trigger and the result of a pass.
type Outcome struct {
	Trigger Trigger
	Result  Result
}

// Trigger is the reason for a pass.
type Trigger string

// Triggers of a pass. If several apply, the first one counts.
const (
	OnChange Trigger = "change" // the wanted state has changed
	OnEvent  Trigger = "event"  // another program may have changed the kernel
	OnResync Trigger = "resync" // the last reading is too old
	OnRetry  Trigger = "retry"  // operations have failed or were deferred
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

// Timing is a number of events and their total duration.
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

// stats are updated at the end of each pass.
type stats struct {
	sync.Mutex
	Stats
}

func newStats() stats {
	return stats{Stats: Stats{
		Passes: map[Outcome]uint64{}, Done: map[OpClass]uint64{}, Failed: map[OpClass]uint64{}, Repairs: map[dataplane.Kind]uint64{},
	}}
}

// Stats returns the totals so far. It may be called from any goroutine.
func (l *Loop) Stats() Stats {
	l.stats.Lock()
	defer l.stats.Unlock()
	s := l.stats.Stats
	s.Passes, s.Done, s.Failed = maps.Clone(s.Passes), maps.Clone(s.Done), maps.Clone(s.Failed)
	s.Repairs, s.Drift, s.Skipped = maps.Clone(s.Repairs), maps.Clone(s.Drift), maps.Clone(s.Skipped)
	return s
}

// propagated counts the events that a completed pass has handled.
func (l *Loop) propagated() {
	if l.received.IsZero() {
		return
	}
	l.stats.Lock()
	defer l.stats.Unlock()
	l.stats.Propagation.add(time.Since(l.received))
	l.received = time.Time{}
}

// count updates the totals after a pass.
func (l *Loop) count(p *pass, r Result) {
	now := time.Now()
	skipped := map[string]int{}
	for _, peer := range l.plan.Skipped() {
		skipped[peer.Kind]++
	}
	s := &l.stats
	s.Lock()
	defer s.Unlock()
	s.Passes[Outcome{p.trigger, r}]++
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

// result returns the result of a pass that could read the kernel.
func (p *pass) result() Result {
	switch {
	case p.baseMissing || len(p.drift) > 0:
		return Incomplete
	case p.applied.n > 0:
		return Changed
	}
	return Unchanged
}

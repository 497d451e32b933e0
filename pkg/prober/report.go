package prober

import (
	"strings"
	"time"

	"flanneld/pkg/condition"
)

// IDs of conditions.
const (
	unreachableCondition = "peers/unreachable"
	mtuCondition         = "peers/mtu"
	unprobedCondition    = "peers/unprobed"
)

const (
	// settle is the delay of a new condition, so that peers that fail together are one line.
	settle = 3 * time.Second
	// minUpdate is the minimum time between two changes of the number of peers in a condition.
	minUpdate = 30 * time.Second
	// maxExamples is the number of peers that a condition names.
	maxExamples = 3
)

// reporter keeps the conditions about peers.
type reporter struct {
	conditions *condition.List
	seen       int       // changes of states that were seen
	dirty      bool      // conditions may differ from the states
	dirtySince time.Time // since when
	reportedAt time.Time // time of the last report
	reported   bool      // the last report had a condition
}

// report updates the conditions, if it is due.
func (p *Prober) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, s, now := &p.reporter, p.schedule, time.Now()
	if p.blocked() {
		r.conditions.Set(condition.Condition{
			ID: unprobedCondition, Severity: condition.Notice, Text: "cannot probe peers, will retry", Ended: "peers are probed again",
			Fields: []any{"err", p.failed},
		})
	} else if p.failed == nil {
		r.conditions.End(unprobedCondition)
	}
	if s.changes != r.seen {
		r.seen = s.changes
		if !r.dirty {
			r.dirty, r.dirtySince = true, now
		}
	}
	if !r.dirty || now.Sub(r.dirtySince) < settle {
		return
	}
	ended := s.stats.Peers[Failing]+s.stats.Peers[MTU] == 0
	if r.reported && !ended && now.Sub(r.reportedAt) < minUpdate {
		return
	}
	r.dirty, r.reported, r.reportedAt = false, !ended, now
	r.set(s, Failing, condition.Condition{
		ID: unreachableCondition, Text: "peers do not answer probes", Ended: "peers answer probes again",
	})
	r.set(s, MTU, condition.Condition{
		ID: mtuCondition, Text: "full-size packets to peers are lost", Ended: "full-size packets to peers are no longer lost",
	})
}

// set begins, updates or ends the condition that peers are in a state.
func (r *reporter) set(s *schedule, state State, c condition.Condition) {
	n := s.stats.Peers[state]
	if n == 0 {
		r.conditions.End(c.ID)
		return
	}
	var examples []string
	for i := range s.peers {
		if p := &s.peers[i]; p.state() == state {
			if examples = append(examples, p.key.subnet().String()); len(examples) == min(n, maxExamples) {
				break
			}
		}
	}
	c.Fields = append(c.Fields, "count", n, "examples", strings.Join(examples, ", "))
	if state == MTU {
		c.Fields = append(c.Fields, "mtu", s.mtu)
	}
	r.conditions.Set(c)
}

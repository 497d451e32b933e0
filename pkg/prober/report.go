package prober

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/condition"
)

// IDs of conditions.
const (
	unreachableCondition = "peers/unreachable"
	mtuCondition         = "peers/mtu"
	lossyCondition       = "peers/lossy"
	unprobedCondition    = "peers/unprobed"
)

const (
	// settle is the delay of a new condition, so that peers that fail together are one line.
	settle = 3 * time.Second
	// minUpdate is the minimum time between two changes of the number of peers in a condition.
	minUpdate = 30 * time.Second
	// maxExamples is the number of peers that a condition names.
	maxExamples = 3
	// lossStep is the change of a loss, as a share, from which on its figure is reported again.
	lossStep = 0.3
)

// reporter keeps the conditions about peers.
type reporter struct {
	conditions *condition.List
	seen       int       // changes of states that were seen
	dirty      bool      // conditions may differ from the states
	dirtySince time.Time // since when
	reportedAt time.Time // time of the last report
	reported   bool      // the last report had a condition
	losses     []loss    // that it named
}

// loss is the share of lost packets that was reported for a peer.
type loss struct {
	key   key
	share float64
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
	if s.changes != r.seen || r.lossesChanged(s) {
		r.seen = s.changes
		if !r.dirty {
			r.dirty, r.dirtySince = true, now
		}
	}
	if !r.dirty || now.Sub(r.dirtySince) < settle {
		return
	}
	ended := s.stats.Peers[Failing]+s.stats.Peers[MTU]+s.stats.Peers[Lossy] == 0
	if r.reported && !ended && now.Sub(r.reportedAt) < minUpdate {
		return
	}
	r.dirty, r.reported, r.reportedAt, r.losses = false, !ended, now, nil
	r.set(s, Failing, condition.Condition{
		ID: unreachableCondition, Text: "peers do not answer probes", Ended: "peers answer probes again",
	})
	r.set(s, MTU, condition.Condition{
		ID: mtuCondition, Text: "full-size packets to peers are lost", Ended: "full-size packets to peers are no longer lost",
	})
	r.set(s, Lossy, condition.Condition{
		ID: lossyCondition, Text: "some packets to peers are lost", Ended: "packets to peers are no longer lost",
	})
}

// lossesChanged reports whether the figures of the last report are outdated.
func (r *reporter) lossesChanged(s *schedule) bool {
	return slices.ContainsFunc(r.losses, func(l loss) bool {
		p := s.find(l.key)
		return p != nil && p.state() == Lossy && math.Abs(p.loss()-l.share) >= lossStep
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
		p := &s.peers[i]
		if p.state() != state {
			continue
		}
		example := p.key.subnet().String()
		if state == Lossy {
			r.losses = append(r.losses, loss{p.key, p.loss()})
			example += fmt.Sprintf(" (%.0f %%)", 100*p.loss())
		}
		if examples = append(examples, example); len(examples) == min(n, maxExamples) {
			break
		}
	}
	c.Fields = append(c.Fields, "count", n, "examples", strings.Join(examples, ", "))
	if state == MTU {
		c.Fields = append(c.Fields, "mtu", s.mtu)
	}
	r.conditions.Set(c)
}

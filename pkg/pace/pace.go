// Package pace limits how often a loop turns that is driven from outside: the first turn after a
// quiet time is immediate, the following ones are delayed more and more.
//
// It does not wait itself. Invariant: however often it is asked, there are at most a few turns
// in a row, and then one in each Most.
package pace

import "time"

// Pace spaces the turns of a loop. It is for one goroutine at a time.
type Pace struct {
	// First is the least time between the first turn after a quiet time and the second; it
	// doubles with each turn, up to Most. Twice Most without a turn is a quiet time.
	First, Most time.Duration

	last time.Time     // when the last turn began
	gap  time.Duration // from then to the next
}

// Turn notes that a turn begins now.
func (p *Pace) Turn(now time.Time) {
	if p.last.IsZero() || now.Sub(p.last) >= 2*p.Most {
		p.gap = p.First
	} else {
		p.gap = min(2*p.gap, p.Most)
	}
	p.last = now
}

// Delay returns how long to wait until the next turn may begin.
func (p *Pace) Delay(now time.Time) time.Duration {
	if p.last.IsZero() {
		return 0
	}
	return max(0, p.last.Add(p.gap).Sub(now))
}

// Next returns how long to wait until the next turn, which begins then.
func (p *Pace) Next(now time.Time) time.Duration {
	d := p.Delay(now)
	p.Turn(now.Add(d))
	return d
}

// Package pace limits how often something is done that others cause: what fails, what is
// changed by somebody else, what costs time.
//
// It does not wait itself, but for Sleep and Alarm, and never decides what is done. Its types are
// values for one goroutine at a time, and take the time from their caller.
package pace

import "time"

// Pace spaces the turns of a loop that is driven from outside: the first turn after a quiet time
// is immediate, the following ones are delayed more and more.
//
// Invariant: however often it is asked, there are at most a few turns in a row, and then one in
// each Most.
type Pace struct {
	// First is the least time between the first turn after a quiet time and the second; it
	// doubles with each turn, up to Most. Twice Most without a turn is a quiet time.
	Initial, Max time.Duration

	last time.Time     // when the last turn began
	gap  time.Duration // from then to the next
}

// Turn notes that a turn begins now.
func (p *Pace) Turn(now time.Time) {
	if p.last.IsZero() || now.Sub(p.last) >= 2*p.Max {
		p.gap = p.Initial
	} else {
		p.gap = min(2*p.gap, p.Max)
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

// Backoff spaces attempts that fail: First after the first failure, then twice as much with each
// one in a row, up to Most.
type Backoff struct {
	Initial, Max time.Duration

	delay time.Duration // after the last failure; 0: the last attempt succeeded
}

// Failed notes a failure and returns how long to wait before the next attempt.
func (b *Backoff) Failed() time.Duration {
	b.delay = min(max(2*b.delay, b.Initial), b.Max)
	return b.delay
}

// Reset notes a success.
func (b *Backoff) Reset() { b.delay = 0 }

// Share bounds what something costs that others cause, by rests: it takes at most one part in
// Share of the time. A rest is never less than Least, nor more than Most; a Most of 0 is no bound.
type Share struct {
	OneIn    int
	Min, Max time.Duration
}

// Rest returns how long to rest after something that took a time.
func (s Share) Rest(took time.Duration) time.Duration {
	rest := max(time.Duration(s.OneIn)*took, s.Min)
	if s.Max > 0 {
		rest = min(rest, s.Max)
	}
	return rest
}

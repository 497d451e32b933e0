// Package pace limits how often something is done that others can trigger: attempts that fail,
// reactions to changes by other programs, operations that cost time. It also has what loops wait with
// and are woken with.
//
// Except for Sleep and Alarm it does not wait, and it never decides what to do. Its types are for
// one goroutine at a time, and take the time from their caller.
package pace

import "time"

// Pace spaces the turns of a loop that is driven from outside: the first turn after a quiet time is
// immediate, the following ones are delayed more and more.
//
// Invariant: however often Next is called, there are at most a few turns in a row, and then one in
// each Max.
type Pace struct {
	// Initial is the minimum time between the first turn after a quiet time and the second; it
	// doubles with each turn, up to Max. Twice Max without a turn is a quiet time.
	Initial, Max time.Duration

	last time.Time     // begin of the last turn
	gap  time.Duration // from last to the next turn
}

// Turn records that a turn begins now.
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

// Backoff spaces failed attempts: Initial after the first failure, doubling with each one in a row,
// up to Max.
type Backoff struct {
	Initial, Max time.Duration

	delay time.Duration // after the last failure; 0 if the last attempt succeeded
}

// Failed records a failure and returns the delay before the next attempt.
func (b *Backoff) Failed() time.Duration {
	b.delay = min(max(2*b.delay, b.Initial), b.Max)
	return b.delay
}

// Reset records a success.
func (b *Backoff) Reset() { b.delay = 0 }

// Share limits the share of time of something that others can trigger, by pauses: it takes at most
// one part in OneIn of the time. A pause is at least Min and at most Max; a Max of 0 means no
// limit.
type Share struct {
	OneIn    int
	Min, Max time.Duration
}

// Rest returns the pause after something that took the given time.
func (s Share) Rest(took time.Duration) time.Duration {
	rest := max(time.Duration(s.OneIn)*took, s.Min)
	if s.Max > 0 {
		rest = min(rest, s.Max)
	}
	return rest
}

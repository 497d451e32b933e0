package reconcile

import "time"

// pace bounds what whole passes cost when somebody keeps changing the kernel: on
// an average a small share of the time, with enough at once for any accident.
type pace struct {
	spent time.Duration // lately; leaks away with time
	at    time.Time     // when that was reckoned
}

const (
	paceShare = 25              // one part in so many of the time
	paceBurst = 2 * time.Second // may be spent at once
)

func (p *pace) leak(now time.Time) {
	p.spent = max(0, p.spent-now.Sub(p.at)/paceShare)
	p.at = now
}

// spend notes what a pass took.
func (p *pace) spend(now time.Time, took time.Duration) {
	p.leak(now)
	p.spent += took
}

// next gives the time from which on another pass may begin, not before at.
func (p *pace) next(at time.Time) time.Time {
	p.leak(time.Now())
	if over := p.spent - paceBurst; over > 0 {
		at = at.Add(min(over*paceShare, resync))
	}
	return at
}

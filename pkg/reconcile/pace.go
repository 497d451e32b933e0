package reconcile

import "time"

// pace bounds what whole passes cost when somebody keeps changing the kernel: on
// an average a small share of the time, with enough at once for any accident.
type pace struct {
	spent time.Duration // lately; leaks away with time
	at    time.Time     // when that was reckoned
	over  bool          // it was too much, and there was no peace since
}

const (
	paceShare = 25              // one part in so many of the time
	paceBurst = 2 * time.Second // may be spent at once
)

func (p *pace) leak(now time.Time) {
	p.spent = max(0, p.spent-now.Sub(p.at)/paceShare)
	p.at = now
	if p.spent == 0 {
		p.over = false
	}
}

// spend notes what a part of a pass took that has just ended.
func (p *pace) spend(took time.Duration) {
	p.leak(time.Now())
	p.spent += took
	p.over = p.over || p.spent > paceBurst
}

// pause gives the time until another whole pass may begin.
func (p *pace) pause(now time.Time) time.Duration {
	p.leak(now)
	return min(max(0, p.spent-paceBurst)*paceShare, resync)
}

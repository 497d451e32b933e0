package reconcile

import (
	"time"

	"golang.org/x/sys/unix"
)

// pace bounds what whole passes cost when somebody keeps changing the kernel: on
// an average a small share of a processor, with enough at once for any accident.
type pace struct {
	clock func() time.Duration // processor time of this process so far
	begun time.Duration        // what it was when a part of a pass began
	spent time.Duration        // lately; leaks away with time
	at    time.Time            // when that was reckoned
	over  bool                 // it was too much, and there was no peace since
}

const (
	paceShare = 40              // one part in so many of a processor
	paceBurst = 2 * time.Second // may be spent at once
)

func (p *pace) leak(now time.Time) {
	p.spent = max(0, p.spent-now.Sub(p.at)/paceShare)
	p.at = now
	if p.spent == 0 {
		p.over = false
	}
}

// begin is called when a part of a pass begins whose cost counts.
func (p *pace) begin() { p.begun = p.clock() }

// spend notes what it took until now, and gives it.
func (p *pace) spend() time.Duration {
	p.leak(time.Now())
	took := p.clock() - p.begun
	p.spent += took
	p.over = p.over || p.spent > paceBurst
	return took
}

// processTime is a clock of this process: the time of day would count what others
// do on a busy machine, too.
func processTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // it cannot fail
	return time.Duration(t.Nano())
}

// pause gives the time until another whole pass may begin.
func (p *pace) pause(now time.Time) time.Duration {
	p.leak(now)
	return min(max(0, p.spent-paceBurst)*paceShare, resync)
}

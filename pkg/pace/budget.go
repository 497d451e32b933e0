package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// Budget bounds what something costs that others cause, on an average: one part in Share of a
// clock, with Burst at once for any accident. It never asks for more than Most of rest.
type Budget struct {
	Clock      func() time.Duration // what a cost is read from, such as ProcessTime
	OneIn      int
	Burst, Max time.Duration

	begun time.Duration // by the clock
	spent time.Duration // lately; leaks away with time
	at    time.Time     // when that was reckoned
	over  bool          // it was too much, and was not all forgotten since
}

// Begin says that something begins whose cost counts.
func (b *Budget) Begin() { b.begun = b.Clock() }

// Spend notes what it took since Begin, and returns that.
func (b *Budget) Spend(now time.Time) time.Duration {
	b.decay(now)
	took := b.Clock() - b.begun
	b.spent += took
	b.over = b.over || b.spent > b.Burst
	return took
}

// Rest returns the time until there is something to be spent again; it is 0 as long as there is.
func (b *Budget) Rest(now time.Time) time.Duration {
	b.decay(now)
	return min(max(0, b.spent-b.Burst)*time.Duration(b.OneIn), b.Max)
}

// Over reports whether too much was spent, and not all of that is forgotten.
func (b *Budget) Over() bool { return b.over }

func (b *Budget) decay(now time.Time) {
	b.spent = max(0, b.spent-now.Sub(b.at)/time.Duration(b.OneIn))
	b.at = now
	if b.spent == 0 {
		b.over = false
	}
}

// ProcessTime is the processor time of this process so far. The time of day would count what
// others do on a busy machine, too.
func ProcessTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // it cannot fail
	return time.Duration(t.Nano())
}

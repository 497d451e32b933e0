package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// Budget limits the average cost of something that others can trigger: one part in OneIn of a
// clock, with a burst that suffices for any single incident. It never requires more than Max of
// rest.
type Budget struct {
	Clock      func() time.Duration // clock of the cost, such as ProcessTime
	OneIn      int
	Burst, Max time.Duration

	begun time.Duration // clock at Begin
	spent time.Duration // recent cost, which decays with time
	at    time.Time     // time of the last update of spent
	over  bool          // spent has exceeded Burst and not decayed to 0 since
}

// Begin starts a measurement.
func (b *Budget) Begin() { b.begun = b.Clock() }

// Spend adds the cost since Begin, and returns it.
func (b *Budget) Spend(now time.Time) time.Duration {
	b.decay(now)
	took := b.Clock() - b.begun
	b.spent += took
	b.over = b.over || b.spent > b.Burst
	return took
}

// Rest returns the time until the budget is available again, 0 if it is.
func (b *Budget) Rest(now time.Time) time.Duration {
	b.decay(now)
	return min(max(0, b.spent-b.Burst)*time.Duration(b.OneIn), b.Max)
}

// Over reports whether the budget was exceeded and has not recovered completely.
func (b *Budget) Over() bool { return b.over }

func (b *Budget) decay(now time.Time) {
	b.spent = max(0, b.spent-now.Sub(b.at)/time.Duration(b.OneIn))
	b.at = now
	if b.spent == 0 {
		b.over = false
	}
}

// ProcessTime returns the processor time of this process so far. Wall-clock time would include that
// of other processes on a busy machine.
func ProcessTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // cannot fail
	return time.Duration(t.Nano())
}

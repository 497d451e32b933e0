package pace

import "time"

// Limits say what a Fight is: Burst repairs in quick succession, and one each Leak for ever, are
// none, but an accident, a link that flaps, a test by hand.
type Limits struct {
	Burst       int
	Leak, Pause time.Duration
}

// Fight slows down repairs that somebody else undoes again and again. It begins with the first
// repair that is more than its limits allow; then there is one each Pause. It ends once so much
// time has passed that its repairs are forgotten, one each Pause. It is small, for there may be
// one for each of many objects.
type Fight struct {
	*Limits

	repairs float64   // not forgotten yet
	at      time.Time // when they were reckoned
	active  bool
}

// Repaired notes a repair and returns how long to wait before the next one: 0 unless there is a
// fight.
func (f *Fight) Repaired(now time.Time) time.Duration {
	f.decay(now)
	f.repairs++
	if f.repairs <= float64(f.Burst) {
		return 0
	}
	f.active = true
	return f.Pause
}

// On reports whether there is a fight.
func (f *Fight) On(now time.Time) bool {
	f.decay(now)
	return f.active
}

// Quiet reports whether all repairs are forgotten.
func (f *Fight) Quiet(now time.Time) bool {
	f.decay(now)
	return f.repairs == 0
}

func (f *Fight) decay(now time.Time) {
	each := f.Leak
	if f.active {
		each = f.Pause
	}
	f.repairs = max(0, f.repairs-float64(now.Sub(f.at))/float64(each))
	f.at = now
	if f.repairs == 0 {
		f.active = false
	}
}

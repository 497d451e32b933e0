package pace

import "time"

// Limits define a Fight: up to Burst repairs in quick succession, and one each Leak on average, are
// not a fight but an accident, a flapping link, or a manual test.
type Limits struct {
	Burst       int
	Leak, Pause time.Duration
}

// Fight slows down repairs that another program undoes again and again. It begins with the first
// repair that exceeds its limits; then there is one each Pause. It ends when all its repairs have
// decayed, at one each Pause. It is small, because there may be one for each of many objects.
type Fight struct {
	*Limits

	repairs float64   // recent repairs, which decay with time
	at      time.Time // time of the last update of repairs
	active  bool
}

// Repaired records a repair and returns the pause before the next one, 0 unless there is a fight.
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

// Quiet reports whether there were no recent repairs.
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

package reconcile

import (
	"math"
	"time"

	"flanneld/pkg/dataplane"
)

// holds remembers which objects are to be left alone for a while: those that
// failed, and those that somebody else keeps undoing.
type holds struct {
	objects map[string]*hold
	fights  int // how many of them are fought over
	swept   time.Time
}

type hold struct {
	until  time.Time
	fails  int       // in a row
	spent  float64   // operations lately; leaks away with time
	leaked time.Time // when spent was last reckoned
	fought bool      // somebody undoes it again and again
}

const (
	// Failures are tried again after 100 ms, doubling to 30 s.
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 30 * time.Second
	// An object may be repaired fightBurst times in quick succession, and once a
	// second for ever: a link that flaps and a test by hand stay below it. After
	// that it is repaired once every fightPause.
	fightBurst = 100
	fightLeak  = time.Second
	fightPause = 5 * time.Second

	// inputObject stands for reading what is wanted and what is there.
	inputObject = "input"
)

func newHolds() *holds { return &holds{objects: map[string]*hold{}} }

func (h *holds) at(object string) *hold {
	o, ok := h.objects[object]
	if !ok {
		o = &hold{}
		h.objects[object] = o
	}
	return o
}

// held tells whether the operation's object is to be left alone now.
func (h *holds) held(now time.Time, op dataplane.Op) bool {
	if len(h.objects) == 0 {
		return false // spares the name of the object
	}
	o, ok := h.objects[op.Object()]
	return ok && now.Before(o.until)
}

// failing tells whether the operation's object failed the last time.
func (h *holds) failing(op dataplane.Op) bool {
	o, ok := h.objects[op.Object()]
	return ok && o.fails > 0
}

// broke notes a failure, and tells whether it is the first in a row.
func (h *holds) broke(now time.Time, object string) (first bool) {
	o := h.at(object)
	delay := time.Duration(math.Min(float64(leastBackoff)*math.Pow(2, float64(o.fails)), float64(mostBackoff)))
	o.until = now.Add(delay)
	o.fails++
	return o.fails == 1
}

// retry makes all that failed due now.
func (h *holds) retry() {
	for _, o := range h.objects {
		if o.fails > 0 {
			o.until = time.Time{}
		}
	}
}

// clear forgets an object.
func (h *holds) clear(object string) {
	if o, ok := h.objects[object]; ok {
		h.peace(o)
		delete(h.objects, object)
	}
}

// did notes a success. A repair may be one too many, so that somebody else must be
// undoing it again and again: a fight, until there was peace.
func (h *holds) did(now time.Time, op dataplane.Op, repair bool) {
	h.sweep(now)
	if !repair {
		if len(h.objects) > 0 {
			h.clear(op.Object())
		}
		return
	}
	o := h.at(op.Object())
	o.fails = 0
	h.leak(now, o)
	o.spent++
	if o.spent <= fightBurst {
		return
	}
	o.until = now.Add(fightPause)
	if !o.fought {
		o.fought = true
		h.fights++
	}
}

func (h *holds) leak(now time.Time, o *hold) {
	each := fightLeak
	if o.fought {
		each = fightPause
	}
	o.spent = math.Max(0, o.spent-float64(now.Sub(o.leaked))/float64(each))
	o.leaked = now
	if o.spent == 0 {
		h.peace(o)
	}
}

func (h *holds) peace(o *hold) {
	if o.fought {
		o.fought = false
		h.fights--
	}
}

// sweep forgets, now and then, objects that are at peace, and failures of what
// is wanted no more.
func (h *holds) sweep(now time.Time) {
	if now.Sub(h.swept) < fightPause {
		return
	}
	h.swept = now
	for object, o := range h.objects {
		if h.leak(now, o); o.fails == 0 && o.spent == 0 || o.fails > 0 && now.Sub(o.until) > 2*resync {
			h.clear(object)
		}
	}
}

// left gives for how long an object is still to be left alone.
func (h *holds) left(now time.Time, object string) time.Duration {
	if o, ok := h.objects[object]; ok {
		return o.until.Sub(now)
	}
	return 0
}

// next gives the time until something that is held is due.
func (h *holds) next(now time.Time) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, o := range h.objects {
		if d := o.until.Sub(now); d > 0 && d < least {
			least = d
		}
	}
	return least
}

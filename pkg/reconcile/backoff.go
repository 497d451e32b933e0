package reconcile

import (
	"math"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/pace"
)

// backoffs remembers which objects are to be left alone for a while: those that
// failed, and those that somebody else keeps undoing.
type backoffs struct {
	objects   map[string]*backoff
	limits    *pace.Limits // of what is no fight over an object
	lastSweep time.Time
}

type backoff struct {
	until   time.Time
	failing *pace.Backoff // nil: it did not fail the last time
	fight   pace.Fight
}

// Failures are tried again after 100 ms, doubling to 30 s.
func newBackoff() *pace.Backoff {
	return &pace.Backoff{Initial: 100 * time.Millisecond, Max: 30 * time.Second}
}

// inputObject stands for reading what is wanted and what is there.
const inputObject = "input"

func newBackoffs() *backoffs {
	return &backoffs{
		objects: map[string]*backoff{},
		limits:  &pace.Limits{Burst: 100, Leak: time.Second, Pause: 5 * time.Second},
	}
}

func (h *backoffs) get(object string) *backoff {
	o, ok := h.objects[object]
	if !ok {
		o = &backoff{fight: pace.Fight{Limits: h.limits}}
		h.objects[object] = o
	}
	return o
}

// paused reports whether the operation's object is to be left alone now.
func (h *backoffs) paused(now time.Time, op dataplane.Op) bool {
	if len(h.objects) == 0 {
		return false // spares the name of the object
	}
	o, ok := h.objects[op.Object()]
	return ok && now.Before(o.until)
}

// failing reports whether the operation's object failed the last time.
func (h *backoffs) failing(op dataplane.Op) bool {
	o, ok := h.objects[op.Object()]
	return ok && o.failing != nil
}

// failed notes a failure, and reports whether it is the first in a row.
func (h *backoffs) failed(now time.Time, object string) (first bool) {
	o := h.get(object)
	if first = o.failing == nil; first {
		o.failing = newBackoff()
	}
	o.until = now.Add(o.failing.Failed())
	return first
}

// retry makes all that failed due now.
func (h *backoffs) retry() {
	for _, o := range h.objects {
		if o.failing != nil {
			o.until = time.Time{}
		}
	}
}

// reset forgets an object.
func (h *backoffs) reset(object string) { delete(h.objects, object) }

// succeeded notes a success. A repair may be one too many: then somebody else is
// undoing it again and again.
func (h *backoffs) succeeded(now time.Time, op dataplane.Op, repair bool) {
	h.sweep(now)
	if !repair {
		if len(h.objects) > 0 {
			h.reset(op.Object())
		}
		return
	}
	o := h.get(op.Object())
	o.failing = nil
	if pause := o.fight.Repaired(now); pause > 0 {
		o.until = now.Add(pause)
	}
}

// fighting reports whether somebody keeps undoing an object.
func (h *backoffs) fighting(now time.Time) bool {
	for _, o := range h.objects {
		if o.fight.On(now) {
			return true
		}
	}
	return false
}

// sweep forgets, now and then, objects that are not fought over, and failures of what is wanted
// no more.
func (h *backoffs) sweep(now time.Time) {
	if now.Sub(h.lastSweep) < h.limits.Pause {
		return
	}
	h.lastSweep = now
	for object, o := range h.objects {
		if o.failing == nil && o.fight.Quiet(now) || o.failing != nil && now.Sub(o.until) > 2*resync {
			h.reset(object)
		}
	}
}

// remaining returns for how long an object is still to be left alone.
func (h *backoffs) remaining(now time.Time, object string) time.Duration {
	if o, ok := h.objects[object]; ok {
		return o.until.Sub(now)
	}
	return 0
}

// next returns the time until something that is held is due.
func (h *backoffs) next(now time.Time) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, o := range h.objects {
		if d := o.until.Sub(now); d > 0 && d < least {
			least = d
		}
	}
	return least
}

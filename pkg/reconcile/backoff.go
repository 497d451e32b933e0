package reconcile

import (
	"maps"
	"math"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/pace"
)

// backoffs holds the objects that must not be changed for a while, because an operation on them has
// failed or because another program keeps undoing it.
type backoffs struct {
	objects   map[string]*backoff
	limits    *pace.Limits // how many repairs of an object are no fight
	lastSweep time.Time
}

type backoff struct {
	until   time.Time
	failing *pace.Backoff // nil if the last operation succeeded
	err     error         // of the last operation
	fight   pace.Fight
}

// inputObject is the object for failures to read the wanted or the present state.
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

// paused reports whether the operation's object must not be changed now.
func (h *backoffs) paused(now time.Time, op dataplane.Op) bool {
	return len(h.objects) > 0 && h.remaining(now, op.Object()) > 0 // the name is computed only if needed
}

// failure returns the error of the last operation on the object.
func (h *backoffs) failure(op dataplane.Op) error {
	if o, ok := h.objects[op.Object()]; ok {
		return o.err
	}
	return nil
}

// failed records a failure, and reports whether it is the first in a row.
func (h *backoffs) failed(now time.Time, object string, err error) (first bool) {
	o := h.get(object)
	if first = o.failing == nil; first {
		o.failing = &pace.Backoff{Initial: 100 * time.Millisecond, Max: 30 * time.Second}
	}
	o.until, o.err = now.Add(o.failing.Failed()), err
	return first
}

// retry makes all failed objects due now.
func (h *backoffs) retry() {
	for _, o := range h.objects {
		if o.failing != nil {
			o.until = time.Time{}
		}
	}
}

// reset removes an object.
func (h *backoffs) reset(object string) { delete(h.objects, object) }

// succeeded records a success. Too many repairs of an object mean that another program keeps
// undoing them.
func (h *backoffs) succeeded(now time.Time, op dataplane.Op, repair bool) {
	h.sweep(now)
	if !repair {
		if len(h.objects) > 0 {
			h.reset(op.Object())
		}
		return
	}
	o := h.get(op.Object())
	o.failing, o.err = nil, nil
	if pause := o.fight.Repaired(now); pause > 0 {
		o.until = now.Add(pause)
	}
}

// fighting reports whether another program keeps undoing changes of an object.
func (h *backoffs) fighting(now time.Time) bool {
	for _, o := range h.objects {
		if o.fight.On(now) {
			return true
		}
	}
	return false
}

// sweep occasionally removes objects without recent repairs, and failures of objects that are no
// longer wanted.
func (h *backoffs) sweep(now time.Time) {
	if now.Sub(h.lastSweep) < h.limits.Pause {
		return
	}
	h.lastSweep = now
	maps.DeleteFunc(h.objects, func(_ string, o *backoff) bool {
		return o.failing == nil && o.fight.Quiet(now) || o.failing != nil && now.Sub(o.until) > 2*resync
	})
}

// remaining returns the time until an object may be changed.
func (h *backoffs) remaining(now time.Time, object string) time.Duration {
	if o, ok := h.objects[object]; ok {
		return o.until.Sub(now)
	}
	return 0
}

// next returns the time until the first paused object is due.
func (h *backoffs) next(now time.Time) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, o := range h.objects {
		if d := o.until.Sub(now); d > 0 {
			least = min(least, d)
		}
	}
	return least
}

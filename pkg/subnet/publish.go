package subnet

import (
	"time"

	"flanneld/pkg/lease"
)

const (
	// gather is how long the first change waits for others of the same moment,
	// such as the rest of what etcd has to tell.
	gather = time.Millisecond
	// settle is the least time between two Views: in a storm of changes, each of
	// which costs a copy of the list of peers, they are gathered for so long.
	settle = 25 * time.Millisecond
)

// changed has a View emitted soon.
func (f *follower) changed() { f.publishAt(time.Now().Add(gather)) }

// publishAt has a View emitted at that time, or before if that was asked for; or
// later, if there was one just now.
func (f *follower) publishAt(at time.Time) {
	if next := f.emitted.Add(settle); at.Before(next) {
		at = next
	}
	if !f.settled && !at.Before(f.settles) {
		return
	}
	f.settled, f.settles = false, at
	f.settle.Reset(time.Until(at))
}

// publish emits what is known, unless it is what was emitted last.
func (f *follower) publish() {
	f.settle.Stop()
	f.settled = true
	v, changed := f.last.Edit(f.own, f.dirty, func(s lease.Subnets) *lease.Lease { return f.leases[s] })
	f.dirty = nil
	changed = changed || !f.last.Complete
	v.Complete = true
	f.last = v
	if changed {
		f.emitted = time.Now()
		f.emit(v)
	}
}

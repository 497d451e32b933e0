package subnet

import (
	"time"

	"flanneld/pkg/lease"
)

const (
	// publishDelay is how long the first change waits for others of the same moment,
	// such as the rest of what etcd has to tell.
	publishDelay = time.Millisecond
	// minPublishInterval is the least time between two Views: in a storm of changes, each of
	// which costs a copy of the list of peers, they are gathered for so long.
	minPublishInterval = 25 * time.Millisecond
)

// changed has a View emitted soon.
func (f *follower) changed() { f.publishAt(time.Now().Add(publishDelay)) }

// publishAt has a View emitted at that time, or before if that was asked for; or
// later, if there was one just now.
func (f *follower) publishAt(at time.Time) {
	if next := f.emitted.Add(minPublishInterval); at.Before(next) {
		at = next
	}
	if !f.published && !at.Before(f.publishDue) {
		return
	}
	f.published, f.publishDue = false, at
	f.publishTimer.Reset(time.Until(at))
}

// publish emits what is known, unless it is what was emitted last.
func (f *follower) publish() {
	f.publishTimer.Stop()
	f.published = true
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

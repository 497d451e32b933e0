package subnet

import (
	"time"

	"flanneld/pkg/lease"
)

const (
	// publishDelay is how long the first change waits for others that occur at the same time, such
	// as the rest of etcd's events.
	publishDelay = time.Millisecond
	// minPublishInterval is the minimum time between two Views. Each costs a copy of the list of
	// peers, so a burst of changes is combined.
	minPublishInterval = 25 * time.Millisecond
)

// changed schedules a View.
func (f *follower) changed() { f.publishAt(time.Now().Add(publishDelay)) }

// publishAt schedules a View for a time: earlier if one is already scheduled, later if one was just
// emitted.
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

// publish emits a View, unless nothing changed since the last one.
func (f *follower) publish() {
	f.publishTimer.Stop()
	f.published = true
	v, changed := f.last.Edit(f.own, f.dirty, func(s lease.Subnets) *lease.Lease { return f.leases[s] })
	f.dirty = nil
	changed = changed || !f.last.Complete
	v.Complete, v.Received = true, f.received
	f.received = time.Time{}
	f.last = v
	if changed {
		f.emitted = time.Now()
		f.emit(v)
	}
}

package subnet

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// This file maintains the known leases from listings and events. An event costs no more in a large
// network than in a small one.

const (
	// grace is how long a deleted lease is retained. A host that is alive recreates its lease in
	// less time, and one that leaves announces it before (Release).
	grace = time.Second
	// staleTime is how long peers are retained that a wiped registry does not have. It is longer
	// than any of them needs to notice.
	staleTime = 2 * time.Minute
)

// deletion is a deleted lease with the end of its grace period.
type deletion struct {
	subnets lease.Subnets
	until   time.Time
}

// load replaces all known leases by a listing.
func (f *follower) load(listing registry.Listing) {
	f.rolledBack = f.rolledBack || listing.Index < f.index
	f.nextStep.restored = f.nextStep.restored || f.rolledBack
	f.index = listing.Index
	leases := make(map[lease.Subnets]*lease.Lease, len(listing.Leases))
	for _, l := range listing.Leases {
		delete(f.graceEnds, l.Subnets)
		leases[l.Subnets] = f.intern(l)
	}
	clear(f.invalidKeys)
	f.invalid.Replace(nil)
	f.moreInvalid = listing.MoreInvalid
	for _, b := range listing.Invalid {
		if !f.addInvalid(b) {
			f.moreInvalid++
		}
		old, was := f.leases[b.Subnets]
		if _, is := leases[b.Subnets]; was && !is {
			leases[b.Subnets] = withStale(*old, false) // the last valid value is retained
		}
	}
	f.countUnnamed()
	f.retainStale(leases)
	f.dirty = slices.Grow(f.dirty, max(0, len(leases)-len(f.leases))) // at first all of them
	for subnets, l := range leases {
		if old := f.leases[subnets]; old == nil || !sameInView(old, l) {
			f.dirty = append(f.dirty, subnets)
		}
	}
	for subnets := range f.leases {
		if leases[subnets] == nil {
			f.dirty = append(f.dirty, subnets)
		}
	}
	f.leases = leases
	f.changed()
}

// intern returns a lease for storage. It shares the strings of the stored lease if the attributes
// are equal.
func (f *follower) intern(l lease.Lease) *lease.Lease {
	if old := f.leases[l.Subnets]; old != nil && old.Attrs == l.Attrs {
		l.Attrs = old.Attrs
	}
	return &l
}

// retainStale keeps peers that are missing in a listing: for a grace period, like those whose
// deletion is an event, because a host whose lease was deleted recreates it; and for longer if the
// registry was wiped or restored. This is the case if the listing has a lower index, or lacks our
// own lease or has an older revision of it. Then it has lost leases of other hosts too, which are
// still there and will recreate them as we do.
func (f *follower) retainStale(leases map[lease.Subnets]*lease.Lease) {
	ours, ok := leases[f.own.Subnets]
	forgot := f.rolledBack || f.maybeRolledBack || !ok || ours.Revision < f.own.Revision
	f.rolledBack, f.maybeRolledBack = false, false
	for subnets, l := range f.leases {
		_, listed := leases[subnets]
		_, deleted := f.graceEnds[subnets]
		switch {
		case listed || subnets == f.own.Subnets:
			delete(f.staleLeases, subnets)
		case deleted: // deleted before the listing
			leases[subnets] = l
		case forgot || f.staleLeases[subnets]:
			leases[subnets] = withStale(*l, true)
			f.staleLeases[subnets] = true
		case !l.Leaving:
			leases[subnets] = withStale(*l, true)
			f.startGrace(subnets)
		}
	}
	if forgot {
		f.staleTimer.Reset(staleTime)
	}
}

// expireStale removes the stale leases that were not recreated.
func (f *follower) expireStale() {
	for subnets := range f.staleLeases {
		f.remove(subnets)
	}
	clear(f.staleLeases)
	f.publishAt(time.Now())
}

// remove removes a lease.
func (f *follower) remove(subnets lease.Subnets) {
	delete(f.leases, subnets)
	delete(f.graceEnds, subnets)
	f.dirty = append(f.dirty, subnets)
}

// apply applies one event.
func (f *follower) apply(ev registry.Event) {
	subnets, revision := ev.Lease.Subnets, ev.Lease.Revision
	delete(f.staleLeases, subnets)
	switch {
	case ev.Invalid != nil && ev.Deleted:
		f.removeInvalid(ev.Invalid.Key)
		return
	case ev.Invalid != nil:
		if !f.addInvalid(*ev.Invalid) {
			f.moreInvalid = max(f.moreInvalid, 1) // this may be one of those already counted
			f.countUnnamed()
		}
		subnets, revision = ev.Invalid.Subnets, ev.Invalid.Revision
	case ev.Deleted:
		f.clearInvalid(subnets)
		f.applyDelete(subnets)
	default:
		f.clearInvalid(subnets)
		if f.applyLease(ev.Lease) && f.received.IsZero() {
			f.received = f.stats.Event
		}
	}
	if subnets != f.own.Subnets {
		return
	}
	f.nextStep.keyTouched = true
	if revision > f.own.Revision { // events only indicate that the key has to be read
		f.nextStep.keyRevision = max(f.nextStep.keyRevision, revision)
		f.stepSoon()
	}
}

// withStale returns a copy of a lease with Stale, or without it if the registry has it again.
func withStale(l lease.Lease, stale bool) *lease.Lease {
	l.Stale = stale
	return &l
}

// sameInView reports whether two leases of the same subnets are equivalent in a View.
func sameInView(a, b *lease.Lease) bool {
	return a.Attrs == b.Attrs && a.Created == b.Created && a.Stale == b.Stale
}

// applyLease stores a lease that was written. Renewals and changes of the own lease cause no new
// view, and neither does a recreated lease, unless others have the same claims. It reports whether
// the lease is that of a peer and has changed.
func (f *follower) applyLease(l lease.Lease) (peerChanged bool) {
	old := f.leases[l.Subnets]
	f.leases[l.Subnets] = f.intern(l)
	delete(f.graceEnds, l.Subnets)
	if old != nil && sameInView(old, &l) {
		return false
	}
	f.dirty = append(f.dirty, l.Subnets)
	if l.Subnets == f.own.Subnets {
		return false
	}
	f.changed()
	return true
}

// applyDelete applies the deletion of a lease. Our own is removed at once, and so is one that was
// being released, which is in no view anyway.
func (f *follower) applyDelete(subnets lease.Subnets) {
	l := f.leases[subnets]
	switch {
	case l == nil:
	case l.Leaving || subnets == f.own.Subnets:
		f.remove(subnets)
	default:
		f.leases[subnets] = withStale(*l, true)
		f.dirty = append(f.dirty, subnets)
		f.startGrace(subnets)
	}
}

// startGrace starts the grace period of a deleted lease.
func (f *follower) startGrace(subnets lease.Subnets) {
	until := time.Now().Add(grace)
	f.graceEnds[subnets] = until
	f.deletions = append(f.deletions, deletion{subnets, until})
	if len(f.deletions) == 1 {
		f.graceTimer.Reset(grace)
	}
}

// expireDeleted removes the deleted leases whose grace period has ended.
func (f *follower) expireDeleted() {
	now := time.Now()
	for len(f.deletions) > 0 && !f.deletions[0].until.After(now) {
		if first := f.deletions[0]; f.graceEnds[first.subnets].Equal(first.until) { // otherwise it was recreated
			f.remove(first.subnets)
			f.publishAt(now)
		}
		f.deletions = f.deletions[1:]
	}
	if len(f.deletions) > 0 {
		f.graceTimer.Reset(time.Until(f.deletions[0].until))
	}
}

// maxNamed is the maximum number of invalid entries that are stored and logged by key.
const maxNamed = 2 * registry.MaxInvalid

// addInvalid stores an invalid entry, which is logged by key. It returns false if there are too
// many.
func (f *follower) addInvalid(b registry.InvalidEntry) bool {
	if !f.invalidKeys[b.Key] && len(f.invalidKeys) >= maxNamed {
		return false
	}
	f.invalidKeys[b.Key] = true
	wrong := lease.FaultOf(b.Err)
	if wrong.Detail == strconv.Quote(lease.Clip(b.Key)) {
		wrong.Detail = "" // the log line has the key already
	}
	f.invalid.Set(b.Key, condition.Reason{Kind: wrong.Kind, Detail: wrong.Detail})
	return true
}

// countUnnamed updates the log entry for invalid entries that are not logged by key.
func (f *follower) countUnnamed() {
	const object = "others" // not a possible key, because those have digits
	if f.moreInvalid == 0 {
		f.invalid.End(object)
		return
	}
	f.invalid.Set(object, condition.Reason{Kind: "there are too many to name them all", Detail: fmt.Sprintf("at least %d more", f.moreInvalid)})
}

// clearInvalid removes the invalid entry with the key of subnets, if there is one.
func (f *follower) clearInvalid(subnets lease.Subnets) {
	if len(f.invalidKeys) > 0 {
		f.removeInvalid(lease.Key(subnets))
	}
}

func (f *follower) removeInvalid(key string) {
	delete(f.invalidKeys, key)
	f.invalid.End(key)
}

// logInvalid logs changes of the invalid entries and sets a timer for those that are deferred.
func (f *follower) logInvalid() {
	if again := f.invalid.Flush(time.Now()); again > 0 {
		f.invalidTimer.Reset(again)
	}
}

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

// What is known of the leases: taken from listings and events, which cost no more
// in a large network than in a small one.

const (
	// grace is how long a lease that was deleted stays in force: a host that is
	// there makes its own again in less, and one that leaves says so before (Release).
	grace = time.Second
	// staleTime is how long peers are believed in that a wiped registry does not
	// know: longer than any of them needs to notice.
	staleTime = 2 * time.Minute
)

// deletion is a lease that was deleted and how long it stays in force all the same.
type deletion struct {
	subnets lease.Subnets
	until   time.Time
}

// load takes a listing in place of everything known.
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
			leases[b.Subnets] = notStale(old) // what the key said last stays in force
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

// intern returns a lease to keep. One that says what it said before shares the text.
func (f *follower) intern(l lease.Lease) *lease.Lease {
	if old := f.leases[l.Subnets]; old != nil && old.Attrs == l.Attrs {
		l.Attrs = old.Attrs
	}
	return &l
}

// retainStale keeps peers that a listing should have. One without our own lease, or
// with it as it once was, is from a registry that was wiped or restored, and so
// is one of a lower index: it has forgotten others as well, who are there all the
// same and will make their leases again, as we do.
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
		case deleted: // was deleted before that
			leases[subnets] = l
		case forgot || f.staleLeases[subnets]:
			leases[subnets] = stale(l)
			f.staleLeases[subnets] = true
		}
	}
	if forgot {
		f.staleTimer.Reset(staleTime)
	}
}

// expireStale forgets who has not come back.
func (f *follower) expireStale() {
	for subnets := range f.staleLeases {
		f.remove(subnets)
	}
	clear(f.staleLeases)
	f.publishAt(time.Now())
}

// remove takes a lease out of what is known.
func (f *follower) remove(subnets lease.Subnets) {
	delete(f.leases, subnets)
	delete(f.graceEnds, subnets)
	f.dirty = append(f.dirty, subnets)
}

// apply takes one event.
func (f *follower) apply(ev registry.Event) {
	subnets, revision := ev.Lease.Subnets, ev.Lease.Revision
	delete(f.staleLeases, subnets)
	switch {
	case ev.Invalid != nil && ev.Deleted:
		f.removeInvalid(ev.Invalid.Key)
		return
	case ev.Invalid != nil:
		if !f.addInvalid(*ev.Invalid) {
			f.moreInvalid = max(f.moreInvalid, 1) // it may be one of them that was written again
			f.countUnnamed()
		}
		subnets, revision = ev.Invalid.Subnets, ev.Invalid.Revision
	case ev.Deleted:
		f.clearInvalid(subnets)
		f.applyDelete(subnets)
	default:
		f.clearInvalid(subnets)
		f.applyLease(ev.Lease)
	}
	if subnets != f.own.Subnets {
		return
	}
	f.nextStep.keyTouched = true
	if revision > f.own.Revision { // events only say where to look
		f.nextStep.keyRevision = max(f.nextStep.keyRevision, revision)
		f.stepSoon()
	}
}

// notStale returns a lease that the registry has again, whatever its key says now.
func notStale(l *lease.Lease) *lease.Lease {
	if !l.Stale {
		return l
	}
	again := *l
	again.Stale = false
	return &again
}

// stale returns a copy of a lease that the registry has no longer.
func stale(l *lease.Lease) *lease.Lease {
	s := *l
	s.Stale = true
	return &s
}

// sameInView reports whether it makes no difference to a View which of two leases of the
// same subnets it has.
func sameInView(a, b *lease.Lease) bool {
	return a.Attrs == b.Attrs && a.Created == b.Created && a.Stale == b.Stale
}

// applyLease takes a lease as it was written last. Neither a renewal nor our own is news to the
// data plane, nor is a lease that was made again, unless others claim the same.
func (f *follower) applyLease(l lease.Lease) {
	old := f.leases[l.Subnets]
	f.leases[l.Subnets] = f.intern(l)
	delete(f.graceEnds, l.Subnets)
	if old != nil && sameInView(old, &l) {
		return
	}
	f.dirty = append(f.dirty, l.Subnets)
	if l.Subnets != f.own.Subnets {
		f.changed()
	}
}

// applyDelete takes it that a lease is gone from the registry. Our own is not needed to
// be known, and who left is gone from the view before.
func (f *follower) applyDelete(subnets lease.Subnets) {
	l := f.leases[subnets]
	switch {
	case l == nil:
	case l.Leaving || subnets == f.own.Subnets:
		f.remove(subnets)
	default:
		f.leases[subnets] = stale(l)
		f.dirty = append(f.dirty, subnets)
		until := time.Now().Add(grace)
		f.graceEnds[subnets] = until
		f.deletions = append(f.deletions, deletion{subnets, until})
		if len(f.deletions) == 1 {
			f.graceTimer.Reset(grace)
		}
	}
}

// expireDeleted forgets the leases that were deleted, and not made again, in time.
func (f *follower) expireDeleted() {
	now := time.Now()
	for len(f.deletions) > 0 && !f.deletions[0].until.After(now) {
		if first := f.deletions[0]; f.graceEnds[first.subnets].Equal(first.until) { // else it came back
			f.remove(first.subnets)
			f.publishAt(now)
		}
		f.deletions = f.deletions[1:]
	}
	if len(f.deletions) > 0 {
		f.graceTimer.Reset(time.Until(f.deletions[0].until))
	}
}

// maxNamed bounds how many bad entries are kept and named.
const maxNamed = 2 * registry.MaxInvalid

// addInvalid keeps a bad entry, which is named in the log. It reports false if there are too
// many of them for that.
func (f *follower) addInvalid(b registry.InvalidEntry) bool {
	if !f.invalidKeys[b.Key] && len(f.invalidKeys) >= maxNamed {
		return false
	}
	f.invalidKeys[b.Key] = true
	wrong := lease.FaultOf(b.Err)
	if wrong.Detail == strconv.Quote(lease.Clip(b.Key)) {
		wrong.Detail = "" // the line has the key anyway
	}
	f.invalid.Set(b.Key, condition.Reason{Kind: wrong.Kind, Detail: wrong.Detail})
	return true
}

// countUnnamed says whether there are bad entries that are not named.
func (f *follower) countUnnamed() {
	const object = "others" // which no key is: the names of subnets have digits
	if f.moreInvalid == 0 {
		f.invalid.End(object)
		return
	}
	f.invalid.Set(object, condition.Reason{Kind: "there are too many to name them all", Detail: fmt.Sprintf("at least %d more", f.moreInvalid)})
}

// clearInvalid is for subnets whose key is no invalid entry any more, if it was one.
func (f *follower) clearInvalid(subnets lease.Subnets) {
	if len(f.invalidKeys) > 0 {
		f.removeInvalid(lease.Key(subnets))
	}
}

func (f *follower) removeInvalid(key string) {
	delete(f.invalidKeys, key)
	f.invalid.End(key)
}

// logInvalid logs which entries have become bad, or good again, and comes back for the rest.
func (f *follower) logInvalid() {
	if again := f.invalid.Flush(time.Now()); again > 0 {
		f.invalidTimer.Reset(again)
	}
}

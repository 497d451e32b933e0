package subnet

import (
	"fmt"
	"net/netip"
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
	subnet netip.Prefix
	until  time.Time
}

// load takes a listing in place of everything known.
func (f *follower) load(listing registry.Listing) {
	f.rolledBack = f.rolledBack || listing.Index < f.index
	f.news.restored = f.news.restored || f.rolledBack
	f.index = listing.Index
	leases := make(map[netip.Prefix]*lease.Lease, len(listing.Leases))
	for _, l := range listing.Leases {
		delete(f.graceEnds, l.Subnet)
		leases[l.Subnet] = f.refined(l)
	}
	f.bad = invalidEntries{}
	f.invalid.Replace(nil)
	f.bad.more = listing.More
	for _, b := range listing.Bad {
		if !f.addInvalid(b) {
			f.bad.more++
		}
		old, was := f.leases[b.Subnet]
		if _, is := leases[b.Subnet]; was && !is {
			leases[b.Subnet] = notStale(old) // what the key said last stays in force
		}
	}
	f.countUnnamed()
	f.retainStale(leases)
	for subnet, l := range leases {
		if old := f.leases[subnet]; old == nil || !sameInView(old, l) {
			f.dirty = append(f.dirty, subnet)
		}
	}
	for subnet := range f.leases {
		if leases[subnet] == nil {
			f.dirty = append(f.dirty, subnet)
		}
	}
	f.leases = leases
	f.changed()
}

// refined returns a lease to keep. One that says what it said before shares the text.
func (f *follower) refined(l lease.Lease) *lease.Lease {
	if old := f.leases[l.Subnet]; old != nil && old.Attrs == l.Attrs {
		l.Attrs = old.Attrs
	}
	return &l
}

// retainStale keeps peers that a listing should have. One without our own lease, or
// with it as it once was, is from a registry that was wiped or restored, and so
// is one of a lower index: it has forgotten others as well, who are there all the
// same and will make their leases again, as we do.
func (f *follower) retainStale(leases map[netip.Prefix]*lease.Lease) {
	ours, ok := leases[f.own.Subnet]
	forgot := f.rolledBack || f.doubtful || !ok || ours.Revision < f.own.Revision
	f.rolledBack, f.doubtful = false, false
	for subnet, l := range f.leases {
		_, listed := leases[subnet]
		_, deleted := f.graceEnds[subnet]
		switch {
		case listed || subnet == f.own.Subnet:
			delete(f.staleLeases, subnet)
		case deleted: // was deleted before that
			leases[subnet] = l
		case forgot || f.staleLeases[subnet]:
			leases[subnet] = stale(l)
			f.staleLeases[subnet] = true
		}
	}
	if forgot {
		f.staleTimer.Reset(staleTime)
	}
}

// expireStale forgets who has not come back.
func (f *follower) expireStale() {
	for subnet := range f.staleLeases {
		f.drop(subnet)
	}
	clear(f.staleLeases)
	f.publishAt(time.Now())
}

// drop takes a lease out of what is known.
func (f *follower) drop(subnet netip.Prefix) {
	delete(f.leases, subnet)
	delete(f.graceEnds, subnet)
	f.dirty = append(f.dirty, subnet)
}

// apply takes one event.
func (f *follower) apply(ev registry.Event) {
	subnet, revision := ev.Lease.Subnet, ev.Lease.Revision
	delete(f.staleLeases, subnet)
	switch {
	case ev.Bad != nil && ev.Deleted:
		f.bad.remove(*ev.Bad)
		f.invalid.End(ev.Bad.Key)
		return
	case ev.Bad != nil:
		if !f.addInvalid(*ev.Bad) {
			f.bad.more = max(f.bad.more, 1) // it may be one of them that was written again
			f.countUnnamed()
		}
		subnet, revision = ev.Bad.Subnet, ev.Bad.Revision
	case ev.Deleted:
		f.clearInvalid(subnet)
		f.deleted(subnet)
	default:
		f.clearInvalid(subnet)
		f.learn(ev.Lease)
	}
	if subnet != f.own.Subnet {
		return
	}
	f.news.touched = true
	if revision > f.own.Revision { // events only say where to look
		f.news.heard = max(f.news.heard, revision)
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

// sameInView reports whether it makes no difference to a View which of two leases of a
// subnet it has.
func sameInView(a, b *lease.Lease) bool {
	return a.Attrs == b.Attrs && a.Created == b.Created && a.Stale == b.Stale
}

// learn takes a lease as it was written last. Neither a renewal nor our own is news to the
// data plane, nor is a lease that was made again, unless others claim the same.
func (f *follower) learn(l lease.Lease) {
	old := f.leases[l.Subnet]
	f.leases[l.Subnet] = f.refined(l)
	delete(f.graceEnds, l.Subnet)
	if old != nil && sameInView(old, &l) {
		return
	}
	f.dirty = append(f.dirty, l.Subnet)
	if l.Subnet != f.own.Subnet {
		f.changed()
	}
}

// deleted takes it that a lease is gone from the registry. Our own is not needed to
// be known, and who left is gone from the view before.
func (f *follower) deleted(subnet netip.Prefix) {
	l := f.leases[subnet]
	switch {
	case l == nil:
	case l.Leaving || subnet == f.own.Subnet:
		f.drop(subnet)
	default:
		f.leases[subnet] = stale(l)
		f.dirty = append(f.dirty, subnet)
		until := time.Now().Add(grace)
		f.graceEnds[subnet] = until
		f.deletions = append(f.deletions, deletion{subnet, until})
		if len(f.deletions) == 1 {
			f.graceTimer.Reset(grace)
		}
	}
}

// expireDeleted forgets the leases that were deleted, and not made again, in time.
func (f *follower) expireDeleted() {
	now := time.Now()
	for len(f.deletions) > 0 && !f.deletions[0].until.After(now) {
		if first := f.deletions[0]; f.graceEnds[first.subnet].Equal(first.until) { // else it came back
			f.drop(first.subnet)
			f.publishAt(now)
		}
		f.deletions = f.deletions[1:]
	}
	if len(f.deletions) > 0 {
		f.graceTimer.Reset(time.Until(f.deletions[0].until))
	}
}

// mostNamed bounds how many bad entries are kept and named.
const mostNamed = 2 * registry.MaxBad

// addInvalid keeps a bad entry, which is named in the log. It reports false if there are too
// many of them for that.
func (f *follower) addInvalid(b registry.Bad) bool {
	if !f.bad.put(b) {
		return false
	}
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
	if f.bad.more == 0 {
		f.invalid.End(object)
		return
	}
	f.invalid.Set(object, condition.Reason{Kind: "there are too many to name them all", Detail: fmt.Sprintf("at least %d more", f.bad.more)})
}

// clearInvalid is for a subnet whose key is no invalid entry any more.
func (f *follower) clearInvalid(subnet netip.Prefix) {
	for key := range f.bad.errs[subnet] {
		f.invalid.End(key)
	}
	f.bad.clear(subnet)
}

// logInvalid logs which entries have become bad, or good again, and comes back for the rest.
func (f *follower) logInvalid() {
	if again := f.invalid.Flush(time.Now()); again > 0 {
		f.invalidTimer.Reset(again)
	}
}

// invalidEntries are the entries that are no leases: by subnet, which several keys may
// name and keys that are no subnet's have the zero one of, then by key.
type invalidEntries struct {
	errs  map[netip.Prefix]map[string]error
	count int
	more  int // at least, beside those in errs, as of the last listing
}

// put keeps an entry, unless there are too many. It reports whether it did.
func (e *invalidEntries) put(b registry.Bad) bool {
	keys := e.errs[b.Subnet]
	if _, known := keys[b.Key]; !known && e.count >= mostNamed {
		return false
	}
	if keys == nil {
		if e.errs == nil {
			e.errs = map[netip.Prefix]map[string]error{}
		}
		keys = map[string]error{}
		e.errs[b.Subnet] = keys
	}
	e.count -= len(keys)
	keys[b.Key] = b.Err
	e.count += len(keys)
	return true
}

// remove is for an entry that is gone.
func (e *invalidEntries) remove(b registry.Bad) {
	keys := e.errs[b.Subnet]
	e.count -= len(keys)
	delete(keys, b.Key)
	e.count += len(keys)
}

// clear is for a subnet whose key is no invalid entry any more.
func (e *invalidEntries) clear(subnet netip.Prefix) {
	e.count -= len(e.errs[subnet])
	delete(e.errs, subnet)
}

package kernel

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// fdbCache is what the FDB of our links holds as far as is known, from the last
// reading and from what was done since. The kernel does not say who changed an
// FDB entry; what is known tells one's own changes from those of others.
//
// A Watch drops an event that tells nothing new: that an entry is there which is
// known, or that one is gone of whose address none is known. That it never drops
// too much follows from three rules:
//
//   - The events of one entry arrive in order, so the last one says what is
//     there. It is dropped only if that is known already.
//   - Who changes what is known, by reading the kernel or by asking it for a
//     change, holds the lock from before the question until after the answer was
//     noted. So what happens meanwhile is compared with what is known afterwards: an
//     echo is recognized, and a change by others that a reading missed, or that
//     came after an operation, is not.
//   - What is known is what the reader of Snapshot and the caller of Apply know:
//     an operation that failed changes nothing. If it was done all the same, its
//     echo is reported.
//
// Links are told apart by index. One that nothing is known of, such as
// one made again under another index, has everything reported until it is read;
// one made again under the same index has its own event, after which it is read.
// To forget is safe at any time: it only makes more events pass.
type fdbCache struct {
	mu sync.Mutex
	// links hold one remote for each address. An address with several, or in an
	// entry that is not like ours, has an invalid one: its events are all reported.
	links map[int]map[dataplane.MAC]netip.Addr
}

// addRemote adds an entry to the reading of a link.
func addRemote(known map[dataplane.MAC]netip.Addr, n neighbor) {
	if _, several := known[n.mac]; several || !n.forwards() {
		n.dst = netip.Addr{}
	}
	known[n.mac] = n.dst
}

// set notes what was read of a link. The caller holds the lock.
func (f *fdbCache) set(index int, known map[dataplane.MAC]netip.Addr) {
	if f.links == nil {
		f.links = map[int]map[dataplane.MAC]netip.Addr{}
	}
	f.links[index] = known
}

// retain forgets all links but those given.
func (f *fdbCache) retain(indexes map[int]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for index := range f.links {
		if _, ok := indexes[index]; !ok {
			delete(f.links, index)
		}
	}
}

// update keeps up with an operation that was done. The caller holds the lock.
//
// To put an entry takes the place of the one remote that its address has
// (drivers/net/vxlan/vxlan_core.c, vxlan_fdb_replace); which of several, the
// kernel does not say.
func (f *fdbCache) update(verb dataplane.Verb, e dataplane.FDB, index int) {
	known := f.links[index]
	if known == nil {
		return
	}
	dst, ok := known[e.MAC]
	switch {
	case ok && !dst.IsValid():
	case verb != dataplane.Del:
		known[e.MAC] = e.Dst
	case dst == e.Dst:
		delete(known, e.MAC)
	}
}

// isNews reports whether an event about an FDB entry says something new.
func (f *fdbCache) isNews(kind uint16, n neighbor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, read := f.links[n.index]
	dst, ok := known[n.mac]
	switch {
	case !read:
		return true
	case kind == unix.RTM_DELNEIGH:
		return ok
	default:
		return !n.forwards() || !dst.IsValid() || dst != n.dst
	}
}

package kernel

import (
	"maps"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// fdbCache is the known content of our links' FDBs, from the last reading and the operations since.
// The kernel does not report who changed an FDB entry; the cache tells own changes from those of
// others.
//
// A Watch drops an event that contains no news: that a known entry exists, or that one is deleted
// whose address is unknown. Three rules ensure that it does not drop too much:
//
//   - The events of one entry arrive in order, so the last one reports its present state. It is
//     dropped only if that state is known already.
//   - A function that changes the cache, by reading the kernel or by requesting a change, holds
//     the lock from before the request until after the cache was updated. So events of that time
//     are compared with the updated cache: an echo is recognised, and a change by others that the
//     reading missed, or that came after the operation, is not.
//   - The cache contains what the caller of Snapshot and Apply knows: a failed operation does not
//     change it. If the kernel has made the change all the same, its echo is reported.
//
// Links are identified by index. For a link that is not in the cache, such as one that was created
// again with another index, all events are reported until it is read; one that was created again
// with the same index causes a link event, after which it is read. It is always safe to remove
// entries from the cache: more events are reported then.
type fdbCache struct {
	mu sync.Mutex
	// links holds the remote of each address. An address with several remotes, or with an entry of
	// another form than ours, has an invalid one: all its events are reported.
	links map[int]map[dataplane.MAC]netip.Addr
}

// addRemote adds an entry to the content of a link.
func addRemote(known map[dataplane.MAC]netip.Addr, n neighbor) {
	if _, several := known[n.mac]; several || !n.forwards() {
		n.dst = netip.Addr{}
	}
	known[n.mac] = n.dst
}

// retain removes all links but those given.
func (f *fdbCache) retain(indexes map[int]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.links, func(index int, _ map[dataplane.MAC]netip.Addr) bool { return indexes[index] == "" })
}

// update records a successful operation. The caller holds the lock.
//
// Put replaces the remote of its address if there is one (drivers/net/vxlan/vxlan_core.c,
// vxlan_fdb_replace). Of several remotes it replaces one that the kernel does not report.
func (f *fdbCache) update(op dataplane.Op, index int) {
	e, _ := dataplane.KindFDB.Of(op)
	known := f.links[index]
	dst, ok := known[e.MAC]
	switch {
	case known == nil || ok && !dst.IsValid():
	case op.Verb != dataplane.Del:
		known[e.MAC] = e.Dst
	case dst == e.Dst:
		delete(known, e.MAC)
	}
}

// isNews reports whether an event about an FDB entry differs from the cache.
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

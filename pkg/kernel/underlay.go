package kernel

import (
	"cmp"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
)

// underlay is made of the routes of a host's main table, one after the other, and keeps those
// that package host needs. A routing daemon may know a million networks by a few gateways. Of
// these the answers depend on little: which of a peer's addresses are on a link, and what
// the gateways are. So it keeps
//
//   - default routes, and halves of one,
//   - routes without a gateway, which make neighbours,
//   - routes that take something out of such a one,
//   - one route by each gateway,
//   - all routes to some addresses, of which more is asked.
//
// What it leaves out changes no answer of [host.OnLink]: the next wider route that it keeps
// has a gateway, too, or there is none. Routes into the overlay's network that have a
// gateway are the overlay's own, or of no use to reach a peer.
type underlay struct {
	network netip.Prefix // invalid: there is none
	targets []netip.Addr // of which more is asked, sorted

	kept      []routeEntry
	gateways  map[gateway]bool
	pending   []routeEntry // to destinations of one address, the last
	enclosing []enclosing  // what covers that, of what is kept, the widest first
}

type gateway struct {
	index int
	via   netip.Addr
}

// enclosing is a route by what it makes of the destinations that no longer one has.
type enclosing struct {
	dst        netip.Prefix
	neighbours bool
}

func newUnderlay(network netip.Prefix, targets []netip.Addr) *underlay {
	return &underlay{network: network, targets: targets, gateways: map[gateway]bool{}}
}

// add takes the next route. They come in the order of their addresses, as a trie has them
// (net/ipv4/fib_trie.c, fib_table_dump), whatever changes meanwhile.
func (u *underlay) add(e routeEntry) {
	inside := dataplane.Scope{Network: u.network}.Inside(e.key.Dst)
	if e.route.Blackhole || inside && !e.onLink() && !containsAny(e.key.Dst, u.targets) {
		return
	}
	if len(u.pending) > 0 && u.pending[0].key.Dst.Addr() != e.key.Dst.Addr() {
		u.flush()
	}
	u.pending = append(u.pending, e)
}

// onLink reports whether a route makes its destinations neighbours on one link.
func (e routeEntry) onLink() bool { return e.index != 0 && !e.route.Via.IsValid() }

// flush looks at the routes that begin at one address, the widest first, and of several to one
// destination the one that wins last: it is what covers those to come.
func (u *underlay) flush() {
	if len(u.pending) == 1 { // as nearly all
		if u.needed(&u.pending[0]) {
			u.kept = append(u.kept, u.pending[0])
		}
		u.pending = u.pending[:0]
		return
	}
	order := make([]int, len(u.pending))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := u.pending[a].key, u.pending[b].key
		return cmp.Or(cmp.Compare(x.Dst.Bits(), y.Dst.Bits()), cmp.Compare(y.Metric, x.Metric), cmp.Compare(b, a))
	})
	keep := make([]bool, len(u.pending))
	for _, i := range order {
		keep[i] = u.needed(&u.pending[i])
	}
	for i, e := range u.pending {
		if keep[i] {
			u.kept = append(u.kept, e)
		}
	}
	u.pending = u.pending[:0]
}

// needed decides on the next route, behind those that may cover it.
func (u *underlay) needed(e *routeEntry) bool {
	dst := e.key.Dst.Masked()
	n := len(u.enclosing)
	for ; n > 0 && !u.enclosing[n-1].dst.Contains(dst.Addr()); n-- {
		u.enclosing = u.enclosing[:n-1]
	}
	half, by := dst.Bits() <= 1, gateway{e.index, e.route.Via}
	keep := half || e.onLink() || n > 0 && u.enclosing[n-1].neighbours || !u.gateways[by] || containsAny(dst, u.targets)
	if keep {
		u.gateways[by] = true
		u.enclosing = append(u.enclosing, enclosing{dst, e.onLink() && !half})
	}
	return keep
}

// routes returns what was kept, in the order in which it came.
func (u *underlay) routes() []routeEntry {
	u.flush()
	return u.kept
}

// containsAny reports whether any of the addresses, which are sorted, lies in a prefix.
func containsAny(dst netip.Prefix, addrs []netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(addrs, dst.Masked().Addr(), netip.Addr.Compare)
	return i < len(addrs) && dst.Contains(addrs[i])
}

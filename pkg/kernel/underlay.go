package kernel

import (
	"cmp"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
)

// underlay selects the routes of the host's main table that package host needs. A routing daemon
// may add a million routes by a few gateways, but the results depend only on which peer addresses
// are on a link, and on the gateways. So it keeps
//
//   - default routes, and halves of one,
//   - routes without a gateway, whose destinations are on-link,
//   - routes that are more specific than such a route,
//   - one route by each gateway,
//   - all routes to the targets.
//
// Omitted routes do not change the result of [host.OnLink]: the next less specific route that is
// kept has a gateway, too, or there is none. Routes into the overlay's network with a gateway are
// the overlay's own, or irrelevant for reaching a peer.
type underlay struct {
	network netip.Prefix // invalid if there is none
	targets []netip.Addr // all routes to these are kept; sorted

	kept      []routeEntry
	gateways  map[gateway]bool
	pending   []routeEntry // not yet decided: routes with the last destination address
	enclosing []enclosing  // kept routes that contain that address, the least specific first
}

type gateway struct {
	index int
	via   netip.Addr
}

// enclosing is a kept route that determines the next hop of more specific destinations.
type enclosing struct {
	dst    netip.Prefix
	onLink bool
}

func newUnderlay(network netip.Prefix, targets []netip.Addr) *underlay {
	return &underlay{network: network, targets: targets, gateways: map[gateway]bool{}}
}

// add adds the next route. Routes are added in the order of their addresses, as the kernel's trie
// returns them (net/ipv4/fib_trie.c, fib_table_dump), even if it changes meanwhile.
func (u *underlay) add(e routeEntry) {
	inside := dataplane.Inside(u.network, e.key.Dst)
	if e.route.Blackhole || inside && !e.onLink() && !containsAny(e.key.Dst, u.targets) {
		return
	}
	if len(u.pending) > 0 && u.pending[0].key.Dst.Addr() != e.key.Dst.Addr() {
		u.flush()
	}
	u.pending = append(u.pending, e)
}

// onLink reports whether a route's destinations are on-link.
func (e routeEntry) onLink() bool { return e.index != 0 && !e.route.Via.IsValid() }

// flush decides on the pending routes, the least specific first. Of several routes to one
// destination, the effective one is last, because it encloses the following routes.
func (u *underlay) flush() {
	if len(u.pending) == 1 { // the common case
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

// needed reports whether to keep a route. It is called after the routes that may enclose it.
func (u *underlay) needed(e *routeEntry) bool {
	dst := e.key.Dst.Masked()
	n := len(u.enclosing)
	for ; n > 0 && !u.enclosing[n-1].dst.Contains(dst.Addr()); n-- {
		u.enclosing = u.enclosing[:n-1]
	}
	half, by := dst.Bits() <= 1, gateway{e.index, e.route.Via}
	keep := half || e.onLink() || n > 0 && u.enclosing[n-1].onLink || !u.gateways[by] || containsAny(dst, u.targets)
	if keep {
		u.gateways[by] = true
		u.enclosing = append(u.enclosing, enclosing{dst, e.onLink() && !half})
	}
	return keep
}

// routes returns the kept routes, in the order in which they were added.
func (u *underlay) routes() []routeEntry {
	u.flush()
	return u.kept
}

// containsAny reports whether a prefix contains any of the addresses, which are sorted.
func containsAny(dst netip.Prefix, addrs []netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(addrs, dst.Masked().Addr(), netip.Addr.Compare)
	return i < len(addrs) && dst.Contains(addrs[i])
}

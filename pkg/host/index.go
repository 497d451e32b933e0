package host

import (
	"cmp"
	"net/netip"
	"slices"
)

// index looks up the route to an address as [Lookup] does, but in logarithmic time: there may be
// thousands of routes, for example to containers, and thousands of peers.
type index struct {
	routes []Route // sorted by destination, wider ones first; one per destination
	parent []int   // index of the next wider route that contains it, or -1

	// needed has the gateways of an uplink and the networks on its link, sorted by address.
	needed []needed
}

type needed struct {
	dst netip.Prefix // a single address for a gateway
	Route
}

// newIndex returns an index of routes for an uplink.
func newIndex(routes []Route, uplink string) *index {
	x := &index{routes: slices.Clone(routes)}
	slices.SortStableFunc(x.routes, func(a, b Route) int { return cmp.Or(comparePrefix(a.Dst, b.Dst), cmp.Compare(a.Metric, b.Metric)) })
	x.routes = slices.CompactFunc(x.routes, func(a, b Route) bool { return a.Dst == b.Dst })
	x.parent = make([]int, len(x.routes))
	for i, r := range x.routes {
		at := i - 1
		for at >= 0 && !x.routes[at].Dst.Contains(r.Dst.Addr()) {
			at = x.parent[at]
		}
		x.parent[i] = at
	}
	for _, r := range routes {
		if r.Iface != uplink {
			continue
		}
		n := needed{r.Dst, r}
		if r.Gateway.IsValid() {
			n.dst = netip.PrefixFrom(r.Gateway, r.Gateway.BitLen())
		}
		x.needed = append(x.needed, n)
	}
	slices.SortStableFunc(x.needed, func(a, b needed) int { return comparePrefix(a.dst, b.dst) })
	return x
}

// index returns an index of the routes that this host uses to reach others: foreign routes and
// those of the facts.
func (s Surroundings) index(f Facts) *index {
	var routes []Route
	for _, p := range s.Paths {
		if p.Type == "" {
			routes = append(routes, p.Route)
		}
	}
	return newIndex(append(routes, f.Underlay...), f.Uplink)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// lookup returns the route to addr. Every route that contains addr and starts at or before the last
// such route contains that route too, or is identical to it.
func (x *index) lookup(addr netip.Addr) (Route, bool) {
	i, _ := slices.BinarySearchFunc(x.routes, addr, func(r Route, a netip.Addr) int {
		if r.Dst.Addr().Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	for i--; i >= 0; i = x.parent[i] {
		if x.routes[i].Dst.Contains(addr) {
			return x.routes[i], true
		}
	}
	return Route{}, false
}

// conflict returns a route of the uplink that a route to subnet would break: one whose gateway is
// in subnet, or whose network on the link is covered by it. A wider network is unaffected, because
// the kernel prefers the longest prefix.
func (x *index) conflict(subnet netip.Prefix) (Route, bool) {
	i, _ := slices.BinarySearchFunc(x.needed, subnet.Masked().Addr(), func(n needed, a netip.Addr) int { return n.dst.Addr().Compare(a) })
	for ; i < len(x.needed) && subnet.Contains(x.needed[i].dst.Addr()); i++ {
		if n := x.needed[i]; n.dst.Bits() >= subnet.Bits() {
			return n.Route, true
		}
	}
	return Route{}, false
}

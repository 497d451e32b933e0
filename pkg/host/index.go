package host

import (
	"cmp"
	"net/netip"
	"slices"
)

// index finds the route to an address among many, as [Lookup] does. There may be thousands of
// routes on links, as to containers, and thousands of peers to be looked up.
type index struct {
	routes []Route // by destination, the wider one first; of several the one that counts
	parent []int   // the next wider one that contains it; -1: there is none

	// What an uplink needs, by address: its gateways, and the networks on its link.
	needed []needed
}

type needed struct {
	dst netip.Prefix // a gateway's is a single address
	Route
}

// newIndex indexes routes for an uplink.
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

// index indexes the routes by which this host reaches others: those of others that are not a
// part of the facts, and those that are.
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

// lookup is Lookup. Whatever contains addr and begins at or before the last route that
// does so contains that, too, or is it.
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

// conflict finds what an uplink needs and a subnet would take away: a gateway in it, or a network
// on the link that it covers. The longest prefix wins in the kernel: a wider route than the
// subnet's forbids nothing by itself.
func (x *index) conflict(subnet netip.Prefix) (Route, bool) {
	i, _ := slices.BinarySearchFunc(x.needed, subnet.Masked().Addr(), func(n needed, a netip.Addr) int { return n.dst.Addr().Compare(a) })
	for ; i < len(x.needed) && subnet.Contains(x.needed[i].dst.Addr()); i++ {
		if n := x.needed[i]; n.dst.Bits() >= subnet.Bits() {
			return n.Route, true
		}
	}
	return Route{}, false
}

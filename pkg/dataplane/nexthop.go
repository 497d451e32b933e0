package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"flanneld/pkg/shell"
)

// Linux finds the gateway of a route by a linear search through all gateways of the link, so adding
// n routes on one link takes O(n²) time. There are two ways to avoid that.
//
// Nexthop objects (RTM_NEWNEXTHOP) are looked up by ID. They cost one more object per route. The
// route to 10.42.9.0/24 has the nexthop with the number of that address as its ID, 0x0a2a0900. IDs
// are unique, because subnets and networks do not overlap, and they are far from those that other
// programs use, which start at 1. However, when the link goes down, the kernel scans all routes of
// the host once for each nexthop (net/ipv4/nexthop.c, __remove_nexthop_fib) and blocks all changes
// of links meanwhile: 5,000 nexthops among 400,000 routes take 45 seconds.
//
// Routes with different scopes are in different hash buckets (net/ipv4/fib_semantics.c,
// fib_info_hashfn). The scope of a route with a gateway has no other effect, as long as it is wider
// than link scope.

const (
	// minRoutes is the number of routes from which on either way is used. Below it, adding them
	// takes ten milliseconds at most, and routes keep their usual form.
	minRoutes = 1000
	// maxNextHopRoutes is the maximum number of routes in the main table, including foreign ones,
	// with which nexthop objects are used.
	maxNextHopRoutes = 10_000
	// scopes is the number of scopes that routes are spread over, starting with 1. The next one,
	// 200, has a name (rtnetlink(7)).
	scopes = 199
)

// UseNextHops reports whether the routes of s should use nexthop objects in a kernel with the state
// have. For hysteresis, the limits change by a factor of two once they are used.
func (s State) UseNextHops(have State) bool {
	n := len(s.Routes)
	least, most := minRoutes, maxNextHopRoutes
	if len(have.NextHops) > 0 {
		least, most = minRoutes/2, 2*maxNextHopRoutes
	}
	return have.NextHops != nil && n >= least && n+have.Others <= most
}

// UseSpread reports whether the routes of s should be spread over different scopes, with the same
// hysteresis.
func (s State) UseSpread(have State) bool {
	n := len(s.Routes)
	if n < minRoutes/2 || n >= minRoutes {
		return n >= minRoutes
	}
	for _, r := range have.Routes {
		if r.Scope > 0 && r.Scope <= scopes {
			return true
		}
	}
	return false
}

// spread returns a route with the scope that follows from its destination. Consecutive subnets are
// distributed evenly.
func (r Route) spread(k RouteKey) Route {
	if r.Via.IsValid() && k.Dst.Addr().Is4() && k.Dst.Bits() > 0 {
		r.Scope = uint8(1 + NextHopID(k.Dst)>>(32-k.Dst.Bits())%scopes)
	}
	return r
}

// nextHop returns a route that uses a nexthop object, and that object. IPv6 routes are unchanged:
// the kernel does no search for their gateways.
func (r Route) nextHop(k RouteKey) (Route, NextHop, bool) {
	id := NextHopID(k.Dst)
	if !r.Via.IsValid() || id == 0 || k.Metric != 0 {
		return r, NextHop{}, false
	}
	r.NextHop = id
	return r, NextHop{Link: k.Link, Via: r.Via, OnLink: r.OnLink, Proto: ProtoFlannel}, true
}

// InRange reports whether a nexthop ID is the number of an address in one of the networks.
func (s Scope) InRange(id uint32) bool {
	addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, id)))
	return s.Inside(netip.PrefixFrom(addr, addr.BitLen()))
}

// NextHopID returns the nexthop ID of a route to dst, or 0 if it has none.
func NextHopID(dst netip.Prefix) uint32 {
	if !dst.Addr().Is4() {
		return 0
	}
	addr := dst.Addr().As4()
	return binary.BigEndian.Uint32(addr[:])
}

// diffNextHops compares the nexthop objects that the wanted routes need, if they use any, with the
// existing ones.
func diffNextHops(d *differ, kind *Descriptor[uint32, NextHop]) (put, del list) {
	d.taken, d.hops = d.takenSlots(), map[uint32]NextHop{}
	if d.scope.NextHops {
		d.neededHops()
	}
	return kind.missing(d, d.hops, nil), kind.surplus(d, d.hops)
}

// neededHops records the nexthops that the wanted routes need. If the ID is in use by another
// program, the route uses none.
func (d *differ) neededHops() {
	for k, r := range d.want.Routes {
		through, hop, ok := r.nextHop(k)
		if _, taken := d.taken[slot{k.Dst, k.Metric}]; !ok || taken || d.links[k.Link] == linkBlocked {
			continue
		}
		have, exists := d.have.NextHops[through.NextHop]
		if exists && d.links[have.Link] != linkRecreated && !d.scope.OwnsNextHop(through.NextHop, have) {
			continue
		}
		d.hops[through.NextHop] = hop
	}
}

func nextHopText(id uint32, h NextHop) string {
	s := fmt.Sprintf("id %d via %s dev %s", id, h.Via, shell.Word(h.Link))
	if h.OnLink {
		s += " onlink"
	}
	return s + " proto " + strconv.Itoa(h.Proto)
}

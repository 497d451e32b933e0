package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Linux finds a route's gateway among all those of its link by walking through
// them, so that to add n routes by one link takes time in n². There are two ways around.
//
// Nexthop objects (RTM_NEWNEXTHOP) are found by their id; they cost one object more a route.
// A route to 10.42.9.0/24 has the nexthop with the number of that address, 0x0a2a0900.
// Subnets do not overlap and so have ids of their own, as have networks; and the
// ids that other programs give, which begin at 1, are far away. But when their link goes
// down, the kernel looks through all routes of everybody for those of each nexthop
// (net/ipv4/nexthop.c, __remove_nexthop_fib), and nobody can do anything to any link meanwhile:
// 5,000 nexthops among 400,000 routes take it 45 seconds.
//
// Routes of different scopes are found apart (net/ipv4/fib_semantics.c, fib_info_hashfn). The
// scope of a route with a gateway has no other meaning, as long as it is wider than that of a link.

const (
	// minRoutes is how many routes it takes before either is worth it: with fewer
	// the routes look as people know them, and take some ten milliseconds at most.
	minRoutes = 1000
	// maxNextHopRoutes bounds the routes in the main table, others' among them, with which nexthops
	// are used.
	maxNextHopRoutes = 10_000
	// scopes is how many scopes routes are spread over, from 1 on: the next one, 200, has
	// a name (rtnetlink(7)).
	scopes = 199
)

// UseNextHops reports whether the routes of s should be made by way of nexthop
// objects in a kernel that holds have. Once they are, it takes half as many to go
// back, or twice as many.
func (s State) UseNextHops(have State) bool {
	n := len(s.Routes)
	least, most := minRoutes, maxNextHopRoutes
	if len(have.NextHops) > 0 {
		least, most = minRoutes/2, 2*maxNextHopRoutes
	}
	return have.NextHops != nil && n >= least && n+have.Others <= most
}

// UseSpread reports likewise whether they should be of different scopes.
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

// spread returns a route with the scope that its destination tells. Where n subnets follow one
// another, each scope has as many of them.
func (r Route) spread(k RouteKey) Route {
	if r.Via.IsValid() && k.Dst.Addr().Is4() && k.Dst.Bits() > 0 {
		r.Scope = uint8(1 + NextHopID(k.Dst)>>(32-k.Dst.Bits())%scopes)
	}
	return r
}

// nextHop returns a route by way of a nexthop object, and that object. IPv6
// routes stay as they are: the kernel does not look for their gateways.
func (r Route) nextHop(k RouteKey) (Route, NextHop, bool) {
	id := NextHopID(k.Dst)
	if !r.Via.IsValid() || id == 0 || k.Metric != 0 {
		return r, NextHop{}, false
	}
	r.NextHop = id
	return r, NextHop{Link: k.Link, Via: r.Via, OnLink: r.OnLink, Proto: ProtoFlannel}, true
}

// InRange reports whether a nexthop's id is one of the networks' addresses.
func (s Scope) InRange(id uint32) bool {
	addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, id)))
	return slices.ContainsFunc(s.Networks, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// NextHopID returns the id of the nexthop of a route to dst; 0: it has none.
func NextHopID(dst netip.Prefix) uint32 {
	if !dst.Addr().Is4() {
		return 0
	}
	addr := dst.Addr().As4()
	return binary.BigEndian.Uint32(addr[:])
}

// diffNextHops finds out which nexthop objects the wanted routes need, if they are to be by
// such, and compares these.
func diffNextHops(d *differ, kind *Descriptor[uint32, NextHop]) (list, list) {
	d.taken, d.hops = d.takenSlots(), map[uint32]NextHop{}
	if d.scope.NextHops {
		d.neededHops()
	}
	return kind.list(Put, kind.missing(d, d.hops, nil)), kind.list(Del, kind.surplus(d, d.hops))
}

// neededHops notes the nexthops that the wanted routes need. Where somebody else's has the id, the
// route does without.
func (d *differ) neededHops() {
	for k, r := range d.want.Routes {
		through, hop, ok := r.nextHop(k)
		if _, taken := d.taken[slot{k.Dst, k.Metric}]; !ok || taken || d.blocked[k.Link] {
			continue
		}
		have, exists := d.have.NextHops[through.NextHop]
		if exists && !d.recreated[have.Link] && !d.scope.OwnsNextHop(through.NextHop, have) {
			continue
		}
		d.hops[through.NextHop] = hop
	}
}

func nextHopText(id uint32, h NextHop) string {
	s := fmt.Sprintf("id %d via %s dev %s", id, h.Via, h.Link)
	if h.OnLink {
		s += " onlink"
	}
	return s + " proto " + strconv.Itoa(h.Proto)
}

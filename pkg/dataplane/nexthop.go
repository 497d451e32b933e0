package dataplane

import (
	"encoding/binary"
	"net/netip"
)

// Linux finds a route's gateway among all those of its link by walking through
// them, so that to add n routes by one link takes time in n². Nexthop objects
// (RTM_NEWNEXTHOP) are found by their id; they cost one object more a route.
//
// A route to 10.42.9.0/24 has the nexthop with the number of that address, 0x0a2a0900.
// Subnets do not overlap and so have ids of their own, as have networks; and the
// ids that other programs give, which begin at 1, are far away.

// nextHopsPay is how many routes it takes before nexthop objects are worth it: with fewer
// the routes look as people know them, and take some ten milliseconds at most.
const nextHopsPay = 1000

// NextHopsPay tells whether the routes of s should be made by way of nexthop
// objects in a kernel that holds have. Once they are, it takes half as many to go
// back.
func (s State) NextHopsPay(have State) bool {
	n := len(s.Routes)
	return have.NextHops != nil && (n >= nextHopsPay || n >= nextHopsPay/2 && len(have.NextHops) > 0)
}

// nextHop gives a route by way of a nexthop object, and that object. IPv6
// routes stay as they are: the kernel does not look for their gateways.
func (r Route) nextHop(k RouteKey) (Route, NextHop, bool) {
	if !r.Via.IsValid() || !k.Dst.Addr().Is4() || k.Metric != 0 {
		return r, NextHop{}, false
	}
	if r.NextHop = number(k.Dst.Addr()); r.NextHop == 0 {
		return r, NextHop{}, false
	}
	return r, NextHop{Link: k.Link, Via: r.Via, OnLink: r.OnLink, Proto: ProtoFlannel}, true
}

// InRange tells whether a nexthop's id is one of the network's addresses.
func (s Scope) InRange(id uint32) bool {
	return s.Network.IsValid() && s.Network.Addr().Is4() && s.Network.Contains(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, id))))
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

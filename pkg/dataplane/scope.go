package dataplane

import (
	"maps"
	"net/netip"
	"slices"
)

// Scope is what a reading of the kernel looks at and what may be changed:
// ownership, which every deletion needs.
type Scope struct {
	Networks []netip.Prefix // only routes and addresses inside one of them concern us
	Links    []string       // names of links that are ours, sorted
	Sysctls  []string       // paths to read, sorted
	// Carriers are links that are not ours and that something of ours depends on: the uplink, and
	// those that routes of ours leave by, sorted. When one goes down, or loses an address or its
	// carrier, the kernel takes routes away and tells of the cause only.
	Underlay []string
	// NextHops has routes made by way of nexthop objects, Spread has others made with different
	// scopes.
	NextHops, Spread bool
}

// ScopeOf returns the scope for wanting s in networks: the links it names are
// ours. carriers are links that it depends on besides those that its routes leave by.
func (s State) ScopeOf(networks []netip.Prefix, carriers ...string) Scope {
	others := map[string]bool{}
	for _, link := range carriers {
		others[link] = true
	}
	for k := range s.Routes {
		if _, ours := s.Links[k.Link]; !ours {
			others[k.Link] = true
		}
	}
	delete(others, "") // a blackhole is on none
	return Scope{
		Networks: networks,
		Links:    slices.Sorted(maps.Keys(s.Links)),
		Sysctls:  slices.Sorted(maps.Keys(s.Sysctls)),
		Underlay: slices.Sorted(maps.Keys(others)),
	}
}

// OwnsLink reports whether the named link is ours.
func (s Scope) OwnsLink(name string) bool { return slices.Contains(s.Links, name) }

// Inside reports whether p lies in one of the networks or is the whole of it.
func (s Scope) Inside(p netip.Prefix) bool {
	for _, network := range s.Networks {
		if Inside(network, p) {
			return true
		}
	}
	return false
}

// Inside reports whether p lies in a network or is the whole of it.
func Inside(network, p netip.Prefix) bool {
	return p.Bits() >= network.Bits() && network.Contains(p.Addr())
}

// OwnsAddr reports whether an address is ours: inside a network and on a link of ours. Others
// there, such as IPv6 link-local ones, belong to the kernel or to the operator.
func (s Scope) OwnsAddr(a Addr) bool { return s.OwnsLink(a.Link) && s.Inside(a.Prefix) }

// OwnsRoute reports whether a route is ours: inside a network, and by a link of ours or with our
// stamp.
func (s Scope) OwnsRoute(k RouteKey, r Route) bool {
	return s.Inside(k.Dst) && (k.Link != "" || r.Blackhole) && (s.OwnsLink(k.Link) || r.Proto == ProtoFlannel)
}

// OwnsNextHop reports whether a nexthop is ours: with our stamp, and an id out of the network's own
// numbers.
func (s Scope) OwnsNextHop(id uint32, h NextHop) bool {
	return s.InRange(id) && h.Proto == ProtoFlannel
}

package dataplane

import (
	"maps"
	"net/netip"
	"slices"
)

// Scope is what is read from the kernel and what may be changed there. Every deletion requires
// ownership by its rules.
type Scope struct {
	Networks []netip.Prefix // only routes and addresses inside one of them are considered
	Links    []string       // names of our links, sorted
	Sysctls  []string       // paths to read, sorted
	// Underlay has foreign links that our objects depend on, sorted: the uplink and the links that
	// our routes use. When one goes down or loses an address or its carrier, the kernel removes
	// routes and sends an event for the link only.
	Underlay []string
	// NextHops selects routes that use nexthop objects. Spread selects different scopes for other
	// routes.
	NextHops, Spread bool
}

// ScopeOf returns the scope of s as desired state in networks. The links of s are ours. underlay
// are further links that s depends on besides those that its routes use.
func (s State) ScopeOf(networks []netip.Prefix, underlay ...string) Scope {
	others := map[string]bool{}
	for _, link := range underlay {
		others[link] = true
	}
	for k := range s.Routes {
		if _, ours := s.Links[k.Link]; !ours {
			others[k.Link] = true
		}
	}
	delete(others, "") // blackhole routes have no link
	return Scope{
		Networks: networks,
		Links:    slices.Sorted(maps.Keys(s.Links)),
		Sysctls:  slices.Sorted(maps.Keys(s.Sysctls)),
		Underlay: slices.Sorted(maps.Keys(others)),
	}
}

// OwnsLink reports whether the named link is ours.
func (s Scope) OwnsLink(name string) bool { return slices.Contains(s.Links, name) }

// Inside reports whether p is equal to or inside one of the networks.
func (s Scope) Inside(p netip.Prefix) bool {
	return slices.ContainsFunc(s.Networks, func(network netip.Prefix) bool { return Inside(network, p) })
}

// Inside reports whether p is equal to or inside network.
func Inside(network, p netip.Prefix) bool {
	return p.Bits() >= network.Bits() && network.Contains(p.Addr())
}

// OwnsAddr reports whether an address is ours, that is, inside a network and on one of our links.
// Other addresses on the link, such as IPv6 link-local ones, belong to the kernel or the operator.
func (s Scope) OwnsAddr(a Addr) bool { return s.OwnsLink(a.Link) && s.Inside(a.Prefix) }

// OwnsRoute reports whether a route is ours, that is, inside a network and either on one of our
// links or marked with our protocol number.
func (s Scope) OwnsRoute(k RouteKey, r Route) bool {
	return s.Inside(k.Dst) && (k.Link != "" || r.Blackhole) && (s.OwnsLink(k.Link) || r.Proto == ProtoFlannel)
}

// OwnsNextHop reports whether a nexthop is ours, that is, marked with our protocol number and with
// an ID from the range of a network.
func (s Scope) OwnsNextHop(id uint32, h NextHop) bool {
	return s.InRange(id) && h.Proto == ProtoFlannel
}

package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Check refuses a network config whose own routes, whoever the peers are, would take what
// this host needs itself.
func Check(b Backend, h host.Facts) error {
	for _, k := range sharedRoutes(b.Base(h, lease.Lease{})) {
		if routeConflict(k.Dst, h) == "" {
			continue
		}
		for _, p := range h.Leased {
			if reason := routeConflict(p, h); reason != "" {
				return errors.New(reason)
			}
		}
	}
	return nil
}

// SafeBase returns what the kernel should hold for no peer alone.
func SafeBase(b Backend, network netip.Prefix, h host.Facts, v lease.View) dataplane.State {
	if s := b.Base(h, v.Own); len(sharedRoutes(s)) == 0 {
		return s
	}
	good, _, _, _ := peers(b, network, h, v)
	s, _, _ := safeBase(b, h, v.Own, good)
	return s
}

// safeBase is the backend's Base without what would take from this host what it needs
// itself; refused says why. What hosts need does not lie in the subnets that are leased, or
// should not. So where the route of the whole network would take some of it, in its place
// there are routes to what is leased: to the prefixes of shared, which is nil if there was no
// need to, and to the subnets beside them.
//
// The kernel would not object to any of these routes: it has a place for one of two equal
// routes only, and for a longer one always.
func safeBase(b Backend, h host.Facts, own lease.Lease, peers []Peer) (base dataplane.State, shared []netip.Prefix, refused []dataplane.Conflict) {
	base = b.Base(h, own)
	for _, k := range sharedRoutes(base) {
		if routeConflict(k.Dst, h) == "" && !divertsMore(k.Dst, h, peers) {
			continue
		}
		r := base.Routes[k]
		delete(base.Routes, k)
		routed := []netip.Prefix{k.Dst}
		if len(h.Leased) > 0 {
			shared = leasedCover(h)
			routed = addSingleSubnets(shared, own, peers)
		}
		for _, p := range routed {
			k.Dst = p
			if reason := routeConflict(p, h); reason != "" {
				refused = append(refused, dataplane.Conflict{Op: dataplane.KindRoute.Put(k, r), Reason: reason})
			} else {
				base.Routes[k] = r
			}
		}
	}
	for k, r := range base.Routes {
		// The last of all routes with its destination: it takes nothing from an equal one.
		if r.Blackhole && slices.ContainsFunc(h.Needs, func(n host.Need) bool { return k.Dst.Contains(n.Addr) && k.Dst.Bits() > n.Bits }) {
			delete(base.Routes, k)
		}
	}
	return base, shared, refused
}

// sharedRoutes lists the routes of a base that lead into a device of its own, which are for all
// peers.
func sharedRoutes(base dataplane.State) []dataplane.RouteKey {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(base.Routes)), func(k dataplane.RouteKey) bool {
		_, ours := base.Links[k.Link]
		return !ours
	})
	slices.SortFunc(keys, func(a, b dataplane.RouteKey) int { return lease.ComparePrefix(a.Dst, b.Dst) })
	return keys
}

// leasedCover returns the prefixes of what is leased, without those on a link of the underlay: they
// would take the addresses of others there. Subnets that somebody has there have a route each.
func leasedCover(h host.Facts) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(h.Leased), func(p netip.Prefix) bool {
		return slices.ContainsFunc(h.Underlay, func(r host.Route) bool {
			onLink := !r.Gateway.IsValid() && r.Iface != "" && r.Dst.Bits() > 1
			return onLink && inside([]netip.Prefix{r.Dst}, p)
		})
	})
}

// addSingleSubnets adds the subnets that there are beside shared prefixes, of a config before or on a
// link of the underlay. The own subnet is that of a bridge, whose route would be equal.
func addSingleSubnets(shared []netip.Prefix, own lease.Lease, peers []Peer) []netip.Prefix {
	all := slices.DeleteFunc(slices.Clone(shared), func(p netip.Prefix) bool { return inside([]netip.Prefix{own.Subnets.V4}, p) })
	for _, p := range peers {
		if !inside(shared, p.Subnets.V4) {
			all = append(all, p.Subnets.V4)
		}
	}
	slices.SortFunc(all, lease.ComparePrefix)
	return all
}

// inside reports whether a prefix lies in one of others.
func inside(others []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// routeConflict says what this host needs and a route of the overlay to dst would take: the link of
// the uplink, where that lies in dst with this host's address, or a single address.
func routeConflict(dst netip.Prefix, h host.Facts) string {
	if dst.Contains(h.Addr) {
		link, ok := h.Lookup(h.Addr)
		if ok && link.Iface == h.Uplink && !link.Gateway.IsValid() && link.Dst.Bits() > 0 && link.Dst.Bits() <= dst.Bits() {
			return fmt.Sprintf("the route %s takes the addresses of %s dev %s, which the hosts need: choose another Network, or a SubnetMin and SubnetMax that exclude them",
				dst, link.Dst, h.Uplink)
		}
	}
	for _, n := range h.Needs {
		if n.DivertedBy(dst) {
			return fmt.Sprintf("the route %s takes %s, %s, which the hosts need: choose a SubnetMin and SubnetMax that exclude it, or another Network", dst, n.Addr, n.What)
		}
	}
	return ""
}

// divertsMore reports whether a route to dst would take what routes to what is leased would not,
// and what nothing is refused for: the public IP of a peer, or a name server. Of the routes to
// peers only those of the underlay are known; where that makes a difference, there are some
// more routes than need be.
func divertsMore(dst netip.Prefix, h host.Facts, peers []Peer) bool {
	beside := func(a netip.Addr) bool {
		return len(h.Leased) > 0 && !inside(h.Leased, netip.PrefixFrom(a, a.BitLen()))
	}
	return slices.ContainsFunc(h.NameServers, func(n host.Need) bool { return n.DivertedBy(dst) && beside(n.Addr) }) ||
		slices.ContainsFunc(peers, func(p Peer) bool {
			if !dst.Contains(p.PublicIP) || !beside(p.PublicIP) {
				return false
			}
			r, ok := h.Lookup(p.PublicIP)
			return !ok || r.Dst.Bits() <= dst.Bits()
		})
}

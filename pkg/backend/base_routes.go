package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Check returns an error if the backend's shared routes would break what this host itself needs.
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

// SafeBase returns the desired state that belongs to no single peer.
func SafeBase(b Backend, network netip.Prefix, h host.Facts, v lease.View) dataplane.State {
	if s := b.Base(h, v.Own); len(sharedRoutes(s)) == 0 {
		return s
	}
	good, _, _, _ := peers(b, network, h, v)
	s, _, _ := safeBase(b, h, v.Own, good)
	return s
}

// safeBase returns the backend's Base without routes that would break what this host needs.
// unsafeRoutes has the routes left out with the reasons. Addresses that hosts need should not be in
// leased subnets. So if the route of the whole network would divert packets to such an address, it
// is replaced by routes to the leased prefixes (shared; nil if no replacement was necessary) and to
// single subnets outside them.
//
// The kernel accepts all these routes without an error: an equal route replaces another, and a
// longer one is always possible.
func safeBase(b Backend, h host.Facts, own lease.Lease, peers []Peer) (base dataplane.State, shared []netip.Prefix, unsafeRoutes []dataplane.Conflict) {
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
				unsafeRoutes = append(unsafeRoutes, dataplane.Conflict{Op: dataplane.KindRoute.Put(k, r), Reason: reason})
			} else {
				base.Routes[k] = r
			}
		}
	}
	for k, r := range base.Routes {
		// The blackhole has the lowest precedence of all routes with its destination, so equal
		// routes are unaffected.
		if r.Blackhole && slices.ContainsFunc(h.Needs, func(n host.Need) bool { return k.Dst.Contains(n.Addr) && k.Dst.Bits() > n.Bits }) {
			delete(base.Routes, k)
		}
	}
	return base, shared, unsafeRoutes
}

// sharedRoutes returns the routes of a base into the base's own devices. They are shared by all
// peers.
func sharedRoutes(base dataplane.State) []dataplane.RouteKey {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(base.Routes)), func(k dataplane.RouteKey) bool {
		_, ours := base.Links[k.Link]
		return !ours
	})
	sort.Slice(keys, func(i, j int) bool { return keys[i].Dst.Compare(keys[j].Dst) < 0 })
	return keys
}

// leasedCover returns the prefixes that cover all leases, without those on a link of the underlay,
// where they would divert packets for other hosts. Leased subnets there have a route each.
func leasedCover(h host.Facts) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(h.Leased), func(p netip.Prefix) bool {
		return slices.ContainsFunc(h.Underlay, func(r host.Route) bool {
			onLink := !r.Gateway.IsValid() && r.Iface != "" && r.Dst.Bits() > 1
			return onLink && inside([]netip.Prefix{r.Dst}, p)
		})
	})
}

// addSingleSubnets adds the subnets outside the shared prefixes: those of an earlier config and
// those on a link of the underlay. The own subnet is left out, because it would be equal to the
// route of the local bridge.
func addSingleSubnets(shared []netip.Prefix, own lease.Lease, peers []Peer) []netip.Prefix {
	all := slices.DeleteFunc(slices.Clone(shared), func(p netip.Prefix) bool { return inside([]netip.Prefix{own.Subnets.V4()}, p) })
	for _, p := range peers {
		if !inside(shared, p.Subnets.V4()) {
			all = append(all, p.Subnets.V4())
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// inside reports whether a prefix is equal to or inside one of others.
func inside(others []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// routeConflict returns a text if a route of the overlay to dst would divert packets that this host
// needs: those on the link of the uplink, if the link's network is in dst together with this host's
// address, or those to a single address. It returns "" if there is none.
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

// divertsMore reports whether a route to dst, in contrast to routes to the leased prefixes, would
// divert packets to an address that does not make it unsafe: the public IP of a peer or a name
// server. Only the underlay's routes to peers are known. If others exist, there are some more
// routes than necessary.
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

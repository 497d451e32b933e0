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
	_, _, refused := foundation(b, h, lease.Lease{}, nil)
	if len(refused) > 0 {
		return errors.New(refused[0].Reason)
	}
	return nil
}

// Foundation returns what the kernel should hold for no peer alone.
func Foundation(b Backend, network netip.Prefix, h host.Facts, v lease.View) dataplane.State {
	if s := b.Base(h, v.Own); len(wide(s)) == 0 {
		return s
	}
	good, _, _, _ := peers(b, network, h, v)
	s, _, _ := foundation(b, h, v.Own, good)
	return s
}

// foundation is the backend's Base without what would take from this host what it needs
// itself; refused says why. What hosts need does not lie in the subnets that are leased, or
// should not. So where the route of the whole network would take some of it, in its place
// there are routes to what is leased: the prefixes of narrowed, nil if there was no need to.
//
// The kernel would not object to any of these routes: it has a place for one of two equal
// routes only, and for a longer one always.
func foundation(b Backend, h host.Facts, own lease.Lease, peers []Peer) (base dataplane.State, narrowed []netip.Prefix, refused []dataplane.Conflict) {
	base = b.Base(h, own)
	for _, k := range wide(base) {
		if taken(k.Dst, h) == "" && !takesPeer(k.Dst, h, peers) {
			continue
		}
		r := base.Routes[k]
		delete(base.Routes, k)
		narrowed = leased(h, own, peers)
		if len(narrowed) == 0 {
			narrowed = []netip.Prefix{k.Dst}
		}
		for _, p := range narrowed {
			k.Dst = p
			if reason := taken(p, h); reason != "" {
				refused = append(refused, dataplane.Conflict{Op: dataplane.Op{Kind: dataplane.KindRoute, RouteKey: k, Route: r}, Reason: reason})
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
	return base, narrowed, refused
}

// wide lists the routes of a base that lead into a device of its own, which are for all
// peers.
func wide(base dataplane.State) []dataplane.RouteKey {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(base.Routes)), func(k dataplane.RouteKey) bool {
		_, ours := base.Links[k.Link]
		return !ours
	})
	slices.SortFunc(keys, func(a, b dataplane.RouteKey) int { return lease.ComparePrefix(a.Dst, b.Dst) })
	return keys
}

// leased returns the fewest prefixes with all subnets that are leased, by this config or by
// one before.
func leased(h host.Facts, own lease.Lease, peers []Peer) []netip.Prefix {
	all := slices.Clone(h.Leased)
	if len(all) == 0 {
		return nil
	}
	add := func(subnet netip.Prefix) {
		if subnet.IsValid() && !inside(h.Leased, subnet) {
			all = append(all, subnet)
		}
	}
	add(own.Subnet)
	for _, p := range peers {
		add(p.Subnet)
	}
	slices.SortFunc(all, lease.ComparePrefix)
	return all
}

// inside reports whether a prefix lies in one of others.
func inside(others []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// taken says what this host needs and a route of the overlay to dst would take: the link of
// the uplink, where that lies in dst with this host's address, or a single address.
func taken(dst netip.Prefix, h host.Facts) string {
	if dst.Contains(h.Addr) {
		link, ok := h.Lookup(h.Addr)
		if ok && link.Iface == h.Uplink && !link.Gateway.IsValid() && link.Dst.Bits() > 0 && link.Dst.Bits() <= dst.Bits() {
			return fmt.Sprintf("the route %s takes the addresses of %s dev %s, which the hosts need themselves: choose another Network, or SubnetMin and SubnetMax without them",
				dst, link.Dst, h.Uplink)
		}
	}
	for _, n := range h.Needs {
		if n.TakenBy(dst) {
			return fmt.Sprintf("the route %s takes %s, %s, which the hosts need themselves: choose SubnetMin and SubnetMax without it, or another Network", dst, n.Addr, n.What)
		}
	}
	return ""
}

// takesPeer reports whether a route to dst would take the public IP of a peer, which routes
// to what is leased would not. Of the routes to peers only those of the underlay are known;
// where that makes a difference, there are some more routes than need be.
func takesPeer(dst netip.Prefix, h host.Facts, peers []Peer) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool {
		if !dst.Contains(p.PublicIP) || len(h.Leased) == 0 || inside(h.Leased, netip.PrefixFrom(p.PublicIP, p.PublicIP.BitLen())) {
			return false
		}
		r, ok := h.Lookup(p.PublicIP)
		return !ok || r.Dst.Bits() <= dst.Bits()
	})
}

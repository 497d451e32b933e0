package host

import (
	"net/netip"
	"slices"
)

// Need is an address that this host must reach without the overlay, because the overlay
// depends on it: etcd, a gateway, an address by which hosts know each other.
type Need struct {
	Addr netip.Addr
	What string // what is there, for people
	// Bits is the length of the longest route of others that leads there, -1 if there is
	// none. Firm: a route of the overlay with the same destination does not take its place.
	Bits int
	Firm bool
}

// DivertedBy reports whether a route of the overlay to dst would take the packets to the
// address. The longest prefix wins in the kernel, so where others have a longer route, as
// to the containers on a bridge of this host, it would not.
func (n Need) DivertedBy(dst netip.Prefix) bool {
	return dst.Contains(n.Addr) && (dst.Bits() > n.Bits || dst.Bits() == n.Bits && !n.Firm)
}

// ours reports whether a route is the overlay's: by one of its devices, or with its stamp.
func (r Route) ours() bool { return r.Stamped || overlayName.MatchString(r.Iface) }

// Needs returns which of the addresses of wanted a route inside network could take, with how
// they are reached now, and likewise the gateways by which they are. Of wanted only Addr and
// What are read. An address of this host is reached whatever the routes say: the kernel asks
// its local table first.
func (inv Inventory) Needs(network netip.Prefix, wanted []Need) []Need {
	all := append(slices.Clone(wanted), inv.Gateways()...)
	for _, n := range wanted {
		if r, ok := inv.lookupForeign(n.Addr); ok && r.Gateway.IsValid() && r.Dst.Bits() > 0 {
			all = append(all, Need{Addr: r.Gateway, What: "the gateway to " + n.What})
		}
	}
	return inv.Inside(network, all)
}

// Inside returns which of some addresses a route inside network could take, with how they are
// reached now.
func (inv Inventory) Inside(network netip.Prefix, all []Need) []Need {
	needs := make([]Need, 0, len(all))
	for _, n := range all {
		if !network.Contains(n.Addr) || inv.has(n.Addr) {
			continue
		}
		n.Bits, n.Firm = -1, false
		if r, ok := inv.lookupForeign(n.Addr); ok {
			n.Bits, n.Firm = r.Dst.Bits(), r.Kernel && r.Metric == 0
		}
		needs = append(needs, n)
	}
	slices.SortStableFunc(needs, func(a, b Need) int { return a.Addr.Compare(b.Addr) })
	return slices.CompactFunc(needs, func(a, b Need) bool { return a.Addr == b.Addr })
}

// Gateways returns the default gateways.
func (inv Inventory) Gateways() (all []Need) {
	for _, r := range inv.Routes {
		if r.Dst.Bits() == 0 && r.Gateway.IsValid() && !r.ours() {
			all = append(all, Need{Addr: r.Gateway, What: "the default gateway"})
		}
	}
	return all
}

// ViaOverlay reports whether a route that the kernel would take to an address is the overlay's.
func (inv Inventory) ViaOverlay(a netip.Addr) bool {
	r, ok := Lookup(inv.Routes, a)
	return ok && r.ours()
}

// lookupForeign finds the route to an address as if there were no overlay.
func (inv Inventory) lookupForeign(a netip.Addr) (Route, bool) {
	var leads []Route // few of what may be very many
	for _, r := range inv.Routes {
		if r.Dst.Contains(a) && !r.ours() {
			leads = append(leads, r)
		}
	}
	return Lookup(leads, a)
}

// has reports whether an address is this host's.
func (inv Inventory) has(ip netip.Addr) bool {
	return slices.ContainsFunc(inv.Ifaces, func(i Iface) bool { return i.has(ip) })
}

// NeedInside is the ID of the finding that this host's subnet has an address that the host
// needs elsewhere.
const NeedInside = "need-inside"

// needInside looks for what the host needs and could not reach any more once a bridge has
// its subnet.
func (o Overlay) needInside(f Facts) []Finding {
	for _, n := range f.Needs {
		if n.DivertedBy(o.Subnet) {
			return []Finding{{
				ID:     NeedInside,
				Text:   "own subnet contains an address this host needs, which becomes unreachable",
				Fields: []any{"subnet", o.Subnet, "addr", n.Addr, "reason", n.What},
			}}
		}
	}
	return nil
}

// needs reports whether the host needs an address, if only to resolve names.
func (o Overlay) needs(f Facts, a netip.Addr) bool {
	is := func(n Need) bool { return n.Addr == a }
	return slices.ContainsFunc(f.Needs, is) || slices.ContainsFunc(f.NameServers, is)
}

// nameServers looks for name servers that nothing leads to but the overlay. One may live in
// a container, so nobody is kept from having its address.
func (o Overlay) nameServers(f Facts, s Surroundings) []Finding {
	for _, n := range f.NameServers {
		lead, ok := o.overlayRoute(n.Addr)
		if !ok || !n.DivertedBy(lead) {
			continue
		}
		return []Finding{{
			ID:     "name-server",
			Text:   "route to a name server goes through the overlay; unless it is in a container, it is unreachable",
			Fields: []any{"addr", n.Addr, "route", lead}, Command: s.bypassCommand(f, n.Addr),
		}}
	}
	return nil
}

// overlayRoute returns by which route the overlay leads to an address.
func (o Overlay) overlayRoute(a netip.Addr) (netip.Prefix, bool) {
	if peer, ok := o.peerOverlapping(netip.PrefixFrom(a, a.BitLen())); ok {
		return peer, true
	}
	i := slices.IndexFunc(o.Routed, func(p netip.Prefix) bool { return p.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return o.Routed[i], true
}

// hasRouteTo reports whether a route of others of more than some bits leads to an address, or it
// is one of this host's.
func (s Surroundings) hasRouteTo(a netip.Addr, bits int) bool {
	return slices.ContainsFunc(s.Paths, func(p Path) bool { return p.Dst.Bits() > bits && p.Dst.Contains(a) }) ||
		slices.ContainsFunc(s.Links, func(l Link) bool {
			return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
		})
}

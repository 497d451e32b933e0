package host

import (
	"net/netip"
	"slices"
	"sort"
)

// Need is an address that this host must reach outside the overlay, because the overlay depends on
// it: an etcd endpoint, a gateway, a public IP.
type Need struct {
	Addr netip.Addr
	What string // description for messages
	// Bits is the prefix length of the most specific foreign route to the address, or -1 if there
	// is none. Firm is set if a route of the overlay with the same destination does not replace
	// that route.
	Bits int
	Firm bool
}

// DivertedBy reports whether a route of the overlay to dst would divert packets to the address. The
// kernel prefers the longest prefix, so a more specific foreign route, such as one to a local
// container, prevents that.
func (n Need) DivertedBy(dst netip.Prefix) bool {
	return dst.Contains(n.Addr) && (dst.Bits() > n.Bits || dst.Bits() == n.Bits && !n.Firm)
}

// ours reports whether a route belongs to the overlay, by its device or its protocol number.
func (r Route) ours() bool { return r.Stamped || overlayName.MatchString(r.Iface) }

// Needs returns the addresses of wanted that a route inside network could divert, and the gateways
// to them, with the routes that reach them now. Only Addr and What of wanted are used. Local
// addresses are left out, because the kernel looks them up in its local table first.
func (inv Inventory) Needs(network netip.Prefix, wanted []Need) []Need {
	all := append(slices.Clone(wanted), inv.Gateways()...)
	for _, n := range wanted {
		if r, ok := inv.lookupForeign(n.Addr); ok && r.Gateway.IsValid() && r.Dst.Bits() > 0 {
			all = append(all, Need{Addr: r.Gateway, What: "the gateway to " + n.What})
		}
	}
	return inv.Inside(network, all)
}

// Inside returns the addresses of all that a route inside network could divert, with the routes
// that reach them now.
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
	sort.SliceStable(needs, func(i, j int) bool { return needs[i].Addr.Less(needs[j].Addr) })
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

// ViaOverlay reports whether the route that the kernel uses for an address belongs to the overlay.
func (inv Inventory) ViaOverlay(a netip.Addr) bool {
	r, ok := Lookup(inv.Routes, a)
	return ok && r.ours()
}

// lookupForeign returns the route to an address without regard to the overlay's routes.
func (inv Inventory) lookupForeign(a netip.Addr) (Route, bool) {
	return lookup(inv.Routes, a, func(r Route) bool { return !r.ours() })
}

// has reports whether this host has an address.
func (inv Inventory) has(ip netip.Addr) bool {
	_, err := inv.holder(ip)
	return err == nil
}

// NeedInside is the ID of the finding that this host's subnet contains an address this host needs.
const NeedInside = "need-inside"

// needInside returns a finding if an address that the host needs becomes unreachable once a bridge
// has its subnet.
func (o Overlay) needInside(f Facts) []Finding {
	n, ok := find(f.Needs, func(n Need) bool { return n.DivertedBy(o.Subnet) })
	if !ok {
		return nil
	}
	return []Finding{{
		ID:     NeedInside,
		Text:   "own subnet contains an address this host needs, which becomes unreachable",
		Fields: []any{"subnet", o.Subnet, "addr", n.Addr, "reason", n.What},
	}}
}

// needs reports whether the host needs an address, including name servers.
func (o Overlay) needs(f Facts, a netip.Addr) bool {
	is := func(n Need) bool { return n.Addr == a }
	return slices.ContainsFunc(f.Needs, is) || slices.ContainsFunc(f.NameServers, is)
}

// nameServers returns a finding for a name server that is reached only through the overlay. It may
// run in a container, so this is not prevented.
func (o Overlay) nameServers(f Facts, s Surroundings) []Finding {
	for _, n := range f.NameServers {
		lead, ok := o.overlayRoute(n.Addr)
		if ok && n.DivertedBy(lead) {
			return []Finding{{
				ID:     "name-server",
				Text:   "route to a name server goes through the overlay; unless it is in a container, it is unreachable",
				Fields: []any{"addr", n.Addr, "route", lead}, Command: s.bypassCommand(f, n.Addr),
			}}
		}
	}
	return nil
}

// overlayRoute returns the destination of the overlay's route to an address.
func (o Overlay) overlayRoute(a netip.Addr) (netip.Prefix, bool) {
	if peer, ok := o.peerOverlapping(netip.PrefixFrom(a, a.BitLen())); ok {
		return peer, true
	}
	return o.routed(a)
}

// routed returns the destination of the route to an address that all peers share.
func (o Overlay) routed(a netip.Addr) (netip.Prefix, bool) {
	return find(o.Routed, func(p netip.Prefix) bool { return p.Contains(a) })
}

// hasRouteTo reports whether a foreign route to an address is longer than bits, or the address is
// local.
func (s Surroundings) hasRouteTo(a netip.Addr, bits int) bool {
	return slices.ContainsFunc(s.Paths, func(p Path) bool { return p.Dst.Bits() > bits && p.Dst.Contains(a) }) ||
		slices.ContainsFunc(s.Links, func(l Link) bool {
			return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
		})
}

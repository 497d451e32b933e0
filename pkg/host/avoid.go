package host

import (
	"net/netip"
	"slices"
)

// Avoid returns what a subnet that is chosen for this host must not overlap: what the host
// reaches inside the network in another way than by the overlay, and its own addresses
// there. What covers all of the network leaves nothing to choose and does not count, nor do
// devices of overlays.
func (s Surroundings) Avoid(network netip.Prefix) []netip.Prefix {
	var avoid []netip.Prefix
	for _, p := range s.Paths {
		if p.Dst.Bits() > network.Bits() && within(p.Dst, network) && !overlayName.MatchString(p.Iface) {
			avoid = append(avoid, p.Dst.Masked())
		}
	}
	for _, l := range s.Links {
		if overlayName.MatchString(l.Name) {
			continue
		}
		for _, a := range l.Addrs {
			if network.Contains(a.Addr()) {
				avoid = append(avoid, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
			}
		}
	}
	return avoid
}

// SubnetInside is the ID of the finding that this host's subnet is a part of a network that
// is reached in another way.
const SubnetInside = "subnet-inside"

// subnetInside looks for networks that this host reaches and that its subnet is a part of:
// whoever has an address there is not reached any more, by this host or its peers. A bridge
// of docker that is too wide is judged by itself.
func (o Overlay) subnetInside(s Surroundings) []Finding {
	for _, p := range s.Paths {
		if p.Type != "" || p.Dst.Bits() <= o.Network.Bits() || p.Dst.Bits() >= o.Subnet.Bits() || !within(o.Subnet, p.Dst) {
			continue
		}
		if slices.ContainsFunc(s.Links, func(l Link) bool { return l.Name == p.Iface && l.dockerBridge() }) {
			continue
		}
		return []Finding{{
			ID:     SubnetInside,
			Text:   "own subnet is part of another network of this host, whose hosts are unreachable at these addresses",
			Fields: []any{"subnet", o.Subnet, "route", p.String()},
		}}
	}
	return nil
}

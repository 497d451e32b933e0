package host

import (
	"net/netip"
)

// Avoid returns prefixes that a new subnet of this host must not overlap: those that the host
// reaches inside the network without the overlay, and its own addresses there. Prefixes that cover
// the whole network are ignored, because they would leave no subnet, and so are devices of
// overlays.
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

// SubnetInside is the ID of the finding that this host's subnet is part of another network of this
// host.
const SubnetInside = "subnet-inside"

// subnetInside returns a finding if this host's subnet is part of a wider network that the host
// reaches without the overlay: hosts there with addresses of the subnet are unreachable from this
// host and its peers. Docker bridges have findings of their own.
func (o Overlay) subnetInside(s Surroundings) []Finding {
	for _, p := range s.Paths {
		if p.Type != "" || p.Dst.Bits() <= o.Network.Bits() || p.Dst.Bits() >= o.Subnet.Bits() || !within(o.Subnet, p.Dst) ||
			s.link(p.Iface).dockerBridge() {
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

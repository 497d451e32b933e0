package host

import (
	"net/netip"
	"slices"
)

// Bridge is the interface by which this host reaches the containers of its subnet.
type Bridge struct {
	Subnet netip.Prefix // that it serves
	// Device is the interface with an address of the subnet. Without one it is that of a route to
	// containers, and without such a route it is empty.
	Device string
	Addr   netip.Addr // of the subnet; invalid if Device has none
	MTU    int        // 0 if it is unknown
}

// Bridge returns what serves a subnet of this host. A bridge is preferred to an interface of another
// kind. except are interfaces that do not lead to containers: the overlay's and the uplink.
func (s Surroundings) Bridge(subnet netip.Prefix, except ...string) Bridge {
	b := Bridge{Subnet: subnet}
	if !subnet.IsValid() {
		return b
	}
	for _, l := range s.Links {
		addr, serves := find(l.Addrs, func(a netip.Prefix) bool { return subnet.Contains(a.Addr()) })
		if serves && !slices.Contains(except, l.Name) && (b.Device == "" || l.Kind == "bridge") {
			b.Device, b.Addr, b.MTU = l.Name, addr.Addr(), l.MTU
			if l.Kind == "bridge" {
				return b
			}
		}
	}
	if b.Device != "" {
		return b
	}
	// Containers may have a route each, without an address on this side.
	for _, p := range s.Paths {
		if p.Type == "" && !p.Gateway.IsValid() && p.Iface != "" && within(p.Dst, subnet) && !slices.Contains(except, p.Iface) {
			b.Device, b.MTU = p.Iface, s.link(p.Iface).MTU
			return b
		}
	}
	return b
}

// Package host holds what is true of this host beside flanneld: its interfaces
// and routes, as an Inventory that somebody else reads from the kernel, the
// choice of the uplink among them, and the Facts that backends build on.
//
// It does no I/O: the same inventory gives the same choice. Invariant: Facts
// that were chosen name an existing interface with an IPv4 address and an MTU.
package host

import (
	"net/netip"
	"slices"
)

// Iface is a network interface.
type Iface struct {
	Name  string
	Index int
	MTU   int // bytes; 0 when unknown
	Up    bool
	// Running says that it is up and has a carrier, as far as the kernel knows
	// (IFF_RUNNING of netdevice(7)).
	Running bool
	MAC     [6]byte
	Addrs   []Addr // in kernel order
}

// Addr is an address of an interface.
type Addr struct {
	Prefix     netip.Prefix // address with the length of its network, not masked
	Deprecated bool
	Dynamic    bool // has a lifetime, as DHCP gives
	Secondary  bool // another one of its network came first
}

// Route is a unicast route of the main table.
type Route struct {
	Dst     netip.Prefix
	Iface   string     // empty for a multipath route without one interface
	Gateway netip.Addr // invalid: the destination is on the link
	Source  netip.Addr // address of this host that packets come from; invalid: the kernel looks for one
	Metric  uint32
}

// Inventory is what the kernel knows, read at one moment.
type Inventory struct {
	Ifaces []Iface
	Routes []Route // in kernel order
	IPv6   bool    // the kernel has IPv6 at all

	unfit map[string]string // interfaces that were left out, and why
}

// Facts about this host that a backend may build on.
type Facts struct {
	Uplink   string     // interface that carries the overlay's packets
	MTU      int        // of the uplink, bytes
	Addr     netip.Addr // address of the uplink, source of outer packets
	PublicIP netip.Addr // address published to peers; differs from Addr behind NAT
	// Underlay has the routes that lead to peers, to tell which of them are on
	// the link.
	Underlay []Route
	// MACs has the hardware addresses of the links that exist already, so that
	// a restart publishes what peers know.
	MACs map[string][6]byte
	// IPv6 tells whether the kernel has IPv6 at all.
	IPv6 bool
	// TUN is the TUN device of this host's overlay, where it has one: another
	// network's may have the first name.
	TUN string
}

// Equal tells whether the same follows from both for the kernel. The MACs, which
// come and go with containers, are for what is published only.
func (f Facts) Equal(o Facts) bool {
	return f.Uplink == o.Uplink && f.MTU == o.MTU && f.Addr == o.Addr && f.PublicIP == o.PublicIP && f.IPv6 == o.IPv6 && f.TUN == o.TUN &&
		slices.Equal(f.Underlay, o.Underlay)
}

// OnLink finds the interface on whose link addr is. A route to everywhere that has no
// gateway, as on a point-to-point link, makes nobody a neighbour; nor does half of one,
// of which VPNs make two to come before another default route.
func OnLink(routes []Route, addr netip.Addr) (iface string, ok bool) {
	r, ok := Lookup(routes, addr)
	if !ok || r.Gateway.IsValid() || r.Iface == "" || r.Dst.Bits() <= 1 {
		return "", false
	}
	return r.Iface, true
}

// Lookup finds the route to addr: the longest prefix, then the lowest metric,
// then the first.
func Lookup(routes []Route, addr netip.Addr) (best Route, ok bool) {
	for _, r := range routes {
		if !r.Dst.Contains(addr) {
			continue
		}
		if !ok || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric {
			best, ok = r, true
		}
	}
	return best, ok
}

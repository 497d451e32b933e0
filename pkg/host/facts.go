// Package host describes this host apart from flanneld: its interfaces and routes, as an Inventory
// that another package reads from the kernel; the choice of the uplink among the interfaces; the
// Facts that backends use; and the checks for problems on the host.
//
// It does no I/O: the same inventory results in the same choice. Invariant: Facts name an existing
// interface with an IPv4 address and an MTU.
package host

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Iface is a network interface.
type Iface struct {
	Name  string
	Index int
	MTU   int // bytes; 0 when unknown
	Up    bool
	// Running is set if the interface is up and has a carrier as far as the kernel knows
	// (IFF_RUNNING of netdevice(7)).
	Running bool
	MAC     [6]byte
	Addrs   []Addr // in kernel order
}

// Addr is an address of an interface.
type Addr struct {
	Prefix     netip.Prefix // address with the prefix length of its network, not masked
	Deprecated bool
	Dynamic    bool // has a lifetime, for example from DHCP
	Secondary  bool // not the first address of its network
}

// Route is a unicast route of the main table.
type Route struct {
	Dst     netip.Prefix
	Iface   string     // empty for a multipath route
	Gateway netip.Addr // invalid if the destination is on the link
	Source  netip.Addr // preferred source address; invalid if the kernel chooses one
	Metric  uint32
	Kernel  bool // created by the kernel for an address of Iface
	Stamped bool // has flanneld's protocol number
}

// Inventory is the kernel's interfaces and routes at one point in time.
type Inventory struct {
	Ifaces []Iface
	Routes []Route // in kernel order
	IPv6   bool    // the kernel supports IPv6

	excluded map[string]string // interfaces that were left out, with the reason
}

// HasAddr reports whether an interface has an address.
func (inv Inventory) HasAddr(ip netip.Addr) bool {
	return slices.ContainsFunc(inv.Ifaces, func(i Iface) bool { return i.has(ip) })
}

// Facts are what a backend needs to know about this host.
type Facts struct {
	Uplink     string     // interface that sends and receives the outer packets
	MTU        int        // of the uplink, in bytes
	Addr       netip.Addr // IPv4 address of the uplink, source of outer packets
	AddrV6     netip.Addr // IPv6 address of the uplink, likewise; invalid if it has none
	PublicIP   netip.Addr // IPv4 address published to peers; differs from Addr behind NAT
	PublicIPv6 netip.Addr // IPv6 address published to peers; invalid if there is none
	// Underlay has the routes to peers, which determine which peers are on the link.
	Underlay []Route
	// MACs has the hardware addresses of existing links, so that a restart publishes the MAC that
	// peers already know.
	MACs map[string][6]byte
	// IPv6 is set if the kernel supports IPv6.
	IPv6 bool
	// TUN is the TUN device of this host's overlay, if it has one. Another network may use the
	// default name.
	TUN string
	// Needs are the addresses inside the network that the host must reach outside the overlay.
	Needs []Need
	// NameServers are the name servers inside the network. They may run in containers.
	NameServers []Need
	// Leased is the smallest set of prefixes that covers all subnets that are leased now.
	Leased []netip.Prefix

	index *index // of Underlay; nil for a linear search
}

// Equal reports whether both facts result in the same kernel objects. MACs, which change with every
// container, are ignored, because they are used for the lease only.
func (f Facts) Equal(o Facts) bool {
	return f.Uplink == o.Uplink && f.MTU == o.MTU && f.IPv6 == o.IPv6 && f.TUN == o.TUN &&
		f.Addr == o.Addr && f.AddrV6 == o.AddrV6 && f.PublicIP == o.PublicIP && f.PublicIPv6 == o.PublicIPv6 &&
		slices.Equal(f.Underlay, o.Underlay) && slices.Equal(f.Needs, o.Needs) && slices.Equal(f.NameServers, o.NameServers) && slices.Equal(f.Leased, o.Leased)
}

// Facts returns the current facts about the uplink, for an overlay with the given network. It
// returns an error if the uplink is gone or has lost its address or its MTU.
func (u Uplink) Facts(inv Inventory, publicIP netip.Addr, network netip.Prefix) (Facts, error) {
	if !publicIP.IsValid() {
		publicIP = u.Addr
	}
	i, ok := inv.iface(u.Iface)
	switch {
	case !ok:
		return Facts{}, fmt.Errorf("interface %s is gone", u.Iface)
	case i.MTU <= 0:
		return Facts{}, fmt.Errorf("interface %s has no MTU", u.Iface)
	case !inv.hasAddr(u):
		return Facts{}, fmt.Errorf("interface %s no longer has the address %s", cmp.Or(u.Holder, u.Iface), u.Addr)
	}
	f := Facts{Uplink: u.Iface, MTU: i.MTU, Addr: u.Addr, PublicIP: publicIP, IPv6: inv.IPv6, MACs: map[string][6]byte{}}
	for _, i := range inv.Ifaces {
		f.MACs[i.Name] = i.MAC
	}
	for _, r := range inv.Routes {
		if u.underlay(r, network) {
			f.Underlay = append(f.Underlay, r)
		}
	}
	f.index = newIndex(f.Underlay, f.Uplink)
	return f, nil
}

// Lookup returns the route of the underlay to addr, as [Lookup] does.
func (f Facts) Lookup(addr netip.Addr) (Route, bool) {
	if f.index == nil {
		return Lookup(f.Underlay, addr)
	}
	return f.index.lookup(addr)
}

// OnLink returns the interface on whose link addr is, as [OnLink] does.
func (f Facts) OnLink(addr netip.Addr) (iface string, ok bool) { return onLink(f.Lookup(addr)) }

// ConflictsWith returns a route of the uplink that a route to subnet would break: one whose gateway
// is in subnet, or whose network on the link is covered by it.
func (f Facts) ConflictsWith(subnet netip.Prefix) (Route, bool) {
	x := f.index
	if x == nil {
		x = newIndex(f.Underlay, f.Uplink)
	}
	return x.conflict(subnet)
}

// underlay reports whether a route may lead to peers. These are all routes to outside the network,
// because routes inside it belong to the overlay, and the route of the uplink's own link. The route
// must have the address family of the uplink: every new link, including our own, adds an IPv6
// route.
func (u Uplink) underlay(r Route, network netip.Prefix) bool {
	if r.Dst.Addr().Is4() != u.Addr.Is4() {
		return false
	}
	inside := r.Dst.Bits() >= network.Bits() && network.Contains(r.Dst.Addr())
	return !inside || r.Iface == u.Iface && !r.Gateway.IsValid()
}

// OnLink returns the interface on whose link addr is. A default route without a gateway, as on a
// point-to-point link, makes no address on-link, and neither does a route to half of all addresses,
// of which VPNs use two to override the default route.
func OnLink(routes []Route, addr netip.Addr) (iface string, ok bool) {
	return onLink(Lookup(routes, addr))
}

func onLink(r Route, ok bool) (iface string, is bool) {
	if !ok || r.Gateway.IsValid() || r.Iface == "" || r.Dst.Bits() <= 1 {
		return "", false
	}
	return r.Iface, true
}

// Lookup returns the route to addr: the one with the longest prefix, then the lowest metric, then
// the first.
func Lookup(routes []Route, addr netip.Addr) (Route, bool) {
	return lookup(routes, addr, func(Route) bool { return true })
}

// lookup is Lookup in the routes for which counts returns true.
func lookup(routes []Route, addr netip.Addr, counts func(Route) bool) (best Route, ok bool) {
	for _, r := range routes {
		if !r.Dst.Contains(addr) || !counts(r) {
			continue
		}
		if !ok || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric {
			best, ok = r, true
		}
	}
	return best, ok
}

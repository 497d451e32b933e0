// Package host holds what is true of this host beside flanneld: its interfaces
// and routes, as an Inventory that somebody else reads from the kernel, the
// choice of the uplink among them, and the Facts that backends build on.
//
// It does no I/O: the same inventory gives the same choice. Invariant: Facts
// that were chosen name an existing interface with an IPv4 address and an MTU.
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
	Kernel  bool // follows from an address of Iface
	Stamped bool // flanneld's, as its protocol says
}

// Inventory is what the kernel knows, read at one moment.
type Inventory struct {
	Ifaces []Iface
	Routes []Route // in kernel order
	IPv6   bool    // the kernel has IPv6 at all

	excluded map[string]string // interfaces that were left out, and why
}

// Facts about this host that a backend may build on.
type Facts struct {
	Uplink     string     // interface that carries the overlay's packets
	MTU        int        // of the uplink, bytes
	Addr       netip.Addr // IPv4 address of the uplink, source of outer packets
	AddrV6     netip.Addr // IPv6 address of the uplink, likewise; invalid: none
	PublicIP   netip.Addr // IPv4 address published to peers; differs from Addr behind NAT
	PublicIPv6 netip.Addr // IPv6 address published to peers; invalid: none
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
	// Needs are the addresses inside the network that the host must reach without the
	// overlay.
	Needs []Need
	// NameServers are those inside the network. They may be in containers.
	NameServers []Need
	// Leased are the fewest prefixes that hold all subnets that are leased now.
	Leased []netip.Prefix

	index *index // of Underlay; nil: it is searched through
}

// Equal reports whether the same kernel objects follow from both. The MACs, which
// come and go with containers, are for what is published only.
func (f Facts) Equal(o Facts) bool {
	return f.Uplink == o.Uplink && f.MTU == o.MTU && f.IPv6 == o.IPv6 && f.TUN == o.TUN &&
		f.Addr == o.Addr && f.AddrV6 == o.AddrV6 && f.PublicIP == o.PublicIP && f.PublicIPv6 == o.PublicIPv6 &&
		slices.Equal(f.Underlay, o.Underlay) && slices.Equal(f.Needs, o.Needs) && slices.Equal(f.NameServers, o.NameServers) && slices.Equal(f.Leased, o.Leased)
}

// Facts returns what is now true of the chosen uplink, for an overlay with the
// given network. It fails when the uplink is gone or has lost its address or its
// MTU.
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

// Lookup finds the route of the underlay to addr, as [Lookup] does.
func (f Facts) Lookup(addr netip.Addr) (Route, bool) {
	if f.index == nil {
		return Lookup(f.Underlay, addr)
	}
	return f.index.lookup(addr)
}

// OnLink finds the interface on whose link addr is, as [OnLink] does.
func (f Facts) OnLink(addr netip.Addr) (iface string, ok bool) { return onLink(f.Lookup(addr)) }

// ConflictsWith finds what the uplink needs and a route to a subnet would take away: a gateway in it,
// or a network on the link that it covers.
func (f Facts) ConflictsWith(subnet netip.Prefix) (Route, bool) {
	x := f.index
	if x == nil {
		x = newIndex(f.Underlay, f.Uplink)
	}
	return x.conflict(subnet)
}

// underlay reports whether a route leads to where peers may be: any outside the
// network, for inside it the routes are the overlay's own, and the uplink's own
// link, wherever it lies. Of the uplink's family, that is: every link that comes, ours
// among them, brings an IPv6 route of its own.
func (u Uplink) underlay(r Route, network netip.Prefix) bool {
	if r.Dst.Addr().Is4() != u.Addr.Is4() {
		return false
	}
	inside := r.Dst.Bits() >= network.Bits() && network.Contains(r.Dst.Addr())
	return !inside || r.Iface == u.Iface && !r.Gateway.IsValid()
}

// OnLink finds the interface on whose link addr is. A route to everywhere that has no
// gateway, as on a point-to-point link, makes nobody a neighbour; nor does half of one,
// of which VPNs make two to come before another default route.
func OnLink(routes []Route, addr netip.Addr) (iface string, ok bool) {
	return onLink(Lookup(routes, addr))
}

func onLink(r Route, ok bool) (iface string, is bool) {
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

// Package dataplane describes, as comparable values, what a kernel should hold
// and what it holds: links, addresses, FDB entries, neighbours, nexthops, routes, sysctls.
// Diff turns the difference into ordered operations, and Text prints a State in
// the notation of ip(8).
//
// It does no I/O and knows no backend. Objects name devices by name; indexes are
// resolved where operations are applied. Invariant: applying Diff(want, have)
// makes a second Diff empty, and touches nothing outside the Scope.
package dataplane

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// MAC is an Ethernet address as a comparable value; zero means "any".
type MAC [6]byte

// ParseMAC reads a 48-bit Ethernet address that a unicast frame can carry.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is not a 48-bit MAC address", clip(s))
	}
	m := MAC(hw)
	if m == (MAC{}) || m[0]&1 == 1 {
		return MAC{}, fmt.Errorf("%s is not a unicast MAC address", m)
	}
	return m, nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// Kinds of link.
const (
	KindVXLAN = "vxlan"
	KindTUN   = "tun" // packets are carried in user space
)

// Link is a device of ours: a kernel VXLAN device (RFC 7348), or a TUN device
// and the UDP socket behind it.
type Link struct {
	Kind     string     // KindVXLAN or KindTUN; other values only in what a kernel holds
	VNI      int        // 0..16777215
	Parent   string     // underlay device
	Local    netip.Addr // outer source address
	Port     int        // outer UDP port
	GBP      bool       // Group Based Policy extension
	Learning bool       // learn FDB entries from traffic
	Open     bool       // KindTUN: take packets from whoever sends them
	Plain    bool       // KindTUN: leave no work to the kernel's offloads
	MAC      MAC        // zero in what is wanted: keep what is there
	MTU      int        // bytes, inner IP packet
	Up       bool
}

// Addr is an address on a link.
type Addr struct {
	Link   string
	Prefix netip.Prefix
}

// FDB is a permanent forwarding entry of a VXLAN link: frames to MAC go to the
// VTEP at Dst. It is all key: one MAC may have several remotes in a kernel that
// somebody else has touched.
type FDB struct {
	Link string
	MAC  MAC
	Dst  netip.Addr
}

// NeighKey names a permanent neighbour (ARP or ND entry); its value is a MAC.
type NeighKey struct {
	Link string
	IP   netip.Addr
}

// TunnelKey names an entry of the forwarding table behind a TUN link; its value
// is the UDP address of the host that has the subnet, or invalid for our own.
type TunnelKey struct {
	Link   string
	Subnet netip.Prefix
}

// RouteKey names a route of the main table. A blackhole has no Link, nor has one
// by several links (multipath), which is never ours.
type RouteKey struct {
	Dst    netip.Prefix
	Link   string
	Metric uint32
}

// NextHop is a nexthop object (ip-nexthop(8), kernel 5.3): a gateway with an id,
// by which routes name it.
type NextHop struct {
	Link   string
	Via    netip.Addr
	OnLink bool // take Via as reachable on the link without asking
	Proto  int  // who made it, as in a Route
}

// Route is what a route of the main table says beside its key.
type Route struct {
	Via       netip.Addr // invalid: directly on the link
	OnLink    bool       // take Via as reachable on the link without asking
	Blackhole bool       // drop the packets; there is no link
	LinkScope bool       // IPv4 without Via: only of scope link (rtnetlink(7)); nobody wants that
	Scope     uint8      // IPv4 with Via: rtm_scope of rtnetlink(7), which means nothing then
	Proto     int        // rtm_protocol of rtnetlink(7): who made it
	NextHop   uint32     // id of the object that says link and gateway; 0: the route itself does
}

// Route protocols.
const (
	ProtoKernel = 2
	ProtoBoot   = 3 // what the original stamps on every route
	// ProtoFlannel marks routes of ours on links that are not ours. It
	// is the proof of ownership without which such a route is never deleted.
	ProtoFlannel = 70
)

// State is a set of kernel objects.
type State struct {
	Links   map[string]Link
	Addrs   map[Addr]struct{}
	FDB     map[FDB]struct{}
	Neighs  map[NeighKey]MAC
	Tunnel  map[TunnelKey]netip.AddrPort
	Routes  map[RouteKey]Route
	Sysctls map[string]string // dotless path below /proc/sys to value

	// NextHops are by id. Nobody wants any for their own sake: Diff adds those
	// that the wanted routes need. nil in a reading: the kernel has no such objects.
	NextHops map[uint32]NextHop

	// Others is how many more routes there are in the main table of what was read.
	Others int
}

// NewState returns a State with nothing in it, ready to be filled.
func NewState() State {
	return State{
		Links:   map[string]Link{},
		Addrs:   map[Addr]struct{}{},
		FDB:     map[FDB]struct{}{},
		Neighs:  map[NeighKey]MAC{},
		Tunnel:  map[TunnelKey]netip.AddrPort{},
		Routes:  map[RouteKey]Route{},
		Sysctls: map[string]string{},

		NextHops: map[uint32]NextHop{},
	}
}

// Scope is what a reading of the kernel looks at and what may be changed:
// ownership, which every deletion needs.
type Scope struct {
	Network netip.Prefix // only routes and addresses inside it concern us
	Links   []string     // names of links that are ours, sorted
	Sysctls []string     // paths to read, sorted
	// Carriers are links that are not ours and that routes of ours leave by,
	// sorted. With such a link goes the route, and the kernel tells only of the link.
	Carriers []string
	// NextHops has routes made by way of nexthop objects, Spread has others made with different
	// scopes.
	NextHops, Spread bool
}

// ScopeOf gives the scope for wanting s in a network: the links it names are
// ours.
func (s State) ScopeOf(network netip.Prefix) Scope {
	carriers := map[string]bool{}
	for k := range s.Routes {
		if _, ours := s.Links[k.Link]; !ours && k.Link != "" {
			carriers[k.Link] = true
		}
	}
	return Scope{
		Network:  network,
		Links:    slices.Sorted(maps.Keys(s.Links)),
		Sysctls:  slices.Sorted(maps.Keys(s.Sysctls)),
		Carriers: slices.Sorted(maps.Keys(carriers)),
	}
}

// OwnsLink tells whether the named link is ours.
func (s Scope) OwnsLink(name string) bool { return slices.Contains(s.Links, name) }

// Inside tells whether p lies in the network or is the whole of it.
func (s Scope) Inside(p netip.Prefix) bool {
	return p.Bits() >= s.Network.Bits() && s.Network.Contains(p.Addr())
}

// OwnsAddr: addresses inside the network on our own links. Others there, such
// as IPv6 link-local ones, belong to the kernel or to the operator.
func (s Scope) OwnsAddr(a Addr) bool { return s.OwnsLink(a.Link) && s.Inside(a.Prefix) }

// OwnsRoute: routes inside the network that leave by a link of ours, or that
// bear our stamp.
func (s Scope) OwnsRoute(k RouteKey, r Route) bool {
	return s.Inside(k.Dst) && (k.Link != "" || r.Blackhole) && (s.OwnsLink(k.Link) || r.Proto == ProtoFlannel)
}

// OwnsNextHop: objects with our stamp and an id out of the network's own numbers.
func (s Scope) OwnsNextHop(id uint32, h NextHop) bool {
	return s.InRange(id) && h.Proto == ProtoFlannel
}

// Empty tells whether there is nothing in s.
func (s State) Empty() bool {
	return len(s.Links)+len(s.Addrs)+len(s.FDB)+len(s.Neighs)+len(s.Tunnel)+len(s.NextHops)+len(s.Routes)+len(s.Sysctls) == 0
}

// Equal tells whether two states hold the same objects.
func (s State) Equal(o State) bool {
	return maps.Equal(s.Links, o.Links) && maps.Equal(s.Addrs, o.Addrs) && maps.Equal(s.FDB, o.FDB) &&
		maps.Equal(s.Neighs, o.Neighs) && maps.Equal(s.Tunnel, o.Tunnel) && maps.Equal(s.NextHops, o.NextHops) &&
		maps.Equal(s.Routes, o.Routes) && maps.Equal(s.Sysctls, o.Sysctls)
}

package dataplane

import (
	"fmt"
	"net"
	"net/netip"
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

// UnmarshalText implements encoding.TextUnmarshaler by ParseMAC.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
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
	Kind      string     // KindVXLAN or KindTUN; other values only in what a kernel holds
	VNI       int        // 0..16777215
	Parent    string     // underlay device
	Local     netip.Addr // outer source address
	Port      int        // outer UDP port
	GBP       bool       // Group Based Policy extension
	Learning  bool       // learn FDB entries from traffic
	AnySource bool       // KindTUN: take packets from whoever sends them
	NoOffload bool       // KindTUN: leave no work to the kernel's offloads
	MAC       MAC        // zero in what is wanted: keep what is there
	MTU       int        // bytes, inner IP packet
	Up        bool
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

package dataplane

import (
	"fmt"
	"net"
	"net/netip"
)

// MAC is an Ethernet address as a comparable value. The zero value means any.
type MAC [6]byte

// ParseMAC parses a 48-bit unicast Ethernet address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%.64q is not a 48-bit MAC address", s)
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

// Kinds of link.
const (
	KindVXLAN = "vxlan"
	KindTUN   = "tun" // packets are forwarded in user space
)

// Link is one of our devices: a kernel VXLAN device (RFC 7348), or a TUN device with its UDP
// socket.
type Link struct {
	Kind      string     // KindVXLAN or KindTUN; other values only in states read from a kernel
	VNI       int        // 0..16777215
	Parent    string     // underlay device
	Local     netip.Addr // outer source address
	Port      int        // outer UDP port
	GBP       bool       // Group Based Policy extension
	Learning  bool       // learn FDB entries from traffic
	AnySource bool       // KindTUN: accept packets from any source
	NoOffload bool       // KindTUN: do not use the kernel's offloads
	MAC       MAC        // zero in desired state: keep the present one
	MTU       int        // of inner IP packets, in bytes
	Up        bool
}

// Addr is an address on a link.
type Addr struct {
	Link   string
	Prefix netip.Prefix
}

func (a Addr) String() string { return a.Prefix.String() + " dev " + a.Link }

// FDB is a permanent forwarding entry of a VXLAN link: frames to MAC are sent to the VTEP at Dst.
// All fields are part of the key, because a MAC may have several remotes in a kernel that another
// program has changed.
type FDB struct {
	Link string
	MAC  MAC
	Dst  netip.Addr
}

func (f FDB) String() string { return fmt.Sprintf("%s dst %s dev %s", f.MAC, f.Dst, f.Link) }

// NeighKey is the key of a permanent neighbour (ARP or ND entry), whose value is a MAC.
type NeighKey struct {
	Link string
	IP   netip.Addr
}

func (k NeighKey) String() string { return k.IP.String() + " dev " + k.Link }

// TunnelKey is the key of an entry in the forwarding table of a TUN link. Its value is the UDP
// address of the host with the subnet, or invalid for the own subnet.
type TunnelKey struct {
	Link   string
	Subnet netip.Prefix
}

func (k TunnelKey) String() string { return k.Subnet.String() + " dev " + k.Link }

// RouteKey is the key of a route in the main table. A blackhole has no Link, nor has a multipath
// route, which is never ours.
type RouteKey struct {
	Dst    netip.Prefix
	Link   string
	Metric uint32
}

// NextHop is a nexthop object (ip-nexthop(8), kernel 5.3): a gateway with an ID that routes refer
// to.
type NextHop struct {
	Link   string
	Via    netip.Addr
	OnLink bool // treat Via as directly reachable on the link
	Proto  int  // the program that created it, as in a Route
}

// Route is the value of a route in the main table.
type Route struct {
	Via       netip.Addr // invalid if the destination is directly on the link
	OnLink    bool       // treat Via as directly reachable on the link
	Blackhole bool       // drop packets; there is no link
	LinkScope bool       // IPv4 without Via: scope link (rtnetlink(7)); never in desired state
	Scope     uint8      // IPv4 with Via: rtm_scope of rtnetlink(7), which has no effect there
	Proto     int        // rtm_protocol of rtnetlink(7): the program that created it
	NextHop   uint32     // ID of the object with link and gateway; 0 if the route has its own
}

// Route protocols.
const (
	ProtoKernel = 2
	ProtoBoot   = 3 // what the original sets on every route
	// ProtoFlannel marks our routes on foreign links. It is the proof of ownership without which
	// such a route is never deleted.
	ProtoFlannel = 70
)

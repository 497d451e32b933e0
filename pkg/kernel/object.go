package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// This file turns objects of dataplane into requests of rtnetlink(7). All
// requests may be repeated: what stands already is replaced by the same.

const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

// verb begins a request that puts or deletes an object.
func (r *requests) verb(v dataplane.Verb, put, del uint16) {
	if v == dataplane.Del {
		r.Begin(del, 0)
	} else {
		r.Begin(put, replace)
	}
}

func (r *requests) addr(verb dataplane.Verb, a dataplane.Addr, index int) {
	ip := a.Prefix.Addr()
	r.verb(verb, unix.RTM_NEWADDR, unix.RTM_DELADDR)
	r.addrHeader(family(ip), a.Prefix.Bits(), index)
	r.Addr(unix.IFA_LOCAL, ip)
	r.Addr(unix.IFA_ADDRESS, ip)
}

// addrHeader writes struct ifaddrmsg.
func (r *requests) addrHeader(family uint8, bits, index int) {
	r.Put8(family, uint8(bits), 0, unix.RT_SCOPE_UNIVERSE)
	r.Put32(uint32(index))
}

func (r *requests) fdb(verb dataplane.Verb, f dataplane.FDB, index int) {
	r.verb(verb, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH)
	r.neighHeader(unix.NdMsg{Family: unix.AF_BRIDGE, Ifindex: int32(index), State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF})
	r.Bytes(unix.NDA_LLADDR, f.MAC[:])
	r.Addr(unix.NDA_DST, f.Dst)
}

func (r *requests) neigh(verb dataplane.Verb, k dataplane.NeighKey, mac dataplane.MAC, index int) {
	r.verb(verb, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH)
	r.neighHeader(unix.NdMsg{Family: family(k.IP), Ifindex: int32(index), State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST})
	r.Addr(unix.NDA_DST, k.IP)
	if verb != dataplane.Del {
		r.Bytes(unix.NDA_LLADDR, mac[:])
	}
}

// neighHeader writes struct ndmsg.
func (r *requests) neighHeader(m unix.NdMsg) {
	r.Put8(m.Family, 0)
	r.Put16(0)
	r.Put32(uint32(m.Ifindex))
	r.Put16(m.State)
	r.Put8(m.Flags, m.Type)
}

func (r *requests) route(verb dataplane.Verb, k dataplane.RouteKey, route dataplane.Route, index int) {
	m := unix.RtMsg{
		Family:   family(k.Dst.Addr()),
		Dst_len:  uint8(k.Dst.Bits()),
		Table:    unix.RT_TABLE_MAIN,
		Type:     unix.RTN_UNICAST,
		Protocol: uint8(route.Proto),
		Scope:    route.Scope,
	}
	if route.Blackhole {
		m.Type = unix.RTN_BLACKHOLE
	}
	if route.OnLink && route.NextHop == 0 {
		m.Flags = unix.RTNH_F_ONLINK
	}
	if verb == dataplane.Del {
		// The more a deletion says the less it can hit: the kernel takes the
		// first route that fits. Only the scope is not known here.
		m.Scope = unix.RT_SCOPE_NOWHERE
		m.Flags = 0
	}
	r.verb(verb, unix.RTM_NEWROUTE, unix.RTM_DELROUTE)
	r.routeHeader(m)
	r.Addr(unix.RTA_DST, k.Dst.Masked().Addr())
	if k.Metric != 0 {
		r.Uint32(unix.RTA_PRIORITY, k.Metric)
	}
	switch {
	case route.Blackhole:
	case route.NextHop != 0: // says all there is to say; the kernel takes nothing beside it
		r.Uint32(rtaNextHop, route.NextHop)
	default:
		r.Uint32(unix.RTA_OIF, uint32(index))
		r.gateway(route.Via, k.Dst.Addr().Is4())
	}
}

func (r *requests) gateway(via netip.Addr, four bool) {
	switch {
	case !via.IsValid():
	case via.Is4() == four:
		r.Addr(unix.RTA_GATEWAY, via)
	default: // struct rtvia
		at := r.Open(unix.RTA_VIA)
		r.Put16(uint16(family(via)))
		r.PutAddr(via)
		r.Close(at)
	}
}

// routeHeader writes struct rtmsg.
func (r *requests) routeHeader(m unix.RtMsg) {
	r.Put8(m.Family, m.Dst_len, m.Src_len, m.Tos, m.Table, m.Protocol, m.Scope, m.Type)
	r.Put32(m.Flags)
}

// defaultMetric6 is what the kernel makes of an IPv6 route's metric of zero.
const defaultMetric6 = 1024

// routeEntry is a route as the kernel tells it: its link by index.
type routeEntry struct {
	key    dataplane.RouteKey
	route  dataplane.Route
	index  int
	source netip.Addr // of packets that say none themselves; invalid: the kernel looks for one
}

// parseRoute reads a route to a destination that mainRoute has read, unicast or one of our blackholes;
// the index is 0 for these, for one by several links, and where the kernel tells
// no more than the nexthop object (net.ipv4.nexthop_compat_mode=0). Others'
// blackholes are none of our business until they stand where a route of ours should.
func parseRoute(dst netip.Prefix, b []byte) (e routeEntry, ok bool) {
	e.key.Dst = dst
	typ, tos, srcLen, proto, scope := b[7], b[3], b[2], b[5], b[6] // of struct rtmsg
	flags := binary.NativeEndian.Uint32(b[8:])
	r := &e.route
	// A type of service or a source makes it a route that our keys do not name.
	r.Blackhole = typ == unix.RTN_BLACKHOLE && proto == dataplane.ProtoFlannel
	if typ != unix.RTN_UNICAST && !r.Blackhole || flags&unix.RTM_F_CLONED != 0 || tos != 0 || srcLen != 0 {
		return e, false
	}
	several := false
	for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		switch kind {
		case unix.RTA_OIF:
			e.index = v.Number()
		case unix.RTA_PRIORITY:
			e.key.Metric = uint32(v.Number())
		case unix.RTA_GATEWAY:
			r.Via = v.Addr()
		case unix.RTA_VIA:
			r.Via = v[min(2, len(v)):].Addr()
		case unix.RTA_PREFSRC:
			e.source = v.Addr()
		case unix.RTA_MULTIPATH:
			several = true
		case rtaNextHop:
			r.NextHop = uint32(v.Number())
		}
	}
	if several = several || r.NextHop != 0 && e.index == 0; several {
		e.index, r.Via = 0, netip.Addr{}
	}
	r.OnLink = flags&unix.RTNH_F_ONLINK != 0
	switch {
	case several:
	case !r.Via.IsValid():
		r.LinkScope = scope == unix.RT_SCOPE_LINK
	case b[0] == unix.AF_INET:
		r.Scope = scope
	}
	r.Proto = int(proto)
	return e, several || e.index != 0 || r.Blackhole
}

// mainRoute returns the destination of a route of the main table, whatever its
// type.
func mainRoute(b []byte) (netip.Prefix, bool) {
	if len(b) < unix.SizeofRtMsg {
		return netip.Prefix{}, false
	}
	family, bits, table := b[0], b[1], b[4] // of struct rtmsg
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return netip.Prefix{}, false
	}
	for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		if kind == unix.RTA_DST {
			dst = v.Addr()
			break
		}
	}
	p := netip.PrefixFrom(dst, int(bits))
	return p, p.IsValid() && table == unix.RT_TABLE_MAIN
}

// parseAddr reads an address of a link.
func parseAddr(b []byte) (p netip.Prefix, index int, flags int, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return p, 0, 0, false
	}
	m := nl.DeserializeIfAddrmsg(b)
	var local, peer netip.Addr
	flags = int(m.Flags)
	for kind, v := range netlink.After(b, unix.SizeofIfAddrmsg).All() {
		switch kind {
		case unix.IFA_LOCAL:
			local = v.Addr()
		case unix.IFA_ADDRESS: // the far end of a point-to-point link
			peer = v.Addr()
		case unix.IFA_FLAGS:
			flags = v.Number()
		}
	}
	if !local.IsValid() {
		local = peer
	}
	p = netip.PrefixFrom(local, int(m.Prefixlen))
	return p, int(m.Index), flags, p.IsValid()
}

// neighbor is an entry of a neighbour table or of an FDB.
type neighbor struct {
	family, index int
	state         int // NUD_*
	self          bool
	dst           netip.Addr
	mac           dataplane.MAC
	other         bool // an FDB entry with a port, VNI or device of its own
	aged          bool // its age is told, which only the table that holds it knows
}

func (n neighbor) permanent() bool { return n.state&unix.NUD_PERMANENT != 0 }

// forwards tells whether n is what a dataplane.FDB says. One with a port or VNI
// of its own is not; left out of a reading, it is replaced where one is wanted.
func (n neighbor) forwards() bool {
	return n.family == unix.AF_BRIDGE && n.permanent() && n.self && n.dst.IsValid() && !n.other
}

func parseNeighbor(b []byte) (n neighbor, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return n, false
	}
	n.family = int(b[0])
	n.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	n.state = int(binary.NativeEndian.Uint16(b[8:]))
	n.self = b[10]&unix.NTF_SELF != 0
	for kind, v := range netlink.After(b, unix.SizeofNdMsg).All() {
		switch kind {
		case unix.NDA_DST:
			n.dst = v.Addr()
		case unix.NDA_LLADDR:
			n.mac = v.MAC()
		case unix.NDA_CACHEINFO:
			n.aged = true
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX, ndaNextHop:
			n.other = true
		}
	}
	return n, true
}

const (
	ndaNextHop = 13 // NDA_NH_ID of linux/neighbour.h
	rtaNextHop = 30 // RTA_NH_ID of linux/rtnetlink.h
)

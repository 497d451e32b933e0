package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// This file turns objects of dataplane into requests of rtnetlink(7). All
// requests may be repeated: what stands already is replaced by the same.

const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

func addrRequest(verb dataplane.Verb, a dataplane.Addr, index int) *nl.NetlinkRequest {
	m := nl.NewIfAddrmsg(family(a.Prefix.Addr()))
	m.Prefixlen = uint8(a.Prefix.Bits())
	m.Index = uint32(index)
	m.Scope = unix.RT_SCOPE_UNIVERSE
	r := request(unix.RTM_NEWADDR, replace, m)
	if verb == dataplane.Del {
		r = request(unix.RTM_DELADDR, 0, m)
	}
	b := a.Prefix.Addr().AsSlice()
	add(r, unix.IFA_LOCAL, b)
	add(r, unix.IFA_ADDRESS, b)
	return r
}

func fdbRequest(verb dataplane.Verb, f dataplane.FDB, index int) *nl.NetlinkRequest {
	r := neighborRequest(verb, &netlink.Ndmsg{
		Family: unix.AF_BRIDGE,
		Index:  uint32(index),
		State:  unix.NUD_PERMANENT,
		Flags:  unix.NTF_SELF,
	})
	add(r, unix.NDA_LLADDR, f.MAC[:])
	add(r, unix.NDA_DST, f.Dst.AsSlice())
	return r
}

func neighRequest(verb dataplane.Verb, k dataplane.NeighKey, mac dataplane.MAC, index int) *nl.NetlinkRequest {
	r := neighborRequest(verb, &netlink.Ndmsg{
		Family: uint8(family(k.IP)),
		Index:  uint32(index),
		State:  unix.NUD_PERMANENT,
		Type:   unix.RTN_UNICAST,
	})
	add(r, unix.NDA_DST, k.IP.AsSlice())
	if verb != dataplane.Del {
		add(r, unix.NDA_LLADDR, mac[:])
	}
	return r
}

func neighborRequest(verb dataplane.Verb, m *netlink.Ndmsg) *nl.NetlinkRequest {
	if verb == dataplane.Del {
		return request(unix.RTM_DELNEIGH, 0, m)
	}
	return request(unix.RTM_NEWNEIGH, replace, m)
}

func routeRequest(verb dataplane.Verb, k dataplane.RouteKey, route dataplane.Route, index int) *nl.NetlinkRequest {
	m := nl.NewRtMsg()
	m.Family = uint8(family(k.Dst.Addr()))
	m.Dst_len = uint8(k.Dst.Bits())
	m.Table = unix.RT_TABLE_MAIN
	m.Type = unix.RTN_UNICAST
	m.Protocol = uint8(route.Proto)
	m.Scope = unix.RT_SCOPE_LINK
	if route.Blackhole {
		m.Type = unix.RTN_BLACKHOLE
	}
	if route.Via.IsValid() || route.Blackhole {
		m.Scope = unix.RT_SCOPE_UNIVERSE
	}
	if route.OnLink && route.NextHop == 0 {
		m.Flags = unix.RTNH_F_ONLINK
	}
	r := request(unix.RTM_NEWROUTE, replace, m)
	if verb == dataplane.Del {
		// The more a deletion says the less it can hit: the kernel takes the
		// first route that fits. Only the scope is not known here.
		m.Scope = unix.RT_SCOPE_NOWHERE
		m.Flags = 0
		r = request(unix.RTM_DELROUTE, 0, m)
	}
	add(r, unix.RTA_DST, k.Dst.Masked().Addr().AsSlice())
	if k.Metric != 0 {
		add(r, unix.RTA_PRIORITY, nl.Uint32Attr(k.Metric))
	}
	if route.NextHop != 0 { // says link and gateway, which must not be said again
		add(r, rtaNextHop, nl.Uint32Attr(route.NextHop))
		return r
	}
	if !route.Blackhole {
		add(r, unix.RTA_OIF, nl.Uint32Attr(uint32(index)))
	}
	switch {
	case !route.Via.IsValid():
	case route.Via.Is4() == k.Dst.Addr().Is4():
		add(r, unix.RTA_GATEWAY, route.Via.AsSlice())
	default: // struct rtvia
		b := binary.NativeEndian.AppendUint16(nil, uint16(family(route.Via)))
		add(r, unix.RTA_VIA, append(b, route.Via.AsSlice()...))
	}
	return r
}

// defaultMetric6 is what the kernel makes of an IPv6 route's metric of zero.
const defaultMetric6 = 1024

// parseRoute reads a route of the main table, unicast or one of our blackholes;
// the index is 0 for these and for one by several links, and for one by way of a
// nexthop object where net.ipv4.nexthop_compat_mode is 0. Others' blackholes are
// none of our business until they stand where a route of ours should.
func parseRoute(b []byte) (k dataplane.RouteKey, r dataplane.Route, index int, ok bool) {
	if k.Dst, ok = mainRoute(b); !ok {
		return k, r, 0, false
	}
	m := nl.DeserializeRtMsg(b)
	// A type of service or a source makes it a route that our keys do not name.
	r.Blackhole = m.Type == unix.RTN_BLACKHOLE && m.Protocol == dataplane.ProtoFlannel
	if m.Type != unix.RTN_UNICAST && !r.Blackhole || m.Flags&unix.RTM_F_CLONED != 0 || m.Tos != 0 || m.Src_len != 0 {
		return k, r, 0, false
	}
	several := false
	for kind, v := range attrs(b, unix.SizeofRtMsg) {
		switch kind {
		case unix.RTA_OIF:
			index = number(v)
		case unix.RTA_PRIORITY:
			k.Metric = uint32(number(v))
		case unix.RTA_GATEWAY:
			r.Via = address(v)
		case unix.RTA_VIA:
			r.Via = address(v[min(2, len(v)):])
		case unix.RTA_MULTIPATH:
			several = true
		case rtaNextHop:
			r.NextHop = uint32(number(v))
		}
	}
	if several {
		index, r.Via = 0, netip.Addr{}
	}
	r.OnLink = m.Flags&unix.RTNH_F_ONLINK != 0
	r.Proto = int(m.Protocol)
	return k, r, index, several || index != 0 || r.Blackhole || r.NextHop != 0
}

// mainRoute gives the destination of a route of the main table, whatever its
// type.
func mainRoute(b []byte) (netip.Prefix, bool) {
	if len(b) < unix.SizeofRtMsg {
		return netip.Prefix{}, false
	}
	m := nl.DeserializeRtMsg(b)
	var dst netip.Addr
	switch m.Family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return netip.Prefix{}, false
	}
	for kind, v := range attrs(b, unix.SizeofRtMsg) {
		if kind == unix.RTA_DST {
			dst = address(v)
		}
	}
	p := netip.PrefixFrom(dst, int(m.Dst_len))
	return p, p.IsValid() && m.Table == unix.RT_TABLE_MAIN
}

// parseAddr reads an address of a link.
func parseAddr(b []byte) (p netip.Prefix, index int, flags int, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return p, 0, 0, false
	}
	m := nl.DeserializeIfAddrmsg(b)
	var local, peer netip.Addr
	flags = int(m.Flags)
	for kind, v := range attrs(b, unix.SizeofIfAddrmsg) {
		switch kind {
		case unix.IFA_LOCAL:
			local = address(v)
		case unix.IFA_ADDRESS: // the far end of a point-to-point link
			peer = address(v)
		case unix.IFA_FLAGS:
			flags = number(v)
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
}

func (n neighbor) permanent() bool { return n.state&unix.NUD_PERMANENT != 0 }

func parseNeighbor(b []byte) (n neighbor, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return n, false
	}
	n.family = int(b[0])
	n.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	n.state = int(binary.NativeEndian.Uint16(b[8:]))
	n.self = b[10]&unix.NTF_SELF != 0
	for kind, v := range attrs(b, unix.SizeofNdMsg) {
		switch kind {
		case unix.NDA_DST:
			n.dst = address(v)
		case unix.NDA_LLADDR:
			n.mac = hardware(v)
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

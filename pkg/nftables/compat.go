package nftables

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// compatMatch evaluates an iptables match that nftables only passes through. The structures are
// those of the kernel, linux/netfilter/xt_*.h.
func compatMatch(p firewall.Packet, m map[uint16]netlink.Value) firewall.Met {
	info, revision := m[unix.NFTA_MATCH_INFO], m[unix.NFTA_MATCH_REV].Uint32BE()
	u16 := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
	name := m[unix.NFTA_MATCH_NAME].Text()
	if protocol, of := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP, "sctp": unix.IPPROTO_SCTP}[name]; of && protocol != p.Protocol {
		return metIf(false, p.Protocol != 0) // always comes with a condition on the protocol
	}
	switch {
	case name == "comment":
		return firewall.Yes
	case name == "udp" && len(info) >= 9: // xt_udp
		return portsMet(p, u16, info[8])
	case name == "tcp" && len(info) >= 12: // xt_tcp
		const onFlags, onOption = 4, 8
		met := portsMet(p, u16, info[11])
		if mask := info[9]; mask != 0 || info[11]&onFlags != 0 {
			met = met.And(metIf((p.TCPFlags()&mask == info[10]) != (info[11]&onFlags != 0), true))
		}
		if info[8] != 0 || info[11]&onOption != 0 {
			met = met.And(firewall.Maybe)
		}
		return met
	case name == "icmp" && len(info) >= 4: // ipt_icmp
		kind, low, high := info[0], info[1], info[2]
		return metIf((kind == 0xff || kind == p.ICMPType && low == 0) != (info[3]&1 != 0), kind == 0xff || high >= low)
	case name == "multiport" && revision == 1 && len(info) >= 48 &&
		(p.Protocol == unix.IPPROTO_UDP || p.Protocol == unix.IPPROTO_TCP): // xt_multiport_v1
		return multiport(p, info)
	case name == "state" && len(info) >= 4: // xt_state_info
		return stateMet(p, u32(0))
	case name == "conntrack" && revision >= 2 && len(info) >= 152: // xt_conntrack_mtinfo2
		return conntrackMet(p, u16)
	case name == "addrtype" && revision >= 1 && len(info) >= 8: // xt_addrtype_info_v1
		const invertSource, invert = 1, 2
		if flags := u32(4); flags&^(invert|invertSource) == 0 {
			met := typeMet(p.FromHost, p.Src, u16(0), flags&invertSource != 0)
			return met.And(typeMet(p.ToHost, p.Dst, u16(2), flags&invert != 0))
		}
	case name == "iprange" && revision == 1 && len(info) >= 65: // xt_iprange_mtinfo
		const onSource, onDestination = 1, 2 // and 16 and 32 to invert
		met := firewall.Yes
		if info[64]&onSource != 0 {
			met = met.And(rangeMet(p.Src, info[0:], info[64]&(onSource<<4) != 0))
		}
		if info[64]&onDestination != 0 {
			met = met.And(rangeMet(p.Dst, info[32:], info[64]&(onDestination<<4) != 0))
		}
		return met
	case name == "pkttype" && len(info) >= 8 && !p.FromHost: // xt_pkttype_info
		return metIf((u32(0) == unix.PACKET_HOST) != (u32(4) != 0), true)
	case name == "mark" && revision == 1 && len(info) >= 9: // xt_mark_mtinfo1
		return metIf((u32(0) == 0) != (info[8] != 0), p.Unmarked || u32(4) == 0)
	}
	return firewall.Maybe
}

// portsMet evaluates the two ranges of ports that xt_udp and xt_tcp begin with.
func portsMet(p firewall.Packet, u16 func(at int) uint16, inverted byte) firewall.Met {
	src := inPorts(p.SrcPort, u16(0), u16(2), inverted&1 != 0)
	return src.And(inPorts(p.DstPort, u16(4), u16(6), inverted&2 != 0))
}

// conntrackMet evaluates the conditions of xt_conntrack_mtinfo2 on state and direction.
func conntrackMet(p firewall.Packet, u16 func(at int) uint16) firewall.Met {
	const onState, onDirection, stateAlias = 1, 1 << 12, 1 << 13 // the last means "-m state"
	flags, inverted, met := u16(146), u16(148), firewall.Yes
	if flags&onDirection != 0 { // inverted means the reply
		met = met.And(metIf(p.Reply == (inverted&onDirection != 0), p.Tracking == firewall.Tracked))
	}
	if flags&onState != 0 {
		state := stateMet(p, uint32(u16(150)))
		if inverted&onState != 0 {
			state = firewall.Yes - state
		}
		met = met.And(state)
	}
	if flags&^(onState|onDirection|stateAlias) != 0 {
		met = met.And(firewall.Maybe)
	}
	return met
}

// rangeMet evaluates a range of addresses of 16 bytes each.
func rangeMet(a netip.Addr, between []byte, not bool) firewall.Met {
	n := a.BitLen() / 8
	within := bytes.Compare(between[:n], a.AsSlice()) <= 0 && bytes.Compare(a.AsSlice(), between[16:16+n]) <= 0
	return metIf(within != not, a.IsValid())
}

// stateMet evaluates states of connections, bits as in xt_conntrack.h.
func stateMet(p firewall.Packet, states uint32) firewall.Met {
	const translated = 1<<6 | 1<<7
	bits, known := trackingState(p)
	switch {
	case !known:
		return firewall.Maybe
	case states&bits != 0:
		return firewall.Yes
	case p.Reply && p.Tracking == firewall.Tracked && states&translated != 0:
		return firewall.Maybe
	}
	return firewall.No
}

// typeMet evaluates types of an address, bits by RTN_*; 0 for any.
func typeMet(local bool, a netip.Addr, types uint16, not bool) firewall.Met {
	is := uint16(1 << unix.RTN_UNICAST)
	if local {
		is = 1 << unix.RTN_LOCAL
	}
	if types == 0 {
		return firewall.Yes
	}
	return metIf((types&is != 0) != not, local || a.IsValid())
}

// multiport evaluates xt_multiport_v1: flags, count, 15 ports, 15 flags of ports that begin a
// range, and whether to invert.
func multiport(p firewall.Packet, info []byte) firewall.Met {
	met := firewall.No
	for i := 0; i < int(min(info[1], 15)); i++ {
		low := binary.NativeEndian.Uint16(info[2+2*i:])
		high := low
		if info[32+i] != 0 && i < 14 {
			i++
			high = binary.NativeEndian.Uint16(info[2+2*i:])
		}
		source, destination := inPorts(p.SrcPort, low, high, false), inPorts(p.DstPort, low, high, false)
		switch info[0] {
		case 0:
			met = max(met, source)
		case 1:
			met = max(met, destination)
		default:
			met = max(met, source, destination)
		}
	}
	if info[47] != 0 {
		met = firewall.Yes - met
	}
	return met
}

func inPorts(port, low, high uint16, not bool) firewall.Met {
	if low == 0 && high == 0xffff {
		return metIf(!not, true)
	}
	return metIf((port >= low && port <= high) != not, port != 0)
}

// compatTarget evaluates an iptables target.
func compatTarget(t map[uint16]netlink.Value) (do firewall.Action, sets firewall.Effects) {
	name, info := t[unix.NFTA_TARGET_NAME].Text(), t[unix.NFTA_TARGET_INFO]
	const notrack = 1 // XT_CT_NOTRACK, in the first field of each revision of xt_ct_target_info
	if do, sets = firewall.TargetAction(name); name == "CT" && len(info) >= 2 && binary.NativeEndian.Uint16(info)&notrack == 0 {
		sets = 0
	}
	return do, sets
}

package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netlink"
)

// compatMatch evaluates an iptables match that nftables only passes through. The structures are
// those of the kernel, linux/netfilter/xt_*.h.
func compatMatch(p firewall.Packet, m map[uint16]netlink.Value) firewall.Met {
	info, revision := m[unix.NFTA_MATCH_INFO], m[unix.NFTA_MATCH_REV].Uint32BE()
	u16 := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
	switch name := m[unix.NFTA_MATCH_NAME].Text(); {
	case name == "comment":
		return firewall.Yes
	case name == "tcp" || name == "icmp" || name == "sctp":
		return metIf(false, p.Protocol == unix.IPPROTO_UDP) // always comes with a condition on the protocol
	case name == "udp" && len(info) >= 9 && p.Protocol == unix.IPPROTO_UDP: // xt_udp
		src := inPorts(p.SrcPort, u16(0), u16(2), info[8]&1 != 0)
		return src.And(inPorts(p.DstPort, u16(4), u16(6), info[8]&2 != 0))
	case name == "multiport" && revision == 1 && len(info) >= 48 &&
		p.Protocol == unix.IPPROTO_UDP: // xt_multiport_v1
		return multiport(p, info)
	case name == "state" && len(info) >= 4: // xt_state_info
		return metIf(binary.NativeEndian.Uint32(info)&stateNew != 0, true)
	case name == "conntrack" && revision >= 2 && len(info) >= 152: // xt_conntrack_mtinfo2
		const flags, inverted, states, onState = 146, 148, 150, 1
		if u16(flags) == onState {
			return metIf((u16(states)&stateNew != 0) != (u16(inverted)&onState != 0), true)
		}
	case name == "addrtype" && revision >= 1 && len(info) >= 8: // xt_addrtype_info_v1
		const invert, local = 2, 1 << unix.RTN_LOCAL
		flags := binary.NativeEndian.Uint32(info[4:])
		if u16(0) == 0 && flags&^invert == 0 && p.ToHost {
			return metIf((u16(2)&local != 0) != (flags&invert != 0), true)
		}
	}
	return firewall.Maybe
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

// compatTarget evaluates an iptables target. ends is false if evaluation continues with the next
// rule.
func compatTarget(met firewall.Met, name string) (s firewall.Step, ends bool) {
	switch name {
	case "REJECT":
		return firewall.Step{Met: met, Do: firewall.Drop}, true
	case "LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CT", "NOTRACK", "TOS", "DSCP", "TTL",
		"CHECKSUM", "TCPMSS", "SET", "AUDIT":
		return firewall.Step{}, false
	}
	return firewall.Step{Met: met, Do: firewall.PassOrDrop}, true
}

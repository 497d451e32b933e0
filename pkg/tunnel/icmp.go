package tunnel

import "encoding/binary"

// An icmpError is a type, a code and the MTU that fragmentation needed carries (RFC 792, RFC 1191).
type icmpError struct {
	kind, code byte
	mtu        uint16
}

const (
	icmpHeaderLen    = 8
	icmpUnreachable  = 3
	icmpTimeExceeded = 11

	codeNetwork       = 0
	codeFragmentation = 4

	// icmpQuote is how much of a packet after its IP header is quoted, in bytes.
	icmpQuote = 8
	maxICMP   = ipv4HeaderLen + icmpHeaderLen + 60 + icmpQuote
)

// appendICMP appends to b an IPv4 packet with an ICMP error about a packet, from the table's
// device. It appends nothing if no error may be sent (RFC 1122, section 3.2.2; RFC 1812, section
// 4.3.2.7).
func appendICMP(b []byte, e icmpError, t *Table, about []byte) []byte {
	ihl := headerLen(about)
	if ihl == 0 || !mayAnswer(t, about, ihl) {
		return b
	}
	quote := about[:min(len(about), ihl+icmpQuote)]
	total := ipv4HeaderLen + icmpHeaderLen + len(quote)
	start := len(b)
	b = append(b, 0x45, 0xc0) // precedence "internetwork control" (RFC 1812, section 4.3.2.5)
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	b = append(b, 0, 0, flagDF>>8, 0, 64, protoICMP, 0, 0)
	b = binary.BigEndian.AppendUint32(b, t.own)
	b = binary.BigEndian.AppendUint32(b, source(about))
	b = append(b, e.kind, e.code, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, e.mtu)
	b = append(b, quote...)

	setHeaderChecksum(b[start : start+ipv4HeaderLen])
	message := b[start+ipv4HeaderLen:]
	binary.BigEndian.PutUint16(message[2:], ^sum(message))
	return b
}

// mayAnswer reports whether an ICMP error may be sent about a packet: its header is intact, it is
// not an ICMP error, not a later fragment, and its addresses are those of single hosts.
func mayAnswer(t *Table, packet []byte, ihl int) bool {
	if !headerIntact(packet) || binary.BigEndian.Uint16(packet[offFragment:])&fragmentOffset != 0 {
		return false
	}
	if packet[offProtocol] == protoICMP {
		// Without the type it is unknown whether it is an error.
		if len(packet) == ihl || isICMPError(packet[ihl]) {
			return false
		}
	}
	return t.isHost(source(packet)) && t.isHost(destination(packet))
}

// isICMPError reports whether an ICMP type is an error: unreachable, source quench, redirect, time
// exceeded, or parameter problem.
func isICMPError(kind byte) bool {
	return kind == icmpUnreachable || kind == 4 || kind == 5 || kind == icmpTimeExceeded || kind == 12
}

// isHost reports whether an address can be that of a single host, by its form and the subnets of
// the network. The first address of a subnet is a host's: the device has it.
func (t *Table) isHost(a uint32) bool {
	if !isUnicast(a) || isLast(a, t.network, t.netMask) || isLast(a, t.own, t.ownMask) {
		return false
	}
	if peer := t.lookup(a); peer != none {
		p := t.overlay.Peers[peer].Subnet
		return !isLast(a, word(p.Addr()), mask(p.Bits()))
	}
	return true
}

// isLast reports whether an address is the broadcast address of a prefix. A /31 has none (RFC
// 3021).
func isLast(a, prefix, mask uint32) bool { return ^mask > 1 && a == prefix|^mask }

// isUnicast reports whether an address is not multicast, class E including broadcast, loopback or
// "this network" (RFC 1122, section 3.2.1.3).
func isUnicast(a uint32) bool {
	first := a >> 24
	return first != 0 && first != 127 && first < 224
}

// Limits of ICMP errors (RFC 1812, section 4.3.2.8).
const (
	icmpRate  = 1000 // a second
	icmpBurst = 50
)

package tunnel

import "encoding/binary"

// Offsets in an IPv4 header (RFC 791), in bytes.
const (
	offTOS         = 1
	offTotalLength = 2
	offID          = 4
	offFragment    = 6
	offTTL         = 8
	offProtocol    = 9
	offChecksum    = 10
	offSource      = 12
	offDestination = 16
	ipv4HeaderLen  = 20
)

// The fragment word of an IPv4 header.
const (
	flagDF         = 0x4000
	flagMF         = 0x2000
	fragmentOffset = 0x1fff
)

// Offsets in a TCP header (RFC 9293) and in a UDP header (RFC 768), in bytes from its start.
const (
	tcpSequence  = 4
	tcpAck       = 8
	tcpDataStart = 12
	tcpFlags     = 13
	tcpWindow    = 14
	tcpChecksum  = 16
	tcpUrgent    = 18
	tcpHeaderLen = 20

	udpLength    = 4
	udpChecksum  = 6
	udpHeaderLen = 8
)

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagACK = 0x10
	flagURG = 0x20
	flagECE = 0x40
	flagCWR = 0x80
)

// maxPacket is the greatest length of an IPv4 packet and so of a super-packet, in bytes.
const maxPacket = 65535

// headerLen returns the length of a packet's IPv4 header, or 0 if it is not exactly one IPv4
// packet.
func headerLen(packet []byte) int {
	if len(packet) < ipv4HeaderLen || packet[0]>>4 != 4 {
		return 0
	}
	n := int(packet[0]&15) * 4
	if n < ipv4HeaderLen || n > len(packet) ||
		int(binary.BigEndian.Uint16(packet[offTotalLength:])) != len(packet) {
		return 0
	}
	return n
}

// dropReason returns the reason to drop a packet for which headerLen is 0.
func dropReason(packet []byte) Reason {
	if len(packet) > 0 && packet[0]>>4 != 4 {
		return NotIPv4
	}
	return Malformed
}

// headerIntact reports whether a packet's header checksum is correct. A router drops other packets
// silently, because the source address may be damaged (RFC 1812, section 5.2.2).
func headerIntact(packet []byte) bool { return sum(packet[:int(packet[0]&15)*4]) == 0xffff }

func source(packet []byte) uint32      { return binary.BigEndian.Uint32(packet[offSource:]) }
func destination(packet []byte) uint32 { return binary.BigEndian.Uint32(packet[offDestination:]) }

// decrementTTL decrements the TTL and updates the header checksum (RFC 1624). A wrong checksum
// stays wrong.
func decrementTTL(packet []byte) {
	packet[offTTL]--
	check := uint32(binary.BigEndian.Uint16(packet[offChecksum:])) + 0x0100
	if check >= 0xffff {
		check++
	}
	binary.BigEndian.PutUint16(packet[offChecksum:], uint16(check))
}

// setHeaderChecksum sets the checksum of an IPv4 header of length len(h).
func setHeaderChecksum(h []byte) {
	h[offChecksum], h[offChecksum+1] = 0, 0
	binary.BigEndian.PutUint16(h[offChecksum:], ^sum(h))
}

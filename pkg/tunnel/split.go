package tunnel

import "encoding/binary"

// maxHeader is the greatest length of an IPv4 and a TCP header, in bytes.
const maxHeader = 120

// A splitter segments a super-packet like the kernel (segmentation-offloads.rst): the IPv4 ID
// increments, CWR is set on the first segment only, FIN and PSH on the last. It writes new headers
// and does not copy the payload.
type splitter struct {
	payload  []byte // remaining payload
	size     int    // payload of a segment
	header   []byte // the super-packet's, with zeros for fields that differ between segments
	ihl      int
	tcp      bool
	checked  bool // segments have a transport checksum
	id       uint16
	sequence uint32
	flags    byte
	ipSum    uint32 // sums of the constant parts
	l4Sum    uint32
}

// init starts to segment a packet whose IPv4 header has ihl bytes. It overwrites that header.
func (s *splitter) init(packet []byte, ihl int, o Offload) bool {
	hl := transportHeader(packet, ihl)
	if hl == 0 || o.GSOSize == 0 ||
		binary.BigEndian.Uint16(packet[offFragment:])&(flagMF|fragmentOffset) != 0 {
		return false
	}
	switch tcp := packet[offProtocol] == protoTCP; {
	case tcp && o.GSO&^GSOECN != GSOTCP4, !tcp && o.GSO != GSOUDP:
		return false
	default:
		s.tcp = tcp
	}
	s.payload, s.size, s.header, s.ihl = packet[hl:], int(o.GSOSize), packet[:hl], ihl
	s.id = binary.BigEndian.Uint16(packet[offID:])
	for _, field := range [...]int{offTotalLength, offID, offChecksum} {
		packet[field], packet[field+1] = 0, 0
	}
	l4 := s.header[ihl:]
	if s.tcp {
		s.checked = true
		s.sequence, s.flags = binary.BigEndian.Uint32(l4[tcpSequence:]), l4[tcpFlags]
		binary.BigEndian.PutUint32(l4[tcpSequence:], 0)
		l4[tcpFlags], l4[tcpChecksum], l4[tcpChecksum+1] = 0, 0, 0
	} else {
		s.checked = o.NeedsChecksum || binary.BigEndian.Uint16(l4[udpChecksum:]) != 0
		binary.BigEndian.PutUint32(l4[udpLength:], 0) // and the checksum
	}
	s.ipSum = uint32(sum(s.header[:ihl]))
	s.l4Sum = pseudoHeader(packet, 0) + uint32(sum(l4)) // without the length
	return true
}

// next returns the payload of the next segment, and writes its header to h, which is as long as the
// super-packet's. The caller stops when s.payload is empty.
func (s *splitter) next(h []byte) (payload []byte) {
	n := min(s.size, len(s.payload))
	payload, s.payload = s.payload[:n], s.payload[n:]
	copy(h, s.header)

	total := len(h) + n
	binary.BigEndian.PutUint16(h[offTotalLength:], uint16(total))
	binary.BigEndian.PutUint16(h[offID:], s.id)
	binary.BigEndian.PutUint16(h[offChecksum:], ^fold(s.ipSum+uint32(total)+uint32(s.id)))
	s.id++
	if s.tcp {
		s.nextTCP(h[s.ihl:], payload)
	} else {
		s.nextUDP(h[s.ihl:], payload)
	}
	return payload
}

func (s *splitter) nextTCP(l4, payload []byte) {
	flags := s.flags
	if len(s.payload) > 0 {
		flags &^= flagFIN | flagPSH
	}
	s.flags &^= flagCWR
	l4[tcpFlags] = flags
	binary.BigEndian.PutUint32(l4[tcpSequence:], s.sequence)
	check := s.l4Sum + uint32(sum(payload)) + uint32(len(l4)+len(payload)) + uint32(flags) +
		s.sequence>>16 + s.sequence&0xffff
	binary.BigEndian.PutUint16(l4[tcpChecksum:], ^fold(check))
	s.sequence += uint32(len(payload))
}

func (s *splitter) nextUDP(l4, payload []byte) {
	length := udpHeaderLen + len(payload)
	binary.BigEndian.PutUint16(l4[udpLength:], uint16(length))
	if !s.checked {
		return
	}
	// The length is in the pseudo header and in the header.
	check := ^fold(s.l4Sum + uint32(sum(payload)) + uint32(2*length))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(l4[udpChecksum:], check)
}

// transportHeader returns the total length of the IP and the TCP or UDP header, or 0 if they are
// incomplete or of another protocol.
func transportHeader(packet []byte, ihl int) int {
	hl := 0
	switch {
	case packet[offProtocol] == protoUDP && len(packet) >= ihl+udpHeaderLen:
		return ihl + udpHeaderLen
	case packet[offProtocol] == protoTCP && len(packet) >= ihl+tcpHeaderLen:
		hl = int(packet[ihl+tcpDataStart]>>4) * 4
	}
	if hl < tcpHeaderLen || ihl+hl > len(packet) {
		return 0
	}
	return ihl + hl
}

package tunnel

import (
	"bytes"
	"encoding/binary"
)

const (
	maxRuns        = 8   // flows that are coalesced at the same time
	maxRunSegments = 128 // a write has one iovec more; the kernel accepts 1024
	maxUDPSegments = 64  // as in the kernel's own GRO
)

// A coalescer merges consecutive packets of one flow into super-packets, and writes these to the
// device. Segmenting them again yields the same packets, except for the ID of those that must not
// be fragmented, where it has no meaning (RFC 6864, section 4.1). It merges only packets with
// correct checksums, because the kernel computes the checksum of the super-packet and would replace
// wrong ones.
//
// Packets of one flow are never reordered, and packets without a flow overtake nothing between the
// same hosts. add may use its buffer until flush.
type coalescer struct {
	tcp, udp bool
	runs     [maxRuns]run
	open     int // runs[:open] are in use, the oldest first
	single   [1][]byte
	write    func(o Offload, parts [][]byte) error // one part for each packet
}

// A run is a super-packet under construction.
type run struct {
	flow     flow
	parts    [][]byte // the first packet and the payloads of the others
	hl       int      // length of the headers
	size     int      // payload of each packet but the last
	total    int
	sequence uint32 // TCP sequence number of the next byte
	id       uint16 // of the last packet
	idStep   uint16 // 0 or 1 from the second packet on
	verified bool   // the first packet's checksums are correct
	closed   bool   // the last packet was shorter, or had PSH or FIN
}

// A flow identifies the packets that may belong to one run.
type flow struct {
	hosts uint64
	ports uint32
	proto byte
}

// A segment is a packet that may be merged with others.
type segment struct {
	flow    flow
	packet  []byte
	hl      int
	payload []byte
}

func (c *coalescer) init(tcp, udp bool, write func(Offload, [][]byte) error) {
	c.tcp, c.udp, c.write = tcp, udp, write
	for i := range c.runs {
		c.runs[i].parts = make([][]byte, 0, maxRunSegments)
	}
}

// add adds a packet, and writes it now or at the next flush.
func (c *coalescer) add(packet []byte) error {
	s, ok := c.segment(packet)
	if !ok {
		if err := c.flushHosts(hosts(packet)); err != nil {
			return err
		}
		return c.writeOne(packet)
	}
	for i := range c.runs[:c.open] {
		r := &c.runs[i]
		if r.flow != s.flow {
			continue
		}
		if r.join(&s) {
			if r.closed || r.full() {
				return c.flushRun(i)
			}
			return nil
		}
		if err := c.flushRun(i); err != nil {
			return err
		}
		break
	}
	return c.begin(&s)
}

func (c *coalescer) begin(s *segment) error {
	if closesRun(s) {
		return c.writeOne(s.packet)
	}
	if c.open == maxRuns {
		if err := c.flushRun(0); err != nil {
			return err
		}
	}
	c.runs[c.open].begin(s)
	c.open++
	return nil
}

// flush writes all runs.
func (c *coalescer) flush() error {
	for c.open > 0 {
		if err := c.flushRun(0); err != nil {
			return err
		}
	}
	return nil
}

// flushHosts writes the runs between two hosts, because a packet without a flow must not overtake
// them.
func (c *coalescer) flushHosts(pair uint64) error {
	for i := 0; i < c.open; {
		if c.runs[i].flow.hosts != pair {
			i++
			continue
		}
		if err := c.flushRun(i); err != nil {
			return err
		}
	}
	return nil
}

func (c *coalescer) flushRun(i int) error {
	r := c.runs[i]
	copy(c.runs[i:c.open], c.runs[i+1:c.open])
	c.open--
	c.runs[c.open] = run{parts: r.parts[:0]} // keep the memory for the next run
	return c.write(r.finish(), r.parts)
}

func (c *coalescer) writeOne(packet []byte) error {
	c.single[0] = packet
	return c.write(Offload{}, c.single[:])
}

// segment parses a packet, and reports whether it may be merged with others.
func (c *coalescer) segment(packet []byte) (s segment, ok bool) {
	proto := packet[offProtocol]
	if packet[0] != 0x45 || binary.BigEndian.Uint16(packet[offFragment:])&^flagDF != 0 ||
		!(proto == protoTCP && c.tcp || proto == protoUDP && c.udp) {
		return s, false
	}
	hl := transportHeader(packet, ipv4HeaderLen)
	if hl == 0 || hl == len(packet) {
		return s, false
	}
	l4 := packet[ipv4HeaderLen:]
	if proto == protoTCP {
		// Only ACK, possibly with PSH or FIN. The low bits of the previous byte, one of which is
		// AccECN's (RFC 9768), must be clear.
		if l4[tcpFlags]&^(flagPSH|flagFIN) != flagACK || l4[tcpDataStart]&0x0f != 0 {
			return s, false
		}
	} else if int(binary.BigEndian.Uint16(l4[udpLength:])) != len(l4) ||
		binary.BigEndian.Uint16(l4[udpChecksum:]) == 0 {
		return s, false
	}
	s.flow = flow{hosts(packet), binary.BigEndian.Uint32(l4), proto}
	s.packet, s.hl, s.payload = packet, hl, packet[hl:]
	return s, true
}

// closesRun reports whether a segment must be the last of a super-packet.
func closesRun(s *segment) bool {
	return s.flow.proto == protoTCP && s.packet[ipv4HeaderLen+tcpFlags]&(flagPSH|flagFIN) != 0
}

func (r *run) begin(s *segment) {
	*r = run{
		flow: s.flow, parts: append(r.parts[:0], s.packet),
		hl: s.hl, size: len(s.payload), total: len(s.packet),
		id: binary.BigEndian.Uint16(s.packet[offID:]),
	}
	if s.flow.proto == protoTCP {
		r.sequence = binary.BigEndian.Uint32(s.packet[ipv4HeaderLen+tcpSequence:]) + uint32(r.size)
	}
}

// full reports whether the run has the maximum number of packets.
func (r *run) full() bool {
	return len(r.parts) == maxRunSegments || r.flow.proto == protoUDP && len(r.parts) == maxUDPSegments
}

// join appends a segment of the same flow if it continues the run.
func (r *run) join(s *segment) bool {
	first, n := r.parts[0], len(s.payload)
	if n > r.size || r.total+n > maxPacket || r.hl != s.hl || !sameHeader(first, s.packet, r.hl) {
		return false
	}
	tcp := r.flow.proto == protoTCP
	if tcp && binary.BigEndian.Uint32(s.packet[ipv4HeaderLen+tcpSequence:]) != r.sequence {
		return false
	}
	id := binary.BigEndian.Uint16(s.packet[offID:])
	step := id - r.id
	switch {
	case first[offFragment]&(flagDF>>8) == 0 && step != 1:
		return false // segmentation increments the ID, which matters without DF
	case step > 1 || len(r.parts) > 1 && step != r.idStep:
		return false
	}
	if !r.verified && !verify(first) || !verify(s.packet) {
		return false
	}
	r.verified = true
	r.parts = append(r.parts, s.payload)
	r.total += n
	r.sequence += uint32(n)
	r.id, r.idStep = id, step
	r.closed = n < r.size || closesRun(s)
	if tcp {
		first[ipv4HeaderLen+tcpFlags] |= s.packet[ipv4HeaderLen+tcpFlags]
	}
	return true
}

// finish turns the first packet's header into that of the super-packet, and returns how to segment
// it.
func (r *run) finish() Offload {
	if len(r.parts) == 1 {
		return Offload{}
	}
	first := r.parts[0]
	binary.BigEndian.PutUint16(first[offTotalLength:], uint16(r.total))
	setHeaderChecksum(first[:ipv4HeaderLen])
	o := Offload{
		NeedsChecksum: true, GSO: GSOTCP4, HeaderLen: uint16(r.hl), GSOSize: uint16(r.size),
		ChecksumStart: ipv4HeaderLen, ChecksumOffset: tcpChecksum,
	}
	length := r.total - ipv4HeaderLen
	if r.flow.proto == protoUDP {
		o.GSO, o.ChecksumOffset = GSOUDP, udpChecksum
		binary.BigEndian.PutUint16(first[ipv4HeaderLen+udpLength:], uint16(length))
	}
	at := ipv4HeaderLen + int(o.ChecksumOffset)
	binary.BigEndian.PutUint16(first[at:], fold(pseudoHeader(first, length)))
	return o
}

// sameHeader reports whether two packets of one flow differ only in fields that segmentation sets.
// It does not compare IDs and sequence numbers.
func sameHeader(a, b []byte, hl int) bool {
	if a[offTOS] != b[offTOS] || a[offTTL] != b[offTTL] || a[offFragment] != b[offFragment] {
		return false
	}
	if a[offProtocol] == protoUDP {
		return true
	}
	a, b = a[ipv4HeaderLen:hl], b[ipv4HeaderLen:hl]
	return (a[tcpFlags]^b[tcpFlags])&^(flagPSH|flagFIN) == 0 &&
		bytes.Equal(a[tcpAck:tcpFlags], b[tcpAck:tcpFlags]) && // includes the header length
		bytes.Equal(a[tcpWindow:tcpChecksum], b[tcpWindow:tcpChecksum]) &&
		bytes.Equal(a[tcpUrgent:], b[tcpUrgent:]) // includes the options
}

// verify checks the IP header checksum and the transport checksum of a packet without IP options.
func verify(packet []byte) bool {
	l4 := packet[ipv4HeaderLen:]
	return sum(packet[:ipv4HeaderLen]) == 0xffff &&
		fold(pseudoHeader(packet, len(l4))+uint32(sum(l4))) == 0xffff
}

// hosts returns the pair of a packet's addresses.
func hosts(packet []byte) uint64 { return binary.BigEndian.Uint64(packet[offSource:]) }

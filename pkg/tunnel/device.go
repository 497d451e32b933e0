package tunnel

import (
	"encoding/binary"
	"errors"
)

// ErrDeviceGone is returned by a Device that was deleted, and by Run then: the owner may open
// another one and call Run again.
var ErrDeviceGone = errors.New("network device is gone")

// ErrInterrupted is returned by a call that Interrupt has ended.
var ErrInterrupted = errors.New("interrupted")

// Offloads says which work to leave to the kernel. What it can't do is not used, whatever is asked
// for.
type Offloads struct {
	TUN        bool // super-packets between the IP stack and the tunnel
	UDPSegment bool // UDP_SEGMENT: many datagrams in one message to send
	UDPGRO     bool // UDP_GRO: many datagrams in one message received
}

// AllOffloads is what is best for everything but comparisons.
func AllOffloads() Offloads { return Offloads{TUN: true, UDPSegment: true, UDPGRO: true} }

// A Device is where packets leave and enter the IP stack of this host; in production a *TUN. One
// goroutine reads, while another one writes.
type Device interface {
	// Read waits for a packet, takes with it those that are there already, as far as packets and
	// buf have room, and returns their number. It never waits for a second one. Each Data lies in
	// buf and belongs to the caller, as does buf; buf must have at least ReadRoom bytes.
	Read(packets []Packet, buf []byte) (int, error)

	// Write gives one packet or super-packet, the concatenation of parts, to the IP stack. The
	// parts are not kept. An error other than ErrDeviceGone concerns this packet only.
	Write(o Offload, parts [][]byte) error

	// SuperPackets tells for which protocols Write takes packets with a GSOSize.
	SuperPackets() (tcp, udp bool)

	// Interrupt(true) ends a waiting Read, and all later ones, with ErrInterrupted, until
	// Interrupt(false).
	Interrupt(on bool)
}

// A Packet is an IPv4 packet, or a super-packet that stands for several (segmentation-offloads.rst
// in the kernel's documentation).
type Packet struct {
	Offload Offload
	Data    []byte // from the IP header to the end of the payload
}

// An Offload says what is left to do with a packet until it may be on a wire. It is a
// virtio_net_hdr (Virtual I/O Device 1.2, section 5.1.6), where all lengths are in bytes. The zero
// value means: nothing.
type Offload struct {
	NeedsChecksum  bool
	GSO            GSO
	HeaderLen      uint16 // IP and transport header
	GSOSize        uint16 // payload of each segment but the last, which may have less
	ChecksumStart  uint16
	ChecksumOffset uint16 // from ChecksumStart
}

// GSO is the kind of a super-packet, VIRTIO_NET_HDR_GSO_*.
type GSO uint8

// The kinds of super-packets that the tunnel knows. The bit ECN may be set besides TCP4.
const (
	GSONone GSO = 0
	GSOTCP4 GSO = 1
	GSOUDP  GSO = 5
	GSOECN  GSO = 0x80
)

// offloadLen is the length of the header before each packet, in bytes.
const offloadLen = 10

const needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

// encode writes the header in the machine's byte order, as a TUN device has it unless it is told
// otherwise.
func (o *Offload) encode(b []byte) {
	_ = b[offloadLen-1]
	b[0] = 0
	if o.NeedsChecksum {
		b[0] = needsChecksum
	}
	b[1] = byte(o.GSO)
	binary.NativeEndian.PutUint16(b[2:], o.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], o.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], o.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], o.ChecksumOffset)
}

func (o *Offload) decode(b []byte) {
	_ = b[offloadLen-1]
	o.NeedsChecksum = b[0]&needsChecksum != 0
	o.GSO = GSO(b[1])
	o.HeaderLen = binary.NativeEndian.Uint16(b[2:])
	o.GSOSize = binary.NativeEndian.Uint16(b[4:])
	o.ChecksumStart = binary.NativeEndian.Uint16(b[6:])
	o.ChecksumOffset = binary.NativeEndian.Uint16(b[8:])
}

package tunnel

import (
	"encoding/binary"
	"errors"
)

// ErrDeviceGone is returned by a Device that was deleted, and then by Run. The owner may open
// another device and call Run again with other endpoints.
var ErrDeviceGone = errors.New("network device is gone")

// ErrInterrupted is returned by calls that are ended by Interrupt.
var ErrInterrupted = errors.New("interrupted")

// Offloads selects the offloads to use. Those that the kernel does not support are not used.
type Offloads struct {
	TUN        bool // super-packets between the IP stack and the tunnel
	UDPSegment bool // UDP_SEGMENT: many datagrams in one message to send
	UDPGRO     bool // UDP_GRO: many datagrams in one message received
}

// AllOffloads returns the default: all offloads.
func AllOffloads() Offloads { return Offloads{TUN: true, UDPSegment: true, UDPGRO: true} }

// A Device is where packets leave and enter the IP stack of this host; in production a *TUN. One
// goroutine reads and another one writes.
type Device interface {
	// Read waits for a packet, and returns it together with those that are already available, as
	// far as packets and buf have room. It does not wait for a second one. Each Data is a slice of
	// buf and belongs to the caller, as does buf. buf must have at least readRoom bytes.
	Read(packets []Packet, buf []byte) (int, error)

	// Write passes one packet or super-packet, the concatenation of parts, to the IP stack. It does
	// not keep the parts. An error other than ErrDeviceGone concerns this packet only.
	Write(o Offload, parts [][]byte) error

	// SuperPackets reports for which protocols Write accepts packets with a GSOSize.
	SuperPackets() (tcp, udp bool)

	// Interrupt makes a waiting Read and all later ones return ErrInterrupted.
	Interrupt()

	// Close closes the device. A TUN is deleted unless another descriptor of it is open. No other
	// method may be running.
	Close() error
}

// A Packet is an IPv4 packet, or a super-packet that stands for several (segmentation-offloads.rst
// in the kernel's documentation).
type Packet struct {
	Offload Offload
	Data    []byte // from the IP header to the end of the payload
}

// An Offload describes what must be done to a packet before it can be transmitted. It is a
// virtio_net_hdr (Virtual I/O Device 1.2, section 5.1.6), where all lengths are in bytes. The zero
// value means nothing.
type Offload struct {
	NeedsChecksum  bool
	GSO            GSO
	HeaderLen      uint16 // IP and transport header
	GSOSize        uint16 // payload of each segment; the last may be shorter
	ChecksumStart  uint16
	ChecksumOffset uint16 // from ChecksumStart
}

// GSO is the kind of a super-packet, VIRTIO_NET_HDR_GSO_*.
type GSO uint8

// The kinds of super-packets that the tunnel supports. The bit ECN may be combined with TCP4.
const (
	GSONone GSO = 0
	GSOTCP4 GSO = 1
	GSOUDP  GSO = 5
	GSOECN  GSO = 0x80
)

// offloadLen is the length of the header before each packet, in bytes.
const offloadLen = 10

const needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

// encode writes the header in host byte order, the default of a TUN device.
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

package tunnel

import (
	"errors"
	"net/netip"
)

// ErrNoSegmentation is returned by Socket.Send for a message that the kernel refuses to segment:
// the path to the peer has a smaller MTU, or its device has no checksum offload. The segments can
// be sent one by one.
var ErrNoSegmentation = errors.New("kernel refuses to segment")

// A Socket is where datagrams leave and enter this host; in production a *UDP. One goroutine
// receives and another one sends.
type Socket interface {
	// Receive waits for a datagram, and returns it together with those that are already available,
	// as far as ds has room. It does not wait for a second one. Data belongs to the socket; the
	// caller may read and change it until its next Receive.
	Receive(ds []Datagram) (int, error)

	// Send sends messages in order. On an error, n messages were sent before, and the error
	// concerns ms[n]. Nothing is kept.
	Send(ms []Message) (n int, err error)

	// MaxSegments returns the maximum number of segments of a message; 1 if the kernel cannot
	// segment.
	MaxSegments() int

	// Interrupt makes a waiting Receive or Send, and all later ones, return ErrInterrupted.
	Interrupt()

	// Close closes the socket. No other method may be running.
	Close() error
}

// A Datagram is a received datagram, or several of one sender that the kernel has merged.
type Datagram struct {
	Source netip.AddrPort
	Data   []byte
	// SegmentSize is the size of each datagram in Data, in bytes; the last may be shorter. It is 0
	// if there is only one.
	SegmentSize int
	Truncated   bool // the datagram was longer than any IPv4 packet
}

// A Message is a datagram to send, or several to one receiver that the kernel segments.
type Message struct {
	To          netip.AddrPort
	Parts       [][]byte // the payload is their concatenation
	Segments    int      // number of datagrams
	SegmentSize int      // of each datagram, in bytes; the last may be shorter

	peer int32
	size int // of the payload
}

// maxPayload is the maximum payload of one message, in bytes: a UDP datagram in an IPv4 packet
// without options.
const maxPayload = maxPacket - ipv4HeaderLen - udpHeaderLen

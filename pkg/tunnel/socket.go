package tunnel

import (
	"errors"
	"net/netip"
)

// ErrNoSegmentation is returned by Socket.Send for a message that the kernel refuses to cut into
// segments: the path to the peer has a smaller MTU, or its device has no checksum offload. One by
// one the segments would have been sent.
var ErrNoSegmentation = errors.New("kernel refuses to segment")

// A Socket is where datagrams leave and enter this host; in production a *UDP. One goroutine
// receives, while another one sends.
type Socket interface {
	// Receive waits for a datagram, takes with it those that are there already, as far as ds has
	// room, and returns their number. It never waits for a second one. Data belongs to the socket;
	// the caller may read and change it until its next Receive.
	Receive(ds []Datagram) (int, error)

	// Send sends messages in order. On an error, n tells how many were sent before, and the error
	// is about ms[n]. Nothing is kept.
	Send(ms []Message) (n int, err error)

	// MaxSegments is how many segments a message may have; 1 if the kernel can't segment.
	MaxSegments() int

	// Interrupt(true) ends a waiting Receive or Send, and all later ones, with ErrInterrupted,
	// until Interrupt(false).
	Interrupt(on bool)
}

// A Datagram is what was received: one datagram, or several of one sender that the kernel has put
// together.
type Datagram struct {
	Source netip.AddrPort
	Data   []byte
	// SegmentSize is in bytes, of each datagram in Data but the last, which may have less; 0 if
	// there is one.
	SegmentSize int
	Truncated   bool // the datagram was longer than any IPv4 packet
}

// A Message is what to send: one datagram, or several to one receiver that the kernel is to take
// apart.
type Message struct {
	To          netip.AddrPort
	Parts       [][]byte // the payload is their concatenation
	SegmentSize int      // as in Datagram
}

// maxPayload is the greatest payload of one message, in bytes: a UDP datagram in an IPv4 packet
// without options.
const maxPayload = maxPacket - ipv4HeaderLen - udpHeaderLen

package tunnel

import "sync/atomic"

// A Direction is one of the two ways of a packet.
type Direction uint8

// The two ways of a packet.
const (
	Out Direction = iota // from this host to a peer
	In                   // from a peer to this host
)

// String returns the direction as a metric's label.
func (d Direction) String() string {
	if d == Out {
		return "out"
	}
	return "in"
}

// A Reason tells why a packet was dropped.
type Reason uint8

// Reasons to drop a packet, out of the overlay first, then into it.
const (
	NotIPv4            Reason = iota // either way: another IP version, or nothing of the kind
	Malformed                        // either way: not one whole IPv4 packet
	BadChecksum                      // either way: its header was damaged
	TTLExceeded                      // either way; answered by ICMP time exceeded
	NoRoute                          // out: no peer has the destination; answered by ICMP
	SendFailed                       // out: the socket refused it
	UnknownSource                    // in: the datagram's source is no peer's address
	SourcePort                       // in: it is, but the port is not the peer's
	SpoofedSource                    // in: the inner source belongs to another part of the network
	ForeignDestination               // in: the inner destination is not in our subnet
	Oversize                         // in: longer than the device's MTU; answered by ICMP
	DeviceRefused                    // in: the device did not take it, for example because it is down
	reasons
)

// String returns the reason as a metric's label.
func (r Reason) String() string {
	if r >= reasons {
		return "unknown"
	}
	return [reasons]string{
		"not_ipv4", "malformed", "bad_checksum", "ttl_exceeded", "no_route", "send_failed",
		"unknown_source", "source_port", "spoofed_source", "foreign_destination", "oversize",
		"device_refused",
	}[r]
}

// Count is an amount of inner packets and of their bytes, IP headers included.
type Count struct{ Packets, Bytes uint64 }

func (c *Count) add(o Count) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
}

// PeerStats is the traffic with one peer. Packets of addresses outside the network count for any
// one peer of that sender.
type PeerStats struct {
	Peer           Peer
	Sent, Received Count
	Unsegmented    bool // the kernel has lately refused to segment, see ErrNoSegmentation
}

// Drop is how many packets were dropped on one way for one reason.
type Drop struct {
	Direction Direction
	Reason    Reason
	Packets   uint64
}

// Stats is what a tunnel has done since New, or all tunnels of a Driver. The numbers are read one
// after another, while traffic goes on.
type Stats struct {
	Sent, Received Count       // with all peers that there have been
	Drops          []Drop      // of every reason that there is, also those that have not occurred
	Peers          []PeerStats // of the present table, in its order
}

// possible reports whether packets are dropped on one way for a reason.
func possible(d Direction, r Reason) bool {
	return r <= TTLExceeded || (r <= SendFailed) == (d == Out)
}

// add adds what other tunnels have done.
func (s *Stats) add(o Stats) {
	s.Sent.add(o.Sent)
	s.Received.add(o.Received)
	for i, d := range o.Drops {
		s.Drops[i].Packets += d.Packets
	}
	s.Peers = append(s.Peers, o.Peers...)
}

// counters of the whole tunnel. Sending and receiving goroutines write to different cache lines.
type counters struct {
	out, in directionCounters
}

// directionCounters is what is counted of one direction.
type directionCounters struct {
	all   meter
	drops [reasons]atomic.Uint64
	_     [64]byte
}

func (w *directionCounters) drop(r Reason, packets int) { w.drops[r].Add(uint64(packets)) }

// stats returns what was counted, without peers.
func (c *counters) stats() Stats {
	s := Stats{Sent: c.out.all.count(), Received: c.in.all.count()}
	for d, w := range []*directionCounters{Out: &c.out, In: &c.in} {
		for r := range reasons {
			if possible(Direction(d), r) {
				s.Drops = append(s.Drops, Drop{Direction(d), r, w.drops[r].Load()})
			}
		}
	}
	return s
}

// peerState is what the tunnel knows of a peer. It outlives tables. Sending and receiving
// goroutines write to different cache lines.
type peerState struct {
	sent meter
	// plain is until when there is no segmentation, by the tunnel's clock in nanoseconds; 0: there is.
	unsegmentedUntil atomic.Int64
	_                [40]byte
	rcvd             meter
	_                [48]byte
}

type meter struct{ packets, bytes atomic.Uint64 }

func (m *meter) add(packets, bytes int) {
	m.packets.Add(uint64(packets))
	m.bytes.Add(uint64(bytes))
}

func (m *meter) count() Count { return Count{m.packets.Load(), m.bytes.Load()} }

package tunnel

import "sync/atomic"

// A Direction is the direction of a packet.
type Direction uint8

// Directions of packets.
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

// A Reason is why a packet was dropped.
type Reason uint8

// Reasons to drop a packet: first those of both directions, then those of Out, then those of In.
const (
	NotIPv4            Reason = iota // both: another IP version, or no IP packet
	Malformed                        // both: not exactly one IPv4 packet
	BadChecksum                      // both: wrong header checksum
	TTLExceeded                      // both; answered by ICMP time exceeded
	NoRoute                          // out: no peer has the destination; answered by ICMP unreachable
	SendFailed                       // out: the socket returned an error
	UnknownSource                    // in: the datagram's source is no peer's address
	SourcePort                       // in: the datagram's source port is not the peer's
	SpoofedSource                    // in: the inner source address does not belong to the sender
	ForeignDestination               // in: the inner destination address is not in our subnet
	Oversize                         // in: longer than the device's MTU; answered by ICMP
	DeviceRefused                    // in: the device returned an error, for example because it is down
	reasons
)

// String returns the reason as a metric's label.
func (r Reason) String() string {
	return [reasons]string{
		"not_ipv4", "malformed", "bad_checksum", "ttl_exceeded", "no_route", "send_failed",
		"unknown_source", "source_port", "spoofed_source", "foreign_destination", "oversize",
		"device_refused",
	}[r]
}

// Count is a number of inner packets and of their bytes, including IP headers.
type Count struct{ Packets, Bytes uint64 }

// PeerStats is the traffic with one peer. Packets with addresses outside the network are counted
// for one of the sender's peers.
type PeerStats struct {
	Peer           Peer
	Sent, Received Count
	Unsegmented    bool // the kernel has recently refused to segment, see ErrNoSegmentation
}

// Drop is the number of packets that were dropped in one direction for one reason.
type Drop struct {
	Direction Direction
	Reason    Reason
	Packets   uint64
}

// Stats are the totals of a tunnel since New, or of all tunnels of a Driver. The numbers are read
// one after another while traffic continues.
type Stats struct {
	Sent, Received Count       // to and from all peers, including previous ones
	Drops          []Drop      // of every possible reason, also if the number is 0
	Peers          []PeerStats // of the present table, in its order
}

// possible reports whether packets of a direction can be dropped for a reason.
func possible(d Direction, r Reason) bool {
	return r <= TTLExceeded || (r <= SendFailed) == (d == Out)
}

// counters are the totals of a tunnel, or of all tunnels of a Driver. The two goroutines write to
// different cache lines.
type counters struct {
	out, in directionCounters
}

// directionCounters are the totals of one direction.
type directionCounters struct {
	all   meter
	drops [reasons]atomic.Uint64
	_     [64]byte
}

func (w *directionCounters) drop(r Reason, packets int) { w.drops[r].Add(uint64(packets)) }

// stats returns the totals, without peers.
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

// peerState is the state of a peer. It is kept when the table is replaced. The two goroutines write
// to different cache lines.
type peerState struct {
	sent meter
	// unsegmentedUntil is the time until which no segmented messages are sent, by the tunnel's
	// clock in nanoseconds; 0 if they are.
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

package tunnel

import "sync/atomic"

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

// PeerStats is the traffic with one peer. Packets of addresses outside the network count for any
// one peer of that sender.
type PeerStats struct {
	Peer           Peer
	Sent, Received Count
	Unsegmented    bool // the kernel has lately refused to segment, see ErrNoSegmentation
}

// Drop is how many packets were dropped for one reason.
type Drop struct {
	Reason  Reason
	Packets uint64
}

// Stats is what the tunnel has done since New. The numbers are read one after another, while
// traffic goes on.
type Stats struct {
	Peers []PeerStats // of the present table, in its order
	Drops []Drop      // of every reason, also those that have not occurred
	ICMP  uint64      // ICMP errors sent
}

// counters of the whole tunnel.
type counters struct {
	drops [reasons]atomic.Uint64
	icmp  atomic.Uint64
}

func (c *counters) drop(r Reason, packets int) { c.drops[r].Add(uint64(packets)) }

// peerState is what the tunnel knows of a peer. It outlives tables. Sending and receiving
// goroutines write to different cache lines.
type peerState struct {
	sent meter
	// plain is until when there is no segmentation, by the tunnel's clock in nanoseconds; 0: there is.
	plain atomic.Int64
	_     [40]byte
	rcvd  meter
	_     [48]byte
}

type meter struct{ packets, bytes atomic.Uint64 }

func (m *meter) add(packets, bytes int) {
	m.packets.Add(uint64(packets))
	m.bytes.Add(uint64(bytes))
}

func (m *meter) count() Count { return Count{m.packets.Load(), m.bytes.Load()} }

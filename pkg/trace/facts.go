package trace

import (
	"errors"
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/status"
)

// Known is a value that may be unknown. The zero Known is.
type Known[T any] struct {
	Value T    // zero if it is unknown
	Is    bool // it is known
	Err   error
}

// Is returns a known value.
func Is[T any](v T) Known[T] { return Known[T]{Value: v, Is: true} }

// IsNot returns an unknown value, with the reason.
func IsNot[T any](err error) Known[T] { return Known[T]{Err: err} }

// why returns the reason why the value is not known.
func (k Known[T]) why() error {
	if k.Err == nil {
		return errNotRead
	}
	return k.Err
}

// errNotRead is the reason why a value is unknown for which there is no other.
var errNotRead = errors.New("it was not read")

// Facts are what is known on this host about the way of a packet.
type Facts struct {
	Src, Dst Side
	Daemon   Daemon

	Network, Subnet netip.Prefix // Subnet is this host's
	Backend         string       // type; empty if unknown
	Device          string       // of the overlay; empty if the backend has none
	Uplink          string
	Addr, PublicIP  netip.Addr // of this host; invalid if unknown
	Port            uint16     // of the tunnel; 0 if there is none
	Gateway         netip.Addr // of this host's containers, by the subnet file
	Docker          bool       // there is a link docker0

	// Skipped says why this host leaves out the peer; empty if it does not, or if that is unknown.
	Skipped string
	// Want has the objects for the peer that this host should have, and Have those of the overlay
	// that it has.
	Want, Have Known[dataplane.State]
	// DeviceFaults is what is wrong with the overlay's device.
	DeviceFaults Known[[]string]

	// Out is the decision about a packet from the container of this host, In that about one to it,
	// and Outer that about one to the peer's public IP.
	Out, In, Outer Known[host.Decision]
	// OutForwards and InForwards are whether the devices forward that these packets arrive by.
	OutForwards, InForwards Known[bool]
	// NextHop is the neighbour to which packets for the peer's public IP are sent.
	NextHop Known[host.Neighbor]
	// UplinkState is the interface that packets to the peer leave by.
	UplinkState Known[host.Iface]

	// OutRules and InRules are what the packet filters do with packets from and to the container of
	// this host, TunnelOut and TunnelIn what they do with the tunnel's.
	OutRules, InRules, TunnelOut, TunnelIn Known[[]Filtered]
	ShowRules                              string // command that lists all rules

	Peer Peer
}

// Side is one of the two addresses.
type Side struct {
	Addr  netip.Addr
	Here  bool // it is in this host's subnet
	Owner Known[Owner]
	// Delivery and Neighbor are about a container of this host: the decision about a packet to it,
	// and its entry in the neighbour table.
	Delivery Known[host.Decision]
	Neighbor Known[host.Neighbor]
}

// Owner is the host with the subnet of an address.
type Owner struct {
	lease.Lease
	Found   bool
	Damaged error  // why the value of the lease cannot be used, if it is not Found
	Command string // that shows the lease
}

// Daemon is this host's flanneld.
type Daemon struct {
	Text    string // for people
	Down    bool
	Stopped bool // by a signal
	PID     int  // 0 if it is unknown
}

// Peer is what is known of the other host.
type Peer struct {
	// Entry is what this host's flanneld knows of it.
	Entry Known[status.Peer]
	// Status is what the peer's flanneld says, with this host as the only one of its peers.
	Status Known[status.Document]
	// Asked is the command that shows Status; empty if it was not asked.
	Asked string
	// PublicIP, Overlay and Container are whether these answer pings: the peer's public IP, its
	// address in the overlay, and the container there.
	PublicIP, Overlay, Container Known[bool]
	OverlayAddr                  netip.Addr
	// Ping is the command that pings through the overlay, without the address.
	Ping string
}

// pingOf returns the command that pings an address through the overlay, or "" if there is none.
func (p Peer) pingOf(a netip.Addr) string {
	if p.Ping == "" || !a.IsValid() {
		return ""
	}
	return p.Ping + " " + a.String()
}

// Fate is what the packet filters do with a packet.
type Fate int

// Values of Fate.
const (
	Passes     Fate = iota
	Dropped         // by Rule
	Unclear         // depends on Rule, which cannot be evaluated
	Translated      // Rule gives it another source address
)

// Filtered is what the packet filters do with one kind of packet.
type Filtered struct {
	What    string // such as "new TCP packets"
	Fate    Fate
	Rule    string // for people
	Command string // that shows the chain of the rule
	Remedy  string // command that lets the packets pass
}

// Role returns where this host is.
func (f *Facts) Role() Role {
	switch {
	case f.Src.Here && f.Dst.Here:
		return Both
	case f.Src.Here:
		return Sender
	case f.Dst.Here:
		return Receiver
	}
	return Neither
}

// Near returns the side on this host, if there is one.
func (f *Facts) Near() Side {
	if f.Src.Here {
		return f.Src
	}
	return f.Dst
}

// Far returns the other side.
func (f *Facts) Far() Side {
	if f.Src.Here {
		return f.Dst
	}
	return f.Src
}

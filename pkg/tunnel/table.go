package tunnel

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// A Peer is another host of the overlay: packets to Subnet are sent to Addr.
type Peer struct {
	Subnet netip.Prefix
	Addr   netip.AddrPort
}

// An Overlay describes this host's place in the overlay. All addresses are IPv4.
type Overlay struct {
	Network netip.Prefix // of the whole overlay
	Own     netip.Prefix // this host's subnet; the device has its first address
	MTU     int          // of the device, in bytes
	Peers   []Peer       // of two with the same subnet the later one is used

	// AllowUnknownSources accepts every packet, from any sender, port and inner address.
	AllowUnknownSources bool
}

// A Table is an Overlay with an index of addresses. It is immutable.
type Table struct {
	overlay Overlay
	own     uint32
	ownMask uint32
	network uint32
	netMask uint32

	lengths []prefixSet      // the prefix lengths in use, longest first
	hosts   map[uint32]int32 // from a peer's address to the index of the first peer there
}

// none is the index if there is no peer.
const none = int32(-1)

// minMTU is the minimum MTU of a link: every module must be able to forward 68 bytes (RFC 791).
const minMTU = 68

// NewTable returns the table of an overlay, whose addresses must be valid. It copies the peers.
func NewTable(o Overlay) *Table {
	o.Peers = slices.Clone(o.Peers)
	t := &Table{overlay: o, hosts: make(map[uint32]int32, len(o.Peers))}
	t.own, t.ownMask = word(o.Own.Masked().Addr()), mask(o.Own.Bits())
	t.network, t.netMask = word(o.Network.Masked().Addr()), mask(o.Network.Bits())
	var count [33]int
	for i, p := range o.Peers {
		o.Peers[i].Subnet = p.Subnet.Masked()
		count[p.Subnet.Bits()]++
		host := word(p.Addr.Addr())
		if _, known := t.hosts[host]; !known {
			t.hosts[host] = int32(i)
		}
	}
	for length, n := range slices.Backward(count[:]) {
		if n == 0 {
			continue
		}
		s := newPrefixSet(length, n)
		for i, p := range o.Peers {
			if p.Subnet.Bits() == length {
				s.insert(word(p.Subnet.Addr()), int32(i))
			}
		}
		t.lengths = append(t.lengths, s)
	}
	return t
}

// lookup returns the peer with the longest subnet that contains an address.
func (t *Table) lookup(a uint32) int32 {
	for i := range t.lengths {
		if peer := t.lengths[i].find(a); peer != none {
			return peer
		}
	}
	return none
}

// admit reports whether a datagram may contain a packet with these inner addresses, and which of
// the sender's peers it belongs to. host and port are the outer source. All peers send from the
// port that they receive on, which no other process can use; other processes of the host, and
// connections that it masquerades, have other ports.
func (t *Table) admit(host uint32, port uint16, src, dst uint32) (peer int32, why Reason, ok bool) {
	first, known := t.hosts[host]
	if t.overlay.AllowUnknownSources {
		if !known {
			first = none
		}
		return first, 0, true
	}
	if !known {
		return none, UnknownSource, false
	}
	peer = t.lookup(src)
	sender := first
	if peer != none && word(t.overlay.Peers[peer].Addr.Addr()) == host {
		sender = peer
	}
	switch {
	case t.overlay.Peers[sender].Addr.Port() != port:
		return none, SourcePort, false
	case peer != none && sender != peer:
		return none, SpoofedSource, false
	case peer == none && (src&t.netMask == t.network || src&t.ownMask == t.own):
		return none, SpoofedSource, false
	case dst&t.ownMask != t.own:
		return none, ForeignDestination, false
	case peer == none:
		peer = first
	}
	return peer, 0, true
}

// A prefixSet maps the prefixes of one length to peers, by open addressing: a lookup is a
// multiplication and, because at most half of the slots are used, hardly more than one memory
// access.
type prefixSet struct {
	mask  uint32
	shift uint
	slots []slot // their number is a power of two
}

type slot struct {
	prefix uint32
	peer   int32 // plus 1; 0 if the slot is free
}

func newPrefixSet(length, count int) prefixSet {
	width := max(1, bits.Len(uint(2*count-1)))
	return prefixSet{mask: mask(length), shift: uint(32 - width), slots: make([]slot, 1<<width)}
}

// home returns the first slot to try for a prefix: Fibonacci hashing (Knuth, TAOCP volume 3,
// section 6.4) distributes adjacent prefixes evenly.
func (s *prefixSet) home(prefix uint32) int { return int(prefix * 0x9e3779b1 >> s.shift) }

func (s *prefixSet) insert(prefix uint32, peer int32) {
	i := s.home(prefix)
	for s.slots[i].peer != 0 && s.slots[i].prefix != prefix {
		i = (i + 1) & (len(s.slots) - 1)
	}
	s.slots[i] = slot{prefix, peer + 1}
}

func (s *prefixSet) find(a uint32) int32 {
	a &= s.mask
	slots := s.slots
	for i := s.home(a) & (len(slots) - 1); ; i = (i + 1) & (len(slots) - 1) {
		if e := &slots[i]; e.peer == 0 || e.prefix == a {
			return e.peer - 1
		}
	}
}

func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func mask(length int) uint32 { return ^(1<<(32-length) - 1) }

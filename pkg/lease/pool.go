package lease

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Pool is the set of subnets of one family that hosts may lease: those of SubnetLen bits from Min
// to Max, at most 2⁶⁴-1 subnets. The zero Pool is empty, and so is a larger one.
type Pool struct {
	Network   netip.Prefix // the whole network, for information; Min and Max define the pool
	SubnetLen int          // bits, 1 to 31, or 127 for IPv6
	Min, Max  netip.Addr   // addresses of the first and the last subnet, inclusive
}

// NewPool returns the pool of all subnets of a network except the first.
func NewPool(network netip.Prefix, subnetLen int) Pool {
	p := Pool{network, subnetLen, network.Masked().Addr(), LastAddr(network)}
	first, n := p.slots()
	p.Min, p.Max = p.address(first+1), p.address(first+n-1)
	return p
}

// Size returns the number of subnets in the pool, leased or not.
func (p Pool) Size() uint64 {
	_, n := p.slots()
	return n
}

// Cover returns the smallest set of prefixes that covers exactly the subnets of the pool.
func (p Pool) Cover() []netip.Prefix {
	var cover []netip.Prefix
	for start, n := p.slots(); n > 0; {
		bits := p.SubnetLen // of the prefix that starts at start
		size := uint64(1)
		for bits > 0 && size <= n/2 && start%(2*size) == 0 {
			bits, size = bits-1, 2*size
		}
		cover = append(cover, netip.PrefixFrom(p.address(start), bits))
		start, n = start+size, n-size
	}
	return cover
}

// Fits reports whether subnet is in the pool.
func (p Pool) Fits(subnet netip.Prefix) bool {
	first, n := p.slots()
	return n > 0 && subnet.IsValid() && subnet.Bits() == p.SubnetLen && subnet.Masked() == subnet &&
		p.address(first).Compare(subnet.Addr()) <= 0 && subnet.Addr().Compare(p.address(first+n-1)) <= 0
}

// Pick returns a subnet that overlaps none of taken, each free one with the same probability, or
// false if there is none. taken may have any prefixes: of other lengths, duplicates, outside the
// pool or of the other family. random(n) must return a number below n. The cost is that of sorting
// taken and does not depend on the size of the pool.
func (p Pool) Pick(taken []netip.Prefix, random func(n uint64) uint64) (netip.Prefix, bool) {
	first, n := p.slots()
	blocked := p.blocked(taken)
	free := n
	for _, b := range blocked {
		free -= b.end - b.start
	}
	if free == 0 {
		return netip.Prefix{}, false
	}
	slot := random(free)
	// slot counts free subnets only, so each blocked run at or before it shifts it.
	for _, b := range blocked {
		if b.start > slot {
			break
		}
		slot += b.end - b.start
	}
	return netip.PrefixFrom(p.address(first+slot), p.SubnetLen), true
}

// run is a half-open range of subnets, counted from the first one in the pool.
type run struct{ start, end uint64 }

// blocked returns the runs of subnets that overlap taken: sorted, disjoint and within the pool.
func (p Pool) blocked(taken []netip.Prefix) []run {
	first, n := p.slots()
	if n == 0 {
		return nil
	}
	least, most := p.address(first), LastAddr(netip.PrefixFrom(p.address(first+n-1), p.SubnetLen))
	runs := make([]run, 0, len(taken))
	for _, t := range taken {
		if !t.IsValid() || t.Addr().BitLen() != least.BitLen() {
			continue
		}
		from, to := t.Masked().Addr(), LastAddr(t)
		if to.Less(least) || most.Less(from) {
			continue
		}
		r := run{0, n}
		if least.Less(from) {
			r.start = p.slot(from) - first
		}
		if to.Less(most) {
			r.end = p.slot(to) - first + 1
		}
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	merged := runs[:0]
	for _, r := range runs {
		if len(merged) > 0 && r.start <= merged[len(merged)-1].end {
			prev := &merged[len(merged)-1]
			prev.end = max(prev.end, r.end)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// A slot is the number of a subnet: its address without the host bits. If that is longer than 64
// bits, the slot has the last 64. The others are the same in the whole pool.

// slots returns the first slot of the pool and the number of slots. Bounds that are not the start
// of a subnet are moved inwards.
func (p Pool) slots() (first, n uint64) {
	if p.SubnetLen < 1 || p.SubnetLen >= p.Min.BitLen() || p.Max.BitLen() != p.Min.BitLen() {
		return 0, 0
	}
	first = p.slot(p.Min)
	if p.address(first) != p.Min {
		first++
	}
	last := p.slot(p.Max)
	begin, end := p.address(first), netip.PrefixFrom(p.Max, p.SubnetLen).Masked().Addr()
	if begin.Less(p.Min) || end.Less(begin) || p.address(last) != end {
		return 0, 0
	}
	return first, last - first + 1
}

// slot returns the slot of an address.
func (p Pool) slot(a netip.Addr) uint64 {
	hi, lo := words(a)
	if host := p.hostBits(); host < 64 {
		return hi<<(64-host) | lo>>host
	}
	return hi >> (p.hostBits() - 64)
}

// address returns the first address of a slot.
func (p Pool) address(slot uint64) netip.Addr {
	host := p.hostBits()
	if host >= 64 {
		return fromWords(slot<<(host-64), 0)
	}
	hi, _ := words(p.Min)
	return fromWords(hi>>host<<host|slot>>(64-host), slot<<host)
}

// hostBits returns the number of host bits in a subnet.
func (p Pool) hostBits() int { return p.Min.BitLen() - p.SubnetLen }

// LastAddr returns the last address of a prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	hi, lo := words(p.Addr())
	if host := p.Addr().BitLen() - p.Bits(); host < 64 {
		lo |= 1<<host - 1
	} else {
		hi, lo = hi|(1<<(host-64)-1), 1<<64-1
	}
	return fromWords(hi, lo)
}

// words returns an address as two 64-bit words. An IPv4 address is mapped to IPv6 (RFC 4291,
// section 2.5.5.2), so that its bits are the last.
func words(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// fromWords is the inverse of words.
func fromWords(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b).Unmap()
}

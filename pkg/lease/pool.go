package lease

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Pool is the set of subnets that hosts may lease: those of SubnetLen bits
// from Min to Max. The zero Pool is empty.
type Pool struct {
	Network   netip.Prefix // the whole; only named, Min and Max say what is used
	SubnetLen int          // bits, 1 to 31
	Min, Max  netip.Addr   // network addresses of the first and the last subnet, inclusive
}

// Size gives the number of subnets in the pool, leased or not.
func (p Pool) Size() uint64 {
	_, n := p.slots()
	return n
}

// Cover returns the fewest prefixes that hold all subnets of the pool and nothing else.
func (p Pool) Cover() []netip.Prefix {
	first, n := p.slots()
	var cover []netip.Prefix
	for start, end := first, first+n; start < end; {
		bits := p.SubnetLen // of the prefix that begins at start
		size := uint64(1)
		for bits > 0 && start%(2*size) == 0 && start+2*size <= end {
			bits, size = bits-1, 2*size
		}
		cover = append(cover, netip.PrefixFrom(address(start<<p.shift()), bits))
		start += size
	}
	return cover
}

// Fits tells whether subnet is one of the pool's.
func (p Pool) Fits(subnet netip.Prefix) bool {
	first, n := p.slots()
	if n == 0 || !subnet.Addr().Is4() || subnet.Bits() != p.SubnetLen || subnet.Masked() != subnet {
		return false
	}
	slot := number(subnet.Addr()) >> p.shift()
	return slot >= first && slot-first < n
}

// Pick chooses a subnet that overlaps none of taken, each free one with the
// same chance; false means that there is none. taken may hold anything: other
// lengths, duplicates, prefixes outside the pool. random(n) must give a number
// below n. The cost is that of sorting taken, whatever the size of the pool.
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
	slot := first + random(free)
	// slot counts free subnets only; every blocked run at or before it pushes it on.
	for _, b := range blocked {
		if b.start > slot {
			break
		}
		slot += b.end - b.start
	}
	return netip.PrefixFrom(address(slot<<p.shift()), p.SubnetLen), true
}

// run is a half-open range of slots. A slot is a subnet's number: its
// address shifted right by the host bits.
type run struct{ start, end uint64 }

// slots gives the number of the pool's first slot and how many there are.
// Bounds off the SubnetLen grid are moved inwards.
func (p Pool) slots() (first, n uint64) {
	if p.SubnetLen < 1 || p.SubnetLen > 31 || !p.Min.Is4() || !p.Max.Is4() {
		return 0, 0
	}
	shift := p.shift()
	first = (number(p.Min) + 1<<shift - 1) >> shift
	end := number(p.Max)>>shift + 1
	if end <= first {
		return 0, 0
	}
	return first, end - first
}

// blocked gives the runs of the pool's slots that taken overlaps: sorted,
// disjoint and within the pool.
func (p Pool) blocked(taken []netip.Prefix) []run {
	first, n := p.slots()
	if n == 0 {
		return nil
	}
	runs := make([]run, 0, len(taken))
	for _, t := range taken {
		if !t.IsValid() || !t.Addr().Is4() {
			continue
		}
		start := number(t.Masked().Addr())
		last := start + 1<<(32-t.Bits()) - 1
		r := run{max(start>>p.shift(), first), min(last>>p.shift()+1, first+n)}
		if r.start < r.end {
			runs = append(runs, r)
		}
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

// shift is the number of host bits of a subnet.
func (p Pool) shift() int { return 32 - p.SubnetLen }

func number(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func address(n uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

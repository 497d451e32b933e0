package lease_test

import (
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lease"
)

func pool(length int, first, last string) lease.Pool {
	return lease.Pool{SubnetLen: length, Min: netip.MustParseAddr(first), Max: netip.MustParseAddr(last)}
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

func TestPoolSizeAndFits(t *testing.T) {
	for _, c := range []struct {
		pool lease.Pool
		size uint64
		fits []netip.Prefix
		not  []netip.Prefix
	}{
		{pool(24, "10.42.1.0", "10.42.255.0"), 255,
			prefixes("10.42.1.0/24", "10.42.255.0/24"),
			append(prefixes("10.42.0.0/24", "10.43.0.0/24", "10.42.1.0/25", "10.42.2.0/23", "10.42.1.1/24", "fd00::/24"), netip.Prefix{})},
		{pool(24, "10.42.1.0", "10.42.1.0"), 1, prefixes("10.42.1.0/24"), prefixes("10.42.2.0/24")},
		{pool(24, "10.42.2.0", "10.42.1.0"), 0, nil, prefixes("10.42.1.0/24", "10.42.2.0/24")},
		{pool(30, "10.0.0.4", "10.255.255.252"), 1<<22 - 1, prefixes("10.255.255.252/30"), prefixes("10.0.0.0/30")},
		{pool(31, "0.0.0.0", "255.255.255.254"), 1 << 31, prefixes("0.0.0.0/31", "255.255.255.254/31"), nil},
		{pool(24, "10.42.1.128", "10.42.3.128"), 2, prefixes("10.42.2.0/24", "10.42.3.0/24"), prefixes("10.42.1.0/24")},
		{pool(32, "10.42.1.0", "10.42.3.0"), 0, nil, prefixes("10.42.1.0/32")},
		{pool(64, "fd42:0:0:1::", "fd42:0:0:ffff::"), 65535,
			prefixes("fd42:0:0:1::/64", "fd42:0:0:ffff::/64"),
			prefixes("fd42::/64", "fd42:0:1::/64", "fd42:0:0:1::/65", "fd42:0:0:2::/63", "fd42:0:0:2::1/64", "10.42.1.0/24")},
		{pool(126, "fd42::4", "fd42::ffff:ffff:ffff:fffc"), 1<<62 - 1, prefixes("fd42::4/126", "fd42::8000:0:0:0/126"), prefixes("fd42::/126", "fd42:0:0:1::/126")},
		{pool(127, "fd42::ffff:0:0:0", "fd42:0:0:1::"), 1<<47 + 1, prefixes("fd42::ffff:0:0:0/127", "fd42:0:0:1::/127"), prefixes("fd42:0:0:1::2/127")},
		{pool(127, "fd42::", "fd43::"), 0, nil, prefixes("fd42::/127")}, // more than a uint64 can count
		{pool(128, "fd42::", "fd42::1"), 0, nil, prefixes("fd42::/128")},
		{pool(24, "10.42.1.0", "fd42::"), 0, nil, prefixes("10.42.1.0/24")},
		{lease.Pool{}, 0, nil, prefixes("10.42.1.0/24")},
	} {
		if got := c.pool.Size(); got != c.size {
			t.Errorf("%+v has size %d, want %d", c.pool, got, c.size)
		}
		for _, p := range c.fits {
			if !c.pool.Fits(p) {
				t.Errorf("%s does not fit %+v", p, c.pool)
			}
		}
		for _, p := range c.not {
			if c.pool.Fits(p) {
				t.Errorf("%s fits %+v", p, c.pool)
			}
		}
	}
}

func TestNewPool(t *testing.T) {
	for _, c := range []struct {
		network     string
		length      int
		first, last string
		size        uint64
	}{
		{"10.42.0.0/16", 24, "10.42.1.0", "10.42.255.0", 255},
		{"10.42.7.9/28", 30, "10.42.7.4", "10.42.7.12", 3},
		{"128.0.0.0/1", 30, "128.0.0.4", "255.255.255.252", 1<<29 - 1},
		{"fd42::/48", 64, "fd42:0:0:1::", "fd42:0:0:ffff::", 65535},
		{"fd42::/64", 126, "fd42::4", "fd42::ffff:ffff:ffff:fffc", 1<<62 - 1},
	} {
		network := netip.MustParsePrefix(c.network)
		want := lease.Pool{Network: network, SubnetLen: c.length, Min: netip.MustParseAddr(c.first), Max: netip.MustParseAddr(c.last)}
		if got := lease.NewPool(network, c.length); got != want || got.Size() != c.size {
			t.Errorf("%s with /%d: %+v of %d, want %+v of %d", network, c.length, got, got.Size(), want, c.size)
		}
	}
}

func TestPick(t *testing.T) {
	p := pool(24, "10.42.1.0", "10.42.4.0")
	for _, c := range []struct {
		name  string
		taken []netip.Prefix
		want  []string // for random numbers 0, 1, …
	}{
		{"none taken", nil, []string{"10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24", "10.42.4.0/24"}},
		{"some", prefixes("10.42.3.0/24", "10.42.1.0/24"), []string{"10.42.2.0/24", "10.42.4.0/24"}},
		{"twice", prefixes("10.42.1.0/24", "10.42.1.0/24"), []string{"10.42.2.0/24", "10.42.3.0/24", "10.42.4.0/24"}},
		{"longer", prefixes("10.42.2.64/26", "10.42.2.252/30"), []string{"10.42.1.0/24", "10.42.3.0/24", "10.42.4.0/24"}},
		{"shorter", prefixes("10.42.2.0/23", "10.42.2.0/24"), []string{"10.42.1.0/24", "10.42.4.0/24"}},
		{"outside", append(prefixes("10.43.0.0/16", "10.42.0.0/24", "fd00::/8"), netip.Prefix{}), []string{"10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24", "10.42.4.0/24"}},
		{"over the edge", prefixes("10.42.4.0/22"), []string{"10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"}},
		{"whole", prefixes("10.42.0.0/16"), nil},
		{"everything", prefixes("0.0.0.0/0"), nil},
		{"one by one", prefixes("10.42.4.0/24", "10.42.3.0/24", "10.42.2.0/24", "10.42.1.0/24"), nil},
	} {
		for i, want := range c.want {
			got, ok := p.Pick(c.taken, func(n uint64) uint64 {
				if n != uint64(len(c.want)) {
					t.Errorf("%s: chooses among %d, want %d", c.name, n, len(c.want))
				}
				return uint64(i)
			})
			if !ok || got.String() != want {
				t.Errorf("%s: %d gives %s, %v, want %s", c.name, i, got, ok, want)
			}
		}
		if len(c.want) == 0 {
			if got, ok := p.Pick(c.taken, func(uint64) uint64 { return 0 }); ok {
				t.Errorf("%s: picks %s", c.name, got)
			}
		}
	}
}

// TestPickAgainstWalk compares Pick with an iteration over all candidates.
func TestPickAgainstWalk(t *testing.T) {
	trials := 4000
	if testing.Short() { // on an emulated processor
		trials = 500
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range trials {
		// The length leaves at least 16 common bits and at least two host bits; for IPv6 it is
		// arbitrary.
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), 0, 0}), 16)
		if r.IntN(2) == 0 {
			bits := 16 + 8*r.IntN(12)
			block = netip.PrefixFrom(netip.MustParseAddr("fd42:4242:4242:4242:4242:4242:4242:4242"), bits).Masked()
		}
		length := block.Bits() + 4 + r.IntN(11)
		at := func() netip.Addr {
			a := block.Addr().AsSlice()
			a[block.Bits()/8], a[block.Bits()/8+1] = byte(r.IntN(256)), byte(r.IntN(256))
			addr, _ := netip.AddrFromSlice(a)
			return netip.PrefixFrom(addr, length).Masked().Addr()
		}
		p := lease.Pool{Network: block, SubnetLen: length, Min: at(), Max: at()}
		var taken []netip.Prefix
		for range r.IntN(40) {
			taken = append(taken, netip.PrefixFrom(at(), block.Bits()+r.IntN(16)))
		}
		var free []netip.Prefix
		for a := p.Min; a.Compare(p.Max) <= 0; {
			c := netip.PrefixFrom(a, length)
			if !overlapsAny(c, taken) {
				free = append(free, c)
			}
			a = nextSubnet(c)
		}
		if len(free) == 0 {
			if got, ok := p.Pick(taken, r.Uint64N); ok {
				t.Fatalf("%+v with %v taken: picks %s, none is free", p, taken, got)
			}
			continue
		}
		k := r.IntN(len(free))
		got, ok := p.Pick(taken, func(n uint64) uint64 {
			if n != uint64(len(free)) {
				t.Fatalf("%+v with %v taken: chooses among %d, want %d", p, taken, n, len(free))
			}
			return uint64(k)
		})
		if !ok || got != free[k] || !p.Fits(got) {
			t.Fatalf("%+v with %v taken: %d gives %s, want %s", p, taken, k, got, free[k])
		}
	}
}

func overlapsAny(p netip.Prefix, taken []netip.Prefix) bool {
	for _, q := range taken {
		if p.Overlaps(q) {
			return true
		}
	}
	return false
}

func nextSubnet(p netip.Prefix) netip.Addr {
	n := new(big.Int).SetBytes(p.Addr().AsSlice())
	n.Add(n, new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits())))
	a, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, p.Addr().BitLen()/8)))
	return a
}

// The cost for a pool of millions is that of the leases in it.
func TestPickInHugePool(t *testing.T) {
	p := pool(30, "10.0.0.4", "10.255.255.252")
	r := rand.New(rand.NewPCG(3, 4))
	var taken []netip.Prefix
	start := time.Now()
	for range 200 {
		got, ok := p.Pick(taken, r.Uint64N)
		if !ok || overlapsAny(got, taken) {
			t.Fatalf("picks %s, %v", got, ok)
		}
		taken = append(taken, got)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("200 picks took %v", d)
	}
}

func BenchmarkPick(b *testing.B) {
	p := pool(30, "10.0.0.4", "10.255.255.252")
	r := rand.New(rand.NewPCG(5, 6))
	taken := make([]netip.Prefix, 0, 20000)
	for len(taken) < cap(taken) {
		got, _ := p.Pick(taken[:min(len(taken), 10)], r.Uint64N)
		taken = append(taken, got)
	}
	for b.Loop() {
		p.Pick(taken, r.Uint64N)
	}
}

func TestCover(t *testing.T) {
	for _, c := range []struct {
		pool lease.Pool
		want []netip.Prefix
	}{
		{pool(24, "10.42.0.0", "10.42.255.0"), prefixes("10.42.0.0/16")},
		{pool(24, "10.42.1.0", "10.42.255.0"), prefixes("10.42.1.0/24", "10.42.2.0/23", "10.42.4.0/22", "10.42.8.0/21", "10.42.16.0/20", "10.42.32.0/19", "10.42.64.0/18", "10.42.128.0/17")},
		{pool(24, "10.42.7.0", "10.42.7.0"), prefixes("10.42.7.0/24")},
		{pool(24, "10.42.7.0", "10.42.8.0"), prefixes("10.42.7.0/24", "10.42.8.0/24")},
		{pool(20, "10.99.16.0", "10.100.32.0"), prefixes("10.99.16.0/20", "10.99.32.0/19", "10.99.64.0/18", "10.99.128.0/17", "10.100.0.0/19", "10.100.32.0/20")},
		{pool(31, "0.0.0.0", "255.255.255.254"), prefixes("0.0.0.0/0")},
		{pool(30, "255.255.255.248", "255.255.255.252"), prefixes("255.255.255.248/29")},
		{pool(64, "fd42:0:0:1::", "fd42:0:0:4::"), prefixes("fd42:0:0:1::/64", "fd42:0:0:2::/63", "fd42:0:0:4::/64")},
		{pool(64, "fd42::", "fd42:0:0:ffff::"), prefixes("fd42::/48")},
		{pool(64, "::", "ffff:ffff:ffff:fffe::"), append(prefixes("::/1", "8000::/2", "c000::/3"), rest64()...)},
		{lease.Pool{}, nil},
	} {
		if got := c.pool.Cover(); !slices.Equal(got, c.want) {
			t.Errorf("%s to %s: %v, want %v", c.pool.Min, c.pool.Max, got, c.want)
		}
	}
}

// rest64 is e000::/3 without its last /64.
func rest64() (all []netip.Prefix) {
	a := netip.MustParseAddr("e000::")
	for bits := 4; bits <= 64; bits++ {
		p := netip.PrefixFrom(a, bits)
		all, a = append(all, p), nextSubnet(p)
	}
	return all
}

// A cover has exactly the subnets of the pool, and no two of its prefixes can be merged.
func TestCoverIsExactAndSmallest(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		first := r.IntN(256)
		last := first + r.IntN(256-first)
		p := lease.Pool{SubnetLen: 24, Min: netip.AddrFrom4([4]byte{10, 42, byte(first), 0}), Max: netip.AddrFrom4([4]byte{10, 42, byte(last), 0})}
		cover := p.Cover()
		for i := range 256 {
			n := 0
			for _, c := range cover {
				if c.Contains(netip.AddrFrom4([4]byte{10, 42, byte(i), 9})) {
					n++
				}
			}
			if in := first <= i && i <= last; n != 1 && in || n != 0 && !in {
				t.Fatalf("seed %d: %d to %d: 10.42.%d.0 is in %d of %v", seed, first, last, i, n, cover)
			}
		}
		for i := 1; i < len(cover); i++ {
			a, b := cover[i-1], cover[i]
			if wider, _ := a.Addr().Prefix(a.Bits() - 1); a.Bits() == b.Bits() && wider.Contains(b.Addr()) && wider == netip.PrefixFrom(a.Addr(), a.Bits()-1) {
				t.Fatalf("seed %d: %d to %d: %s and %s are one", seed, first, last, a, b)
			}
		}
	}
}

package tunnel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func addr(w uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, w)))
}

// naiveLookup compares every peer.
func naiveLookup(peers []Peer, a netip.Addr) (best Peer, ok bool) {
	for _, p := range peers {
		if p.Subnet.Contains(a) && (!ok || p.Subnet.Bits() >= best.Subnet.Bits()) {
			best, ok = p, true
		}
	}
	return best, ok
}

func TestLookupEqualsOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		o := Overlay{Network: netip.MustParsePrefix("10.0.0.0/8"), Own: netip.MustParsePrefix("10.0.0.0/24"), MTU: 1472}
		for range r.IntN(300) {
			// Few distinct bits, so that there are overlaps and duplicates.
			subnet := netip.PrefixFrom(addr(10<<24|r.Uint32()&0x00070707), r.IntN(33))
			o.Peers = append(o.Peers, Peer{subnet, netip.AddrPortFrom(addr(r.Uint32()|1<<24), uint16(1+r.IntN(65535)))})
		}
		table := NewTable(o)
		for i := range o.Peers {
			o.Peers[i].Subnet = o.Peers[i].Subnet.Masked()
		}
		for range 500 {
			a := 10<<24 | r.Uint32()&0x00070707
			var got Peer
			if i := table.lookup(a); i != none {
				got = o.Peers[i]
			}
			if want, _ := naiveLookup(o.Peers, addr(a)); got != want {
				t.Fatalf("round %d: %s: got %v, want %v", round, addr(a), got, want)
			}
		}
	}
}

func TestTableIsImmutable(t *testing.T) {
	o := testOverlay()
	table := NewTable(o)
	o.Peers[0].Addr = netip.MustParseAddrPort("9.9.9.9:9")
	if p := table.overlay.Peers[table.lookup(0x0a4d0209)]; p != testOverlay().Peers[0] {
		t.Errorf("the table changed with the overlay's slice: %v", p)
	}
}

// testOverlay is 10.77.1.0/24 in 10.77.0.0/16, with three peers of which two are one host.
func testOverlay() Overlay {
	return Overlay{
		Network: netip.MustParsePrefix("10.77.0.0/16"), Own: netip.MustParsePrefix("10.77.1.0/24"), MTU: 1472,
		Peers: []Peer{
			{netip.MustParsePrefix("10.77.2.0/24"), netip.MustParseAddrPort("192.0.2.2:8285")},
			{netip.MustParsePrefix("10.77.3.0/24"), netip.MustParseAddrPort("192.0.2.3:8285")},
			{netip.MustParsePrefix("10.77.4.0/24"), netip.MustParseAddrPort("192.0.2.2:8285")},
		},
	}
}

func TestAdmit(t *testing.T) {
	const ok = reasons
	o := testOverlay()
	o.Peers = append(o.Peers, Peer{netip.MustParsePrefix("10.77.5.0/24"), netip.MustParseAddrPort("192.0.2.5:9000")})
	closed := NewTable(o)
	o.AllowUnknownSources = true
	open := NewTable(o)
	for _, test := range []struct {
		name, host, src, dst string
		why                  Reason
		peer                 int32
	}{
		{"local user of a peer", "192.0.2.2:40000", "10.77.2.9", "10.77.1.9", SourcePort, none},
		{"masqueraded client of a peer", "192.0.2.2:1024", "198.51.100.1", "10.77.1.9", SourcePort, none},
		{"peer with a port of its own", "192.0.2.5:9000", "10.77.5.9", "10.77.1.9", ok, 3},
		{"at another peer's port", "192.0.2.5:8285", "10.77.5.9", "10.77.1.9", SourcePort, none},
		{"peer", "192.0.2.2", "10.77.2.9", "10.77.1.9", ok, 0},
		{"peer's device", "192.0.2.2", "10.77.2.0", "10.77.1.0", ok, 0},
		{"other subnet of the host", "192.0.2.2", "10.77.4.9", "10.77.1.9", ok, 2},
		{"other peer's subnet", "192.0.2.2", "10.77.3.9", "10.77.1.9", SpoofedSource, none},
		{"nobody's subnet", "192.0.2.2", "10.77.9.9", "10.77.1.9", SpoofedSource, none},
		{"our own subnet", "192.0.2.2", "10.77.1.9", "10.77.1.8", SpoofedSource, none},
		{"routed client", "192.0.2.3", "198.51.100.1", "10.77.1.9", ok, 1},
		{"stranger", "192.0.2.9", "10.77.2.9", "10.77.1.9", UnknownSource, none},
		{"for another peer", "192.0.2.2", "10.77.2.9", "10.77.3.9", ForeignDestination, none},
		{"for outside", "192.0.2.2", "10.77.2.9", "198.51.100.1", ForeignDestination, none},
		{"multicast", "192.0.2.2", "10.77.2.9", "224.0.0.1", ForeignDestination, none},
		{"loopback", "192.0.2.2", "10.77.2.9", "127.0.0.1", ForeignDestination, none},
	} {
		if !strings.Contains(test.host, ":") {
			test.host += ":8285"
		}
		from := netip.MustParseAddrPort(test.host)
		host, src, dst := word(from.Addr()), word(netip.MustParseAddr(test.src)), word(netip.MustParseAddr(test.dst))
		peer, why, admitted := closed.admit(host, from.Port(), src, dst)
		if admitted != (test.why == ok) || !admitted && why != test.why || peer != test.peer {
			t.Errorf("%s: got %v %v peer %d, want %v peer %d", test.name, admitted, why, peer, test.why, test.peer)
		}
		if _, _, admitted := open.admit(host, from.Port(), src, dst); !admitted {
			t.Errorf("%s: not admitted with AllowUnknownSources", test.name)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 100, 5000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := Overlay{Network: netip.MustParsePrefix("10.0.0.0/8"), Own: netip.MustParsePrefix("10.255.0.0/24"), MTU: 1472}
			for i := range n {
				o.Peers = append(o.Peers, Peer{
					netip.PrefixFrom(addr(10<<24|uint32(i)<<8), 24), netip.AddrPortFrom(addr(172<<24|uint32(i)), 8285),
				})
			}
			table := NewTable(o)
			b.ReportAllocs()
			x := uint32(1)
			for b.Loop() {
				x = x*1664525 + 1013904223
				if table.lookup(10<<24|(x>>8)%uint32(n)<<8|7) == none {
					b.Fatal("not found")
				}
			}
		})
	}
}

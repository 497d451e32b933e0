package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

const benchPeers = 20_000

// benchState returns the state of a host in a VXLAN with many peers.
func benchState(peers int) State {
	s := NewState()
	s.Links["flannel.1"] = Link{Kind: KindVXLAN, VNI: 1, Parent: "eth0", Port: 8472, MTU: 1450, Up: true}
	s.Sysctls["net/ipv6/conf/flannel.1/accept_ra"] = "0"
	s.Addrs[Addr{"flannel.1", netip.MustParsePrefix("10.0.0.0/32")}] = struct{}{}
	for i := range peers {
		s.addPeer(i)
	}
	return s
}

func (s State) addPeer(i int) {
	var gw, host [4]byte
	binary.BigEndian.PutUint32(gw[:], 10<<24+uint32(i+1)<<8)
	binary.BigEndian.PutUint32(host[:], 100<<24+uint32(i+1))
	mac, via := MAC{2, 0, 0, host[1], host[2], host[3]}, netip.AddrFrom4(gw)
	s.FDB[FDB{"flannel.1", mac, netip.AddrFrom4(host)}] = struct{}{}
	s.Neighs[NeighKey{"flannel.1", via}] = mac
	s.Routes[RouteKey{Dst: netip.PrefixFrom(via, 24), Link: "flannel.1"}] = Route{Via: via, OnLink: true, Proto: ProtoBoot}
}

func BenchmarkDiff(b *testing.B) {
	none, all := NewState(), benchState(benchPeers)
	alone := benchState(0)
	scope := all.ScopeOf([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	hops := scope
	hops.NextHops = true
	for _, c := range []struct {
		name       string
		want, have State
		scope      Scope
		ops        int
	}{
		{"start", all, none, scope, 3*benchPeers + 3},
		{"start with nexthops", all, none, hops, 4*benchPeers + 3},
		{"settled", all, all, scope, 0},
		{"all leave", alone, all, scope, 3 * benchPeers},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				for op := range Diff(c.want, c.have, c.scope, true).Ops() {
					if op.Device() != "lo" {
						n++
					}
				}
				if n != c.ops {
					b.Fatalf("%d operations", n)
				}
			}
		})
	}
}

// One peer is added to many.
func BenchmarkPart(b *testing.B) {
	all, was, now := benchState(benchPeers), NewState(), NewState()
	now.addPeer(benchPeers)
	scope := all.ScopeOf([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for op := range Diff(now, all.Part(was, now), scope, true).Ops() {
			if !was.Has(op) && now.Has(op) {
				n++
			}
		}
		if n != 3 {
			b.Fatalf("%d operations", n)
		}
	}
}

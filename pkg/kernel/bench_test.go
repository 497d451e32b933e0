package kernel

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

// The peers of a large cluster, one kind of object at a time.
func BenchmarkApply(b *testing.B) {
	const peers = 20_000
	bed := newBed(b)
	r := chance(b)
	bed.pass(wantPeers(r, vxlanLink(r), 0))
	for _, c := range []struct {
		name string
		op   func(i int) dataplane.Op
	}{
		{"fdb", func(i int) dataplane.Op {
			return dataplane.KindFDB.Put(dataplane.FDB{Link: overlay, MAC: benchMAC(i), Dst: benchAddr(198<<24, i)}, struct{}{})
		}},
		{"neighbours", func(i int) dataplane.Op {
			return dataplane.KindNeigh.Put(dataplane.NeighKey{Link: overlay, IP: benchAddr(10<<24, i<<4)}, benchMAC(i))
		}},
		{"nexthops", func(i int) dataplane.Op {
			a := benchAddr(10<<24, i<<4)
			return dataplane.KindNextHop.Put(10<<24|uint32(i<<4), dataplane.NextHop{Link: overlay, Via: a, OnLink: true, Proto: dataplane.ProtoFlannel})
		}},
		{"routes", func(i int) dataplane.Op {
			a := benchAddr(10<<24, i<<4)
			return dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(a, 28), Link: overlay}, dataplane.Route{Via: a, OnLink: true, Proto: dataplane.ProtoBoot, NextHop: 10<<24 | uint32(i<<4)})
		}},
	} {
		ops := make([]dataplane.Op, peers)
		for i := range ops {
			ops[i] = c.op(i + 1)
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				for _, err := range bed.k.Apply(ops) {
					bed.must(err)
				}
			}
		})
	}
	b.Run("snapshot", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			s := bed.snapshot(dataplane.Scope{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Links: []string{overlay}})
			if len(s.FDB) != peers || len(s.Neighs) != peers || len(s.NextHops) != peers || len(s.Routes) < peers {
				b.Fatalf("%d fdb, %d neighbours, %d nexthops, %d routes", len(s.FDB), len(s.Neighs), len(s.NextHops), len(s.Routes))
			}
		}
	})
}

func benchMAC(i int) dataplane.MAC {
	return dataplane.MAC{2, 3: byte(i >> 16), 4: byte(i >> 8), 5: byte(i)}
}

func benchAddr(base uint32, i int) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], base+uint32(i))
	return netip.AddrFrom4(a)
}

// What a pass costs beside the kernel's own work: the requests of 20,000 peers as bytes.
func BenchmarkRequests(b *testing.B) {
	var ops []dataplane.Op
	for i := range 20_000 {
		a := benchAddr(10<<24, i<<4)
		ops = append(ops, dataplane.KindFDB.Put(dataplane.FDB{MAC: benchMAC(i), Dst: a}, struct{}{}),
			dataplane.KindNeigh.Put(dataplane.NeighKey{IP: a}, benchMAC(i)),
			dataplane.KindNextHop.Put(7, dataplane.NextHop{Via: a, OnLink: true, Proto: dataplane.ProtoFlannel}),
			dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(a, 28)}, dataplane.Route{Proto: dataplane.ProtoBoot, NextHop: 7}))
	}
	b.ReportAllocs()
	b.ResetTimer()
	var r requests
	for range b.N {
		r.Reset()
		for _, op := range ops {
			handlers[op.Kind].request(&r, op, 5)
		}
		r.Datagram(0, r.Len(), 1)
	}
}

// And the kernel's lists of them, read.
func BenchmarkParse(b *testing.B) {
	var r requests
	for i := range 20_000 {
		a := benchAddr(10<<24, i<<4)
		r.fdb(dataplane.KindFDB.Put(dataplane.FDB{MAC: benchMAC(i), Dst: a}, struct{}{}), 5)
		r.route(dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(a, 28)}, dataplane.Route{Proto: dataplane.ProtoBoot, NextHop: 7}), 5)
	}
	list := r.Datagram(0, r.Len(), 1)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		for h, body := range netlink.Messages(list) {
			if h.Type == unix.RTM_NEWNEIGH {
				parseNeighbor(body)
			} else if dst, ok := mainRoute(body); ok {
				parseRoute(dst, body)
			}
		}
	}
}

package main

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"testing"

	"flanneld/pkg/dataplane"
)

// BenchmarkGCPercent measures the time and the memory of passes with 20,000 peers, with gcPercent
// and with Go's default. The wanted state is kept, the present one is allocated for each pass.
func BenchmarkGCPercent(b *testing.B) {
	want := statePeers(20_000)
	scope := want.ScopeOf([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	for _, percent := range []int{100, gcPercent} {
		b.Run(strconv.Itoa(percent), func(b *testing.B) {
			before := debug.SetGCPercent(percent)
			defer debug.SetGCPercent(before)
			runtime.GC()
			debug.FreeOSMemory()
			b.ReportAllocs()
			peak := uint64(0)
			for b.Loop() {
				if n := dataplane.Diff(want, statePeers(20_000), scope, true).Len(); n != 0 {
					b.Fatalf("%d differences", n)
				}
				peak = max(peak, heap())
			}
			b.ReportMetric(float64(peak)/(1<<20), "MB-peak")
		})
	}
	runtime.KeepAlive(want)
}

// statePeers is the state of a vxlan host with so many peers.
func statePeers(n int) dataplane.State {
	s := dataplane.NewState()
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24+uint32(i)<<8)
		gw, mac := netip.AddrFrom4(a), dataplane.MAC{2, 0, 0, a[0], a[1], a[2]}
		s.FDB[dataplane.FDB{Link: "flannel.1", MAC: mac, Dst: gw}] = struct{}{}
		s.Neighs[dataplane.NeighKey{Link: "flannel.1", IP: gw}] = mac
		s.Routes[dataplane.RouteKey{Dst: netip.PrefixFrom(gw, 24), Link: "flannel.1"}] = dataplane.Route{Via: gw, OnLink: true, Proto: dataplane.ProtoBoot}
	}
	return s
}

// heap is what the heap has of the system's memory.
func heap() (sum uint64) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	for _, s := range samples {
		sum += s.Value.Uint64()
	}
	return sum
}

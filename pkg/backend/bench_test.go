package backend

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"flanneld/pkg/lease"
)

const benchPeers = 20_000

func benchLease(i int) *lease.Lease {
	var subnet, host [4]byte
	binary.BigEndian.PutUint32(subnet[:], 10<<24+uint32(i+1)<<8)
	binary.BigEndian.PutUint32(host[:], 100<<24+uint32(i+1))
	return &lease.Lease{
		Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4(subnet), 24)), Created: uint64(i + 1),
		Attrs: lease.Attrs{
			PublicIP: netip.AddrFrom4(host), BackendType: "vxlan",
			BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:%02x:%02x:%02x"}`, host[1], host[2], host[3]),
		},
	}
}

// BenchmarkPlan measures a plan of many peers, and the addition and removal of one of them.
func BenchmarkPlan(b *testing.B) {
	vxlan, conf := mustNew(b, `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`)
	own := *benchLease(60_000)
	leases := make([]*lease.Lease, benchPeers)
	for i := range leases {
		leases[i] = benchLease(i)
	}
	all, more := lease.NewView(own, leases, true), lease.NewView(own, append(leases, benchLease(benchPeers)), true)
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p := NewPlan(vxlan, conf.V4.Network)
			p.Update(us(), all)
			if len(p.Want().Routes) != benchPeers {
				b.Fatalf("%d routes", len(p.Want().Routes))
			}
		}
	})
	b.Run("one comes and goes", func(b *testing.B) {
		p := NewPlan(vxlan, conf.V4.Network)
		p.Update(us(), all)
		b.ReportAllocs()
		for b.Loop() {
			for _, v := range []lease.View{more, all} {
				if c := p.Update(us(), v); c.All {
					b.Fatal("all was planned anew")
				}
			}
		}
	})
}

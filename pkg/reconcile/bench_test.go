package reconcile

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

const benchPeers = 20_000

// idle is a kernel with a given state.
type idle struct {
	have dataplane.State
	then *dataplane.State // after operations
}

func (k *idle) Snapshot(_ dataplane.Scope, s *dataplane.State) error {
	*s = k.have
	return nil
}

func (k *idle) Events() <-chan driver.Event { return nil }

func (k *idle) Apply(ops []dataplane.Op) []error {
	if k.then != nil {
		k.have = *k.then
	}
	return make([]error, len(ops))
}

// BenchmarkPass is of a host among many peers: its first pass, one that finds nothing to do, and
// one after a peer has come.
func BenchmarkPass(b *testing.B) {
	vxlan, err := backend.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		b.Fatal(err)
	}
	of := func(i int) *lease.Lease {
		var subnet, host [4]byte
		binary.BigEndian.PutUint32(subnet[:], 10<<24+uint32(i+1)<<8)
		binary.BigEndian.PutUint32(host[:], 100<<24+uint32(i+1))
		return &lease.Lease{Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4(subnet), 24)), Attrs: lease.Attrs{
			PublicIP: netip.AddrFrom4(host), BackendType: "vxlan",
			BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:%02x:%02x:%02x"}`, host[1], host[2], host[3]),
		}}
	}
	facts := host.Facts{Uplink: "eth0", MTU: 1500, Addr: netip.MustParseAddr("198.51.100.7"), PublicIP: netip.MustParseAddr("198.51.100.7")}
	own := *of(60_000)
	leases := make([]*lease.Lease, benchPeers)
	for i := range leases {
		leases[i] = of(i)
	}
	view, more := lease.NewView(own, leases, true), lease.NewView(own, append(leases, of(benchPeers)), true)
	plan := backend.NewPlan(vxlan, vxlan.V4.Network)
	plan.Update(facts, view)
	none, full := dataplane.NewState(), dataplane.NewState()
	none.NextHops = nil // so old a kernel
	scope := plan.Want().ScopeOf([]netip.Prefix{vxlan.V4.Network})
	scope.Spread = true
	full.Add(plan.Want())
	for op := range dataplane.Diff(plan.Want(), none, scope, true).Ops() {
		full.Update(op)
	}
	full.NextHops = nil
	newLoop := func(k *idle) *Loop {
		l := New(Config{
			Driver: k, Backend: vxlan, Network: vxlan.V4.Network, Log: slog.New(slog.DiscardHandler),
			Conditions:  condition.NewList(slog.New(slog.DiscardHandler)),
			BeforeApply: func() {}, Rivals: func([]lease.Lease) {}, Skipped: func([]backend.Skipped) {}, Missing: func([]Missing) {}, Repaired: func(_, _ string) {}, Heartbeat: func() {},
		})
		l.SetFacts(facts, nil)
		l.SetView(view)
		return l
	}
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if k := (&idle{have: none, then: &full}); !newLoop(k).Pass(b.Context()) {
				b.Fatal("something is missing")
			}
		}
	})
	b.Run("settled", func(b *testing.B) {
		l := newLoop(&idle{have: full})
		l.Pass(b.Context())
		b.ReportAllocs()
		for b.Loop() {
			l.stale.Store(true)
			l.Pass(b.Context())
		}
	})
	b.Run("one comes and goes", func(b *testing.B) {
		l := newLoop(&idle{have: none, then: &full})
		l.Pass(b.Context())
		b.ReportAllocs()
		for b.Loop() {
			for _, v := range []lease.View{more, view} {
				l.SetView(v)
				l.Pass(b.Context())
			}
		}
	})
}

package backend

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// After any sequence of updates, a plan wants the same as a new plan and reports what changed.
func TestPlanFollows(t *testing.T) {
	steps := 3000
	if testing.Short() { // on an emulated processor
		steps = 600
	}
	for _, config := range []string{
		`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
		`{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`,
		`{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}`,
		`{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`,
	} {
		b, conf := mustNew(t, config)
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 1))
		facts, plan := us(), NewPlan(b, conf.V4.Network)
		facts.Leased = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/20"), netip.MustParsePrefix("10.42.16.0/20")}
		facts.Underlay = append(facts.Underlay, host.Route{Dst: netip.MustParsePrefix("10.42.16.0/20"), Iface: "eth1"})
		own := lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), Attrs: lease.Attrs{PublicIP: facts.PublicIP, BackendType: conf.BackendType}}
		leases := map[netip.Prefix]*lease.Lease{}
		parts := 0
		for step := range steps {
			if r.IntN(100) == 0 {
				facts.MTU++
				facts.Needs, facts.NameServers = nil, nil
				if r.IntN(3) == 0 {
					facts.NameServers = []host.Need{{Addr: netip.MustParseAddr("10.42.250.53")}}
				}
				if r.IntN(2) == 0 {
					facts.Needs = []host.Need{{Addr: netip.AddrFrom4([4]byte{10, 42, byte(r.IntN(80)), 9}), What: "etcd", Bits: r.IntN(20)}}
				}
			}
			for range r.IntN(3) {
				churn(r, conf.BackendType, leases)
			}
			if r.IntN(20) == 0 {
				clear(leases)
			}
			var all []*lease.Lease
			for _, l := range leases {
				all = append(all, l)
			}
			view := lease.NewView(own, all, true)
			was := dataplane.NewState()
			was.Add(plan.Want())
			c := plan.Update(facts, view)
			fresh := NewPlan(b, conf.V4.Network)
			fresh.Update(facts, view)
			if !plan.Want().Equal(fresh.Want()) || !sameSkipped(plan.Skipped(), fresh.Skipped()) {
				t.Fatalf("%s, seed %d, step %d: the plan wants\n%s%v\na new one\n%s%v", config, seed, step,
					plan.Want().Text(), plan.Skipped(), fresh.Want().Text(), fresh.Skipped())
			}
			if c.All {
				continue
			}
			parts++
			was.Remove(c.Was)
			was.Add(c.Now)
			if !was.Equal(plan.Want()) || !c.Was.Part(c.Was).Equal(c.Was) {
				t.Fatalf("%s, seed %d, step %d: was\n%snow\n%sdoes not lead to\n%s", config, seed, step, c.Was.Text(), c.Now.Text(), plan.Want().Text())
			}
		}
		if parts < steps/10 {
			t.Errorf("%s: only %d of %d steps went by parts", config, parts, steps)
		}
	}
}

// churn adds, changes or removes a lease. It uses few values, so that claims conflict now and then.
func churn(r *rand.Rand, backendType string, leases map[netip.Prefix]*lease.Lease) {
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, byte(8 + r.IntN(60)), 0}), 24)
	if r.IntN(20) == 0 {
		subnet = netip.PrefixFrom(subnet.Addr(), 22+r.IntN(4)).Masked()
	}
	if r.IntN(3) == 0 {
		delete(leases, subnet)
		return
	}
	if old := leases[subnet]; old != nil && r.IntN(3) == 0 { // recreated unchanged
		again := *old
		again.Created = r.Uint64N(50)
		leases[subnet] = &again
		return
	}
	l := &lease.Lease{Subnets: lease.SubnetsOf(subnet), Created: r.Uint64N(50), Stale: r.IntN(20) == 0, Attrs: lease.Attrs{
		PublicIP:    netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + r.IntN(240))}),
		BackendType: backendType,
		BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, r.IntN(250)),
	}}
	switch r.IntN(60) {
	case 0:
		l.PublicIP = netip.AddrFrom4([4]byte{10, 42, byte(8 + r.IntN(60)), 9})
	case 1:
		l.BackendType = "other"
	case 2:
		l.BackendData = "{}"
	case 3:
		l.PublicIP = netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(250))})
	}
	leases[subnet] = l
}

func sameSkipped(a, b []Skipped) bool {
	order := func(x, y Skipped) int { return x.Subnets.Compare(y.Subnets) }
	a, b = slices.SortedFunc(slices.Values(a), order), slices.SortedFunc(slices.Values(b), order)
	return slices.Equal(a, b)
}

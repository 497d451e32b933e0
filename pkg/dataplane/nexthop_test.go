package dataplane

import (
	"net/netip"
	"testing"
)

// Few routes use no nexthop objects and many do. The number at which they stop is lower.
func TestNextHopsPay(t *testing.T) {
	with := func(routes, hops int) State {
		s := NewState()
		for i := range routes {
			s.Routes[RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i >> 4), byte(i << 4)}), 28)}] = Route{}
		}
		for i := range hops {
			s.NextHops[uint32(i+1)] = NextHop{}
		}
		return s
	}
	beside := func(s State, others int) State {
		s.Others = others
		return s
	}
	for _, c := range []struct {
		want, have State
		pay        bool
	}{
		{with(minRoutes, 0), beside(with(0, 0), maxNextHopRoutes-minRoutes), true},
		{with(minRoutes, 0), beside(with(0, 0), maxNextHopRoutes-minRoutes+1), false}, // a routing daemon's
		{with(minRoutes, 0), beside(with(0, 1), 2*maxNextHopRoutes-minRoutes), true},
		{with(minRoutes, 0), beside(with(0, 1), 2*maxNextHopRoutes-minRoutes+1), false},
		{with(minRoutes-1, 0), with(0, 0), false},
		{with(minRoutes, 0), with(0, 0), true},
		{with(minRoutes/2, 0), with(0, 1), true},
		{with(minRoutes/2-1, 0), with(0, 1), false},
		{with(minRoutes, 0), State{}, false}, // a kernel without them
	} {
		if got := c.want.UseNextHops(c.have); got != c.pay {
			t.Errorf("%d routes, %d nexthops and %d other routes there: %v", len(c.want.Routes), len(c.have.NextHops), c.have.Others, got)
		}
	}
}

// Many routes with a gateway are distributed evenly over the scopes.
func TestSpread(t *testing.T) {
	want, have := NewState(), NewState()
	counts := map[uint8]int{}
	for i := range 10 * scopes {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		k, plain := RouteKey{Dst: netip.PrefixFrom(a, 24), Link: "flannel.1"}, Route{Via: a, OnLink: true, Proto: ProtoBoot}
		want.Routes[k] = plain
		r := plain.spread(k)
		counts[r.Scope]++
		if r.Scope == 0 || r.Scope > scopes {
			t.Errorf("%s has the scope %d", k.Dst, r.Scope)
		}
		if r.Scope = 0; r != plain {
			t.Errorf("%+v became %+v", plain, r)
		}
		if got := want.UseSpread(have); got != (len(want.Routes) >= minRoutes) {
			t.Errorf("among %d routes: %v", len(want.Routes), got)
		}
	}
	for scope, n := range counts {
		if n != 10 || len(counts) != scopes {
			t.Errorf("scope %d is that of %d routes", scope, n)
		}
	}
	for k := range want.Routes {
		if len(want.Routes) == minRoutes/2 {
			break
		}
		delete(want.Routes, k)
	}
	k := RouteKey{Dst: netip.MustParsePrefix("10.42.9.0/24")}
	have.Routes[k] = Route{Via: k.Dst.Addr()}.spread(k)
	if !want.UseSpread(have) || want.UseSpread(NewState()) {
		t.Error("it takes as many to go back")
	}
	if (Route{}).spread(k) != (Route{}) {
		t.Error("a route without a gateway has another scope")
	}
}

func TestNextHopOfARoute(t *testing.T) {
	via := netip.MustParseAddr("10.42.9.0")
	plain := Route{Via: via, OnLink: true, Proto: ProtoBoot}
	k := RouteKey{Dst: netip.MustParsePrefix("10.42.9.0/24"), Link: "flannel.1"}
	r, h, ok := plain.nextHop(k)
	if !ok || r.NextHop != 0x0a2a0900 || h != (NextHop{"flannel.1", via, true, ProtoFlannel}) {
		t.Errorf("%+v, %+v, %v", r, h, ok)
	}
	scope := Scope{Networks: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	if !scope.InRange(0x0a2a0000) || !scope.InRange(0x0a2affff) || scope.InRange(0x0a290000) || scope.InRange(7) || (Scope{}).InRange(7) {
		t.Error("the range of ids is not the network")
	}
	for name, k := range map[string]RouteKey{
		"IPv6":   {Dst: netip.MustParsePrefix("fd00::/64")},
		"metric": {Dst: k.Dst, Metric: 5},
	} {
		if _, _, ok := plain.nextHop(k); ok {
			t.Errorf("%s: has a nexthop", name)
		}
	}
	if _, _, ok := (Route{Blackhole: true}).nextHop(k); ok {
		t.Error("a blackhole has a nexthop")
	}
}

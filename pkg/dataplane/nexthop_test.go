package dataplane

import (
	"net/netip"
	"testing"
)

// Few routes are plain, many are not, and it takes fewer than that to go back.
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
	for _, c := range []struct {
		want, have State
		pay        bool
	}{
		{with(nextHopsPay-1, 0), with(0, 0), false},
		{with(nextHopsPay, 0), with(0, 0), true},
		{with(nextHopsPay/2, 0), with(0, 1), true},
		{with(nextHopsPay/2-1, 0), with(0, 1), false},
		{with(nextHopsPay, 0), State{}, false}, // a kernel without them
	} {
		if got := c.want.NextHopsPay(c.have); got != c.pay {
			t.Errorf("%d routes, %d nexthops there: %v", len(c.want.Routes), len(c.have.NextHops), got)
		}
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
	scope := Scope{Network: netip.MustParsePrefix("10.42.0.0/16")}
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

package kernel

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// TestRouteWithoutGatewayIsOfScopeGlobal: as the original's is, also where one of scope link
// stands.
func TestRouteWithoutGatewayIsOfScopeGlobal(t *testing.T) {
	b := newBed(t)
	key := dataplane.RouteKey{Dst: network, Link: uplink}
	want := dataplane.NewState()
	want.Links[uplink] = b.snapshot(dataplane.Scope{Networks: []netip.Prefix{network}, Links: []string{uplink}}).Links[uplink]
	want.Routes[key] = dataplane.Route{Proto: dataplane.ProtoBoot}
	scope := func() netlink.Scope {
		routes, err := b.other.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: ipnet(network.String())}, netlink.RT_FILTER_DST)
		b.must(err)
		if len(routes) != 1 {
			t.Fatalf("routes %v", routes)
		}
		return routes[0].Scope
	}
	b.must(b.other.RouteAdd(&netlink.Route{LinkIndex: b.up(), Dst: ipnet(network.String()), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_BOOT}))
	if s := scope(); s != netlink.SCOPE_LINK {
		t.Fatalf("scope %v before", s)
	}
	if ops := b.pass(want); len(ops) != 1 {
		t.Errorf("the pass did\n%s", commands(ops))
	}
	b.settled(want)
	if s := scope(); s != netlink.SCOPE_UNIVERSE {
		t.Errorf("scope %v", s)
	}
}

package kernel

import (
	"math"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// A blackhole for our subnet coexists with docker's connected route to the same destination, which
// always takes precedence; it is repaired, and removed when no longer wanted. Other programs'
// blackholes stay.
func TestBlackhole(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	subnet := netip.MustParsePrefix("10.5.1.0/24")
	want := wantPeers(r, vxlanLink(r), 5)
	last := dataplane.RouteKey{Dst: subnet, Metric: math.MaxUint32}
	want.Routes[last] = dataplane.Route{Blackhole: true, Proto: dataplane.ProtoFlannel}
	theirs := &netlink.Route{Dst: ipnet("10.5.250.0/24"), Type: unix.RTN_BLACKHOLE, Priority: 7}
	b.must(b.other.RouteAdd(theirs))
	b.pass(want)
	b.settled(want)
	goes := func() error {
		_, err := b.other.RouteGet(net.ParseIP("10.5.1.9"))
		return err
	}
	if err := goes(); err == nil {
		t.Error("a packet for the subnet has a way without the bridge")
	}

	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}))
	b.must(b.other.LinkSetUp(b.link("docker0")))
	b.must(b.other.AddrAdd(b.link("docker0"), &netlink.Addr{IPNet: ipnet("10.5.1.1/24")}))
	if err := goes(); err != nil {
		t.Errorf("the bridge is up, and yet: %v", err)
	}
	b.settled(want)

	ours := &netlink.Route{Dst: ipnet("10.5.1.0/24"), Type: unix.RTN_BLACKHOLE, Priority: int(last.Metric)}
	w := b.watch(want.ScopeOf(b.networks))
	b.must(b.other.RouteDel(ours))
	await(t, w, driver.Routes)
	if len(b.pass(want)) == 0 {
		t.Error("the pass found no damage")
	}
	b.settled(want)
	if err := goes(); err != nil {
		t.Errorf("added after the bridge's route, it wins: %v", err)
	}

	delete(want.Routes, last)
	b.pass(want)
	b.settled(want)
	if err := b.other.RouteDel(ours); err == nil {
		t.Error("it is still there")
	}
	b.must(b.other.RouteDel(theirs))
}

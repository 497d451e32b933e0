package kernel

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/dataplane"
)

// One pass reaches any wanted state from any other, in each form of routes, the second pass is
// empty, and foreign objects are not changed.
func TestSecondPassIsEmpty(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	outside := b.strangers()
	before := outside()
	link := vxlanLink(r)
	for round := range 13 {
		b.nextHops, b.spread = r.IntN(2) == 0, r.IntN(2) == 0
		switch round % 6 {
		case 1:
			link.MTU = 1300 + r.IntN(100)
		case 2:
			link.Learning = !link.Learning
		case 3:
			link.MAC = randomMAC(r)
		case 4:
			link.Port = 4000 + r.IntN(1000) // another device
		case 5:
			link.GBP = !link.GBP
		}
		want := wantPeers(r, link, r.IntN(200))
		if round == 12 { // leaving
			want = dataplane.State{Links: want.Links}
		}
		b.pass(want)
		b.settled(want)
		if after := outside(); after != before {
			t.Fatalf("round %d touched what is not ours:\nbefore:\n%s\nafter:\n%s", round, before, after)
		}
		if t.Failed() {
			t.Fatalf("failed in round %d", round)
		}
	}
}

// What the design of 2015 left behind: the subnet's address with the length of
// the whole network, and routes that follow from it.
func TestUpgradeFromNetworkWideAddress(t *testing.T) {
	b := newBed(t)
	want := wantPeers(chance(t), vxlanLink(chance(t)), 30)
	b.pass(dataplane.State{Links: want.Links})
	b.must(b.other.AddrAdd(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.1.0/16")}))
	b.must(b.other.AddrAdd(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.1.0/32")}))
	b.must(b.other.AddrAdd(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.1.1/16")})) // a secondary one
	b.pass(want)
	b.settled(want)
}

// Lists that change while they are read are read again; what stands all the
// time is in every snapshot.
func TestSnapshotWhileOthersAreBusy(t *testing.T) {
	b := newBed(t)
	b.strangers()
	want := wantPeers(chance(t), vxlanLink(chance(t)), 200)
	b.pass(want)
	scope := want.ScopeOf(b.networks)
	l, done := b.link(foreign), make(chan struct{})
	index := l.Attrs().Index
	go func() {
		defer close(done)
		for i := range 300 {
			a := &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 6, byte(i), 1}), 32).String())}
			if err := errors.Join(b.other.AddrAdd(l, a),
				b.other.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipnet("10.7.0.0/16")}),
				b.other.RouteDel(&netlink.Route{LinkIndex: index, Dst: ipnet("10.7.0.0/16")}),
				b.other.AddrDel(l, a)); err != nil {
				t.Error(err)
			}
		}
	}()
	snapshots := 0
	for {
		have := b.snapshot(scope)
		snapshots++
		if ops := slices.Collect(dataplane.Diff(want, have, scope, true).Ops()); len(ops) > 0 {
			t.Fatalf("snapshot %d lacks something:\n%s", snapshots, commands(ops))
		}
		select {
		case <-done:
			t.Logf("%d snapshots", snapshots)
			return
		default:
		}
	}
}

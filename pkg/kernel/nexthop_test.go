package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/lab/wait"
)

// through is a bed with peers whose routes use nexthop objects.
func through(t *testing.T, peers int) (*bed, dataplane.State) {
	b, want := withPeers(t, peers)
	b.nextHops = true
	b.pass(want)
	b.settled(want)
	return b, want
}

func TestNextHops(t *testing.T) {
	b, want := through(t, 100)
	have := b.snapshot(want.ScopeOf(b.networks))
	if len(have.NextHops) != len(want.Routes) {
		t.Errorf("%d nexthops for %d routes", len(have.NextHops), len(want.Routes))
	}
	for k, r := range want.Routes {
		got := have.Routes[k]
		if id := dataplane.NextHopID(k.Dst); got.NextHop != id || got.Via != r.Via || have.NextHops[id].Via != r.Via {
			t.Errorf("route to %s reads %+v through %+v", k.Dst, got, have.NextHops[id])
		}
	}
	// Another gateway replaces the object and not the route.
	for k, r := range want.Routes {
		r.Via = r.Via.Next()
		want.Routes[k] = r
		break
	}
	for _, op := range b.pass(want)[:1] {
		if op.Kind != dataplane.KindNextHop {
			t.Errorf("%s comes first", op)
		}
	}
	b.settled(want)
	n := 0
	maps.DeleteFunc(want.Routes, func(dataplane.RouteKey, dataplane.Route) bool { n++; return n%2 == 0 })
	b.pass(want)
	b.settled(want)
	if have := b.snapshot(want.ScopeOf(b.networks)); len(have.NextHops) != len(want.Routes) {
		t.Errorf("%d nexthops are left for %d routes", len(have.NextHops), len(want.Routes))
	}
	for range 2 { // deleting a missing object is not an error
		for _, err := range b.k.Apply([]dataplane.Op{dataplane.KindNextHop.Del(0x0a05fefe, dataplane.NextHop{Link: overlay})}) {
			b.must(err)
		}
	}
}

// Going over from one form of route to the other, and back, leaves no packet
// without a way.
func TestFormsChangeWithoutGap(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 330)
	// No host answers on the uplink.
	maps.DeleteFunc(want.Routes, func(k dataplane.RouteKey, _ dataplane.Route) bool { return k.Link == uplink })
	b.pass(want)
	fd := -1
	b.must(b.k.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	var to []unix.SockaddrInet4
	for k := range want.Routes {
		to = append(to, unix.SockaddrInet4{Port: 9, Addr: k.Dst.Addr().Next().As4()})
	}
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Sendto(fd, []byte("x"), 0, &to[n%len(to)]); err != nil && !errors.Is(err, unix.ENOBUFS) {
				t.Errorf("packet %d: %v", n, err)
				return
			}
		}
	}()
	for range 4 {
		for _, b.nextHops = range []bool{true, false} {
			if n := len(b.pass(want)); n != 2*len(want.Routes) {
				t.Errorf("%d operations on %d routes", n, len(want.Routes))
			}
			b.settled(want)
		}
	}
	close(stop)
	t.Logf("%d packets to %d subnets", <-sent, len(to))
}

// strangeHops creates nexthops that no pass may change, and returns their description.
func (b *bed) strangeHops() func() string {
	b.t.Helper()
	theirs := b.another()
	up := b.up()
	via := netip.MustParseAddr("192.0.2.9")
	var r requests
	r.nextHop(dataplane.KindNextHop.Put(7, dataplane.NextHop{Via: via, Proto: dataplane.ProtoFlannel}), up)                // our stamp, not our range
	r.nextHop(dataplane.KindNextHop.Put(0x0a06c800, dataplane.NextHop{Via: via, Proto: dataplane.ProtoFlannel}), up)       // another network's
	r.nextHop(dataplane.KindNextHop.Put(0x0a05c800, dataplane.NextHop{Via: via, Proto: unix.RTPROT_STATIC}), up)           // our range, not our stamp
	r.nextHop(dataplane.KindNextHop.Put(0x0a05c900, dataplane.NextHop{Via: netip.MustParseAddr("fe80::9"), Proto: 4}), up) // of IPv6
	r.Begin(unix.RTM_NEWNEXTHOP, replace)
	r.nextHopHeader(unix.Nhmsg{Family: unix.AF_INET, Protocol: dataplane.ProtoFlannel})
	r.Uint32(unix.NHA_ID, 0x0a05ca00)
	r.Bytes(unix.NHA_BLACKHOLE, nil)
	r.Begin(unix.RTM_NEWNEXTHOP, replace)
	r.nextHopHeader(unix.Nhmsg{Protocol: dataplane.ProtoFlannel})
	r.Uint32(unix.NHA_ID, 0x0a05cb00)
	r.Bytes(unix.NHA_GROUP, append(binary.NativeEndian.AppendUint32(nil, 7), 0, 0, 0, 0))
	r.Begin(unix.RTM_NEWNEXTHOP, replace) // without a gateway
	r.nextHopHeader(unix.Nhmsg{Family: unix.AF_INET, Protocol: dataplane.ProtoFlannel})
	r.Uint32(unix.NHA_ID, 0x0a05cc00)
	r.Uint32(unix.NHA_OIF, uint32(up))
	for i, err := range theirs.conn.Batch(&r.Requests) {
		if err != nil {
			b.t.Fatalf("nexthop %d: %v", i, err)
		}
	}
	return func() string {
		var lines []string
		r := one(unix.RTM_GETNEXTHOP, 0)
		r.nextHopHeader(unix.Nhmsg{})
		b.must(theirs.conn.Dump(&r.Requests, func() { lines = nil }, func(m []byte) {
			if id, h, _, _ := parseNextHop(m); h.Proto != dataplane.ProtoFlannel || id>>16 != 0x0a05 {
				lines = append(lines, fmt.Sprintf("% x", m))
			}
		}))
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
}

func TestNextHopsOfOthersStay(t *testing.T) {
	b, want := through(t, 50)
	outside := b.strangeHops()
	before := outside()
	if n := strings.Count(before, "\n") + 1; n != 7 {
		t.Fatalf("%d nexthops of others:\n%s", n, before)
	}
	// A route whose ID is in use has no nexthop object.
	for _, id := range []byte{200, 201, 202, 203, 204} {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, id, 0}), 24)
		want.Routes[dataplane.RouteKey{Dst: dst, Link: overlay}] = dataplane.Route{Via: dst.Addr(), OnLink: true, Proto: dataplane.ProtoBoot}
	}
	for _, s := range []dataplane.State{want, {Links: want.Links}, want} {
		for _, b.nextHops = range []bool{true, false} {
			b.pass(s)
			b.settled(s)
			if after := outside(); after != before {
				t.Fatalf("touched what is not ours:\nbefore:\n%s\nafter:\n%s", before, after)
			}
		}
	}
}

// With net.ipv4.nexthop_compat_mode=0 the kernel reports only the nexthop of a route.
func TestWithoutCompatMode(t *testing.T) {
	b := newBed(t)
	b.must(b.k.setSysctl("net/ipv4/nexthop_compat_mode", "0"))
	b.nextHops = true
	b.strangeHops()
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 100)
	for _, b.nextHops = range []bool{true, false, true} {
		b.pass(want)
		b.settled(want)
	}
	theirs := b.another()
	single := dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.240.0/24"), Link: uplink}
	group := dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.241.0/24")}
	var q requests
	q.route(dataplane.KindRoute.Put(single, dataplane.Route{Proto: 4, NextHop: 7}), 0)
	q.route(dataplane.KindRoute.Put(group, dataplane.Route{Proto: 4, NextHop: 0x0a05cb00}), 0)
	for _, err := range theirs.conn.Batch(&q.Requests) {
		b.must(err)
	}
	have := b.snapshot(want.ScopeOf(b.networks))
	if got, ok := have.Routes[single]; !ok || got.NextHop != 7 || got.Via != netip.MustParseAddr("192.0.2.9") {
		t.Errorf("the route through another's nexthop reads %+v", got)
	}
	if got, ok := have.Routes[group]; !ok || got.Via.IsValid() {
		t.Errorf("the route through a group reads %+v", got)
	}
	w := b.watch(want.ScopeOf(b.networks))
	q.Reset()
	q.nextHop(dataplane.KindNextHop.Put(7, dataplane.NextHop{Via: netip.MustParseAddr("192.0.2.10"), Proto: 4}), b.up())
	b.must(theirs.conn.Do(&q.Requests))
	await(t, w, driver.Routes)
}

// A link that loses its carrier loses nexthops and the routes through them, too.
func TestCarrierLoss(t *testing.T) {
	b, want := through(t, 100)
	if inv, err := b.k.Inventory(Wanted{}); err == nil && inv.IPv6 { // or its link-local address comes and goes
		b.must(b.k.setSysctl("net/ipv6/conf/"+uplink+"/disable_ipv6", "1"))
	}
	w := b.watch(want.ScopeOf(b.networks, uplink))
	before := b.snapshot(want.ScopeOf(b.networks))
	b.must(b.other.LinkSetDown(b.link("up1")))
	await(t, w, driver.Uplink)
	wait.True(t, "routes by the uplink go", func() bool { return !b.snapshot(want.ScopeOf(b.networks)).Equal(before) })
	drain(w)
	b.must(b.other.LinkSetUp(b.link("up1")))
	await(t, w, driver.Uplink)
	wait.True(t, "the carrier is back", func() bool {
		d, err := b.k.byName(uplink)
		return err == nil && d.carrier == unix.IFF_RUNNING|unix.IFF_LOWER_UP
	})
	if len(b.pass(want)) == 0 {
		t.Error("the pass found no damage")
	}
	b.settled(want)
	drain(w)
	// Changes of a link that change nothing for anybody.
	for _, name := range []string{uplink, overlay} {
		b.must(b.other.LinkSetTxQLen(b.link(name), 77))
		b.must(b.other.LinkSetAlias(b.link(name), "some name"))
	}
	b.quiet(w)
}

// A kernel before Linux 5.3 does not support them, which differs from having no objects.
func TestKernelWithoutNextHops(t *testing.T) {
	b, want := through(t, 5)
	b.k.noNextHops.Store(true)
	if s := b.snapshot(want.ScopeOf(b.networks)); s.NextHops != nil {
		t.Errorf("nexthops %v in a kernel that has none", s.NextHops)
	}
	if s := newBed(t).snapshot(want.ScopeOf(b.networks)); s.NextHops == nil || len(s.NextHops) > 0 {
		t.Errorf("nexthops %v in an empty kernel", s.NextHops)
	}
}

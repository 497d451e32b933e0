package kernel

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

func TestNextHopMessage(t *testing.T) {
	for _, h := range []dataplane.NextHop{
		{Via: netip.MustParseAddr("192.0.2.1"), Proto: 70},
		{Via: netip.MustParseAddr("10.5.2.0"), Proto: 70, OnLink: true},
		{Via: netip.MustParseAddr("fd00::1"), Proto: 3},
	} {
		b := nextHopRequest(dataplane.Put, 168100352, h, 12).Serialize()
		id, got, index, ok := parseNextHop(b[unix.SizeofNlMsghdr:])
		if id != 168100352 || got != h || index != 12 || !ok {
			t.Errorf("%+v became %d, %+v, %d, %v", h, id, got, index, ok)
		}
	}
	group := nl.NewRtAttr(unix.NHA_GROUP, make([]byte, 8)).Serialize()
	b := append(nhmsg{protocol: dataplane.ProtoFlannel}.Serialize(), nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(7)).Serialize()...)
	if id, h, _, ok := parseNextHop(append(b, group...)); id != 7 || !ok || h.Proto == dataplane.ProtoFlannel || h.Via.IsValid() {
		t.Errorf("a group became %d, %+v, %v", id, h, ok)
	}
}

// Routes go over to nexthop objects and back, and there is no moment at which
// the kernel does not know the way.
func TestFormsWithoutGap(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 250)
	b.pass(want)
	var dst net.IP
	for k := range want.Routes {
		dst = k.Dst.Addr().Next().AsSlice()
	}
	var stop atomic.Bool
	lost, asked := 0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			asked++
			if _, err := b.other.RouteGet(dst); err != nil {
				lost++
			}
		}
	}()
	for range 6 {
		b.nextHops = !b.nextHops
		if n := len(b.pass(want)); n < 2*250 {
			t.Errorf("%d operations", n)
		}
		b.settled(want)
		if have := b.snapshot(want.ScopeOf(network)); b.nextHops != (len(have.NextHops) > 0) {
			t.Errorf("%d nexthops", len(have.NextHops))
		}
	}
	stop.Store(true)
	if <-done; lost > 0 || asked < 10 {
		t.Errorf("no route %d of %d times", lost, asked)
	}
}

// Without net.ipv4.nexthop_compat_mode a route says nothing but the id.
func TestNextHopsWithoutCompatMode(t *testing.T) {
	b := newBed(t)
	b.nextHops = true
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 20)
	b.pass(want)
	b.must(b.k.setSysctl("net/ipv4/nexthop_compat_mode", "0"))
	b.settled(want)
	b.nextHops = false
	b.pass(want)
	b.settled(want)
}

// Nexthops of others stay as they are, even where we would need the id.
func TestNextHopsOfOthers(t *testing.T) {
	b := newBed(t)
	b.nextHops = true
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 5)
	b.pass(dataplane.State{Links: want.Links})
	theirs := dataplane.NextHop{Link: uplink, Via: netip.MustParseAddr("192.0.2.9"), Proto: 4}
	stray := dataplane.NextHop{Link: uplink, Via: netip.MustParseAddr("192.0.2.9"), Proto: dataplane.ProtoFlannel}
	var taken dataplane.RouteKey
	for k := range want.Routes {
		taken = k
	}
	a := taken.Dst.Addr().As4()
	id := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	b.must(errors.Join(b.k.Apply([]dataplane.Op{
		{Kind: dataplane.KindNextHop, ID: id, NextHop: theirs},
		{Kind: dataplane.KindNextHop, ID: 7, NextHop: stray},
	})...))
	b.pass(want)
	b.settled(want)
	have := b.snapshot(want.ScopeOf(network))
	if have.NextHops[id] != theirs || have.Routes[taken] != want.Routes[taken] {
		t.Errorf("the kernel holds\n%s", have.Text())
	}
	everywhere := b.snapshot(dataplane.Scope{Network: netip.MustParsePrefix("0.0.0.0/0")})
	if everywhere.NextHops[7] != stray {
		t.Error("a nexthop outside our range is gone")
	}
}

package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// await reads events until one of those asked for arrives.
func await(t testing.TB, w *Watch, any driver.Event) {
	t.Helper()
	var seen driver.Event
	deadline := time.After(timeout)
	for seen&any == 0 {
		select {
		case e, open := <-w.Events():
			if !open {
				t.Fatal("the channel of events is closed")
			}
			seen |= e
		case <-deadline:
			t.Fatalf("no event %s; there was %q", any, seen)
		}
	}
}

// drain discards the events so far.
func drain(w *Watch) (e driver.Event) {
	select {
	case e = <-w.Events():
	default:
	}
	return e
}

// Any damage by another program is reported by Watch, and repaired by one pass.
func TestDamageIsSeenAndRepaired(t *testing.T) {
	t.Run("plain routes", func(t *testing.T) { damageIsSeenAndRepaired(t, false) })
	t.Run("routes by way of nexthop objects", func(t *testing.T) { damageIsSeenAndRepaired(t, true) })
}

func damageIsSeenAndRepaired(t *testing.T, nextHops bool) {
	b := newBed(t)
	b.nextHops = nextHops
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 60)
	// By chance, none of them may be reached directly, and lose something with the uplink.
	want.Routes[dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.240.0/28"), Link: uplink}] =
		dataplane.Route{Via: netip.MustParseAddr("192.0.2.7"), Proto: dataplane.ProtoFlannel}
	w := b.watch(want.ScopeOf(b.networks, uplink))
	b.pass(want)
	b.settled(want)
	for _, d := range damages(b, want) {
		t.Run(d.name, func(t *testing.T) {
			drain(w)
			d.do()
			await(t, w, d.seen)
			if len(b.pass(want)) == 0 {
				t.Error("the pass found no damage")
			}
			b.settled(want)
		})
	}
}

type damage struct {
	name string
	seen driver.Event
	do   func()
}

func damages(b *bed, want dataplane.State) []damage {
	all := slices.Concat(linkDamages(b), routeDamages(b, want), neighborDamages(b, want))
	if b.nextHops {
		all = append(all, nextHopDamages(b, want)...)
	}
	return all
}

func (b *bed) index() int { return b.link(overlay).Attrs().Index }

func someFDB(want dataplane.State) dataplane.FDB { return slices.Collect(maps.Keys(want.FDB))[0] }

func someNeigh(want dataplane.State) dataplane.NeighKey {
	return slices.Collect(maps.Keys(want.Neighs))[0]
}

func someRoute(want dataplane.State) dataplane.RouteKey {
	for k := range want.Routes {
		if k.Link == overlay {
			return k
		}
	}
	return dataplane.RouteKey{}
}

func linkDamages(b *bed) []damage {
	return []damage{
		{"link deleted", driver.Links, func() { b.must(b.other.LinkDel(b.link(overlay))) }},
		{"link down", driver.Links, func() { b.must(b.other.LinkSetDown(b.link(overlay))) }},
		{"MAC changed", driver.Links, func() { b.must(b.other.LinkSetHardwareAddr(b.link(overlay), []byte{2, 0xbb, 0, 0, 0, 1})) }},
		{"MTU changed", driver.Links, func() { b.must(b.other.LinkSetMTU(b.link(overlay), 1280)) }},
		{"link renamed", driver.Links, func() {
			b.must(b.other.LinkSetDown(b.link(overlay)))
			b.must(b.other.LinkSetName(b.link(overlay), "stolen"))
			b.must(b.other.LinkDel(b.link("stolen")))
		}},
		{"address deleted", driver.Addrs, func() {
			b.must(b.other.AddrDel(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.1.0/32")}))
		}},
		{"address added", driver.Addrs, func() {
			b.must(b.other.AddrAdd(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.9.9/32")}))
		}},
		{"sysctl and MTU changed", driver.Links, func() {
			b.must(b.k.setSysctl("net/ipv6/conf/"+overlay+"/accept_ra", "2"))
			b.must(b.other.LinkSetMTU(b.link(overlay), 1281))
		}},
		{"uplink down", driver.Uplink, func() {
			up := b.link(uplink)
			b.must(b.other.LinkSetDown(up))
			b.must(b.other.LinkSetUp(up))
		}},
		{"uplink deleted", driver.Links, func() {
			b.must(b.other.LinkDel(b.link(uplink)))
			b.uplink()
		}},
	}
}

func routeDamages(b *bed, want dataplane.State) []damage {
	return []damage{
		{"routes flushed", driver.Routes, func() {
			routes, err := b.other.RouteList(b.link(overlay), unix.AF_INET)
			b.must(err)
			for _, r := range routes {
				b.must(b.other.RouteDel(&netlink.Route{Dst: r.Dst}))
			}
		}},
		{"route taken by another link", driver.Routes, func() {
			k := someRoute(want)
			b.must(b.other.RouteReplace(&netlink.Route{Dst: ipnet(k.Dst.String()), LinkIndex: b.up(), Gw: ipnet("192.0.2.9/32").IP}))
		}},
		{"route made a blackhole", driver.Routes, func() {
			b.must(b.other.RouteReplace(&netlink.Route{Dst: ipnet(someRoute(want).Dst.String()), Type: unix.RTN_BLACKHOLE}))
		}},
		{"another route before it", driver.Routes, func() {
			// The first one, which the kernel prefers to ours.
			b.must(b.other.RouteAddEcmp(&netlink.Route{Dst: ipnet(someRoute(want).Dst.String()), LinkIndex: b.index(), Scope: unix.RT_SCOPE_LINK, Protocol: 4}))
		}},
		{"stale route of ours", driver.Routes, func() {
			b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.200.0/24"), LinkIndex: b.up(), Protocol: dataplane.ProtoFlannel, Gw: ipnet("192.0.2.9/32").IP}))
		}},
	}
}

func nextHopDamages(b *bed, want dataplane.State) []damage {
	theirs := b.another()
	hop := dataplane.NextHop{Link: uplink, Via: netip.MustParseAddr("192.0.2.99"), Proto: dataplane.ProtoFlannel}
	put := func(id uint32, h dataplane.NextHop) {
		b.must(theirs.Apply([]dataplane.Op{dataplane.KindNextHop.Put(id, h)})[0])
	}
	return []damage{
		{"nexthop deleted", driver.Routes, func() {
			b.must(theirs.Apply([]dataplane.Op{dataplane.KindNextHop.Del(someNextHop(want), hop)})[0])
		}},
		{"nexthop with another gateway", driver.Routes, func() { put(someNextHop(want), hop) }},
		{"nexthop taken over", driver.Routes, func() { put(someNextHop(want), dataplane.NextHop{Link: uplink, Via: hop.Via, Proto: 4}) }},
		{"stale nexthop of ours", driver.Routes, func() { put(0x0a05c800, hop) }},
	}
}

func someNextHop(want dataplane.State) uint32 { return dataplane.NextHopID(someRoute(want).Dst) }

func neighborDamages(b *bed, want dataplane.State) []damage {
	return []damage{
		{"neighbours flushed", driver.Neighs, func() {
			neighs, err := b.other.NeighList(b.index(), unix.AF_INET)
			b.must(err)
			for _, n := range neighs {
				b.must(b.other.NeighDel(&n))
			}
		}},
		{"neighbour no longer permanent", driver.Neighs, func() {
			k := someNeigh(want)
			mac := want.Neighs[k]
			b.must(b.other.NeighSet(&netlink.Neigh{LinkIndex: b.index(), State: unix.NUD_REACHABLE, IP: k.IP.AsSlice(), HardwareAddr: mac[:]}))
		}},
		{"neighbour with another MAC", driver.Neighs, func() {
			b.must(b.other.NeighSet(&netlink.Neigh{LinkIndex: b.index(), State: unix.NUD_PERMANENT, IP: someNeigh(want).IP.AsSlice(), HardwareAddr: []byte{2, 1, 1, 1, 1, 1}}))
		}},
	}
}

func fdbEntry(index int, f dataplane.FDB) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF, IP: f.Dst.AsSlice(), HardwareAddr: f.MAC[:]}
}

package kernel

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// TestFilterPassesRoutesIntoTheNetwork compares what the filter passes with what is reported.
func TestFilterPassesRoutesIntoTheNetwork(t *testing.T) {
	b, w, _ := watched(t)
	index := b.link(foreign).Attrs().Index
	for _, c := range []struct {
		dst  string
		want driver.Event
	}{
		{"10.5.0.0/16", driver.Routes}, {"10.5.7.0/24", driver.Routes}, {"10.5.255.255/32", driver.Routes},
		{"10.4.0.0/15", 0}, {"10.0.0.0/8", 0}, {"10.4.255.0/24", 0}, {"10.6.0.0/24", 0}, {"10.6.0.0/16", 0},
		{"0.0.0.0/0", driver.Candidates}, {"128.0.0.0/1", 0}, {"2001:db8::/32", 0}, {"::/0", 0},
	} {
		route := &netlink.Route{Dst: ipnet(c.dst), LinkIndex: index, Priority: 77}
		for _, do := range []func(*netlink.Route) error{b.other.RouteAdd, b.other.RouteDel} {
			if err := do(route); err != nil {
				if netip.MustParsePrefix(c.dst).Addr().Is6() {
					continue // a kernel without IPv6
				}
				t.Fatalf("%s: %v", c.dst, err)
			}
			if c.want != 0 {
				await(t, w, c.want)
			}
			b.quietBut(w, c.want, func() {})
		}
	}
}

// TestRoutingDaemonWakesNobody: a hundred thousand foreign routes are added and deleted, with
// nexthop objects as routing daemons create them; none of their events reaches the watch, and no
// other event is lost.
func TestRoutingDaemonWakesNobody(t *testing.T) {
	b, _, want := watched(t)
	b.snapshot(want.ScopeOf(b.networks)) // knows that no route of the network is by a nexthop of others
	w := b.subscribed(watchBuffer)
	defer w.conn.Close()
	daemon := b.another()
	var ops []dataplane.Op
	for i := range 50_000 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 20<<24+uint32(i)<<8)
		ops = append(ops, dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(netip.AddrFrom4(a), 24), Link: uplink}, dataplane.Route{Via: netip.MustParseAddr("192.0.2.9"), Proto: 186}))
	}
	hop := dataplane.KindNextHop.Put(7, dataplane.NextHop{Link: uplink, Via: netip.MustParseAddr("192.0.2.9"), Proto: 186})
	begun := time.Now()
	for _, verb := range []dataplane.Verb{dataplane.Put, dataplane.Del} {
		for i := range ops {
			ops[i].Verb = verb
		}
		for _, err := range daemon.Apply(ops) {
			b.must(err)
		}
		if hop.Verb = verb; !b.k.noNextHops.Load() {
			b.must(daemon.Apply([]dataplane.Op{hop})[0])
		}
	}
	t.Logf("%d changes of routes within %v", 2*len(ops), time.Since(begun).Round(time.Millisecond))
	// A later event is received, so nothing was lost.
	b.must(b.other.NeighSet(permanent(b.index())))
	heard := 0
	for {
		datagram, err := w.conn.Receive()
		b.must(err)
		heard++
		switch e := w.events(datagram); e {
		case 0, driver.Addrs: // such as the end of IPv6's duplicate detection
		case driver.Neighs:
			if heard > 20 { // nexthops, and addresses of a new link
				t.Errorf("%d events came through", heard)
			}
			return
		default:
			t.Fatalf("reported %s", e)
		}
	}
}

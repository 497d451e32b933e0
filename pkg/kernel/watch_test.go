package kernel

import (
	"context"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/lab/wait"
)

// quiet proves that nothing was reported, by causing something that is: events
// arrive in order.
func (b *bed) quiet(w *Watch) {
	b.t.Helper()
	b.quietBut(w, 0, nil)
}

// quietBut lets some events be reported, and calls read when they were.
func (b *bed) quietBut(w *Watch, some driver.Event, read func()) {
	b.t.Helper()
	probe := &netlink.Addr{IPNet: ipnet("10.5.77.7/32")}
	b.must(b.other.AddrAdd(b.link(overlay), probe))
	var e driver.Event
	for e&driver.Addrs == 0 {
		e |= <-w.Events()
	}
	b.must(b.other.AddrDel(b.link(overlay), probe))
	await(b.t, w, driver.Addrs)
	if e&^(some|driver.Addrs) != 0 {
		b.t.Errorf("events %q were reported that concern nobody", e&^driver.Addrs)
	}
	if e&some != 0 {
		read()
	}
}

func watched(t *testing.T) (*bed, *Watch, dataplane.State) {
	b := newBed(t)
	b.strangers()
	r := chance(t)
	want := wantPeers(r, vxlanLink(r), 20)
	b.pass(want)
	w := b.watch(want.ScopeOf(b.networks, uplink))
	return b, w, want
}

// subscribed is a Watch whose events nobody reads yet.
func (b *bed) subscribed(buffer int) *Watch {
	b.t.Helper()
	w := &Watch{k: b.k, interest: dataplane.Scope{Networks: b.networks, Links: []string{overlay}}, buffer: buffer, out: driver.NewMailbox()}
	b.must(w.subscribe())
	return w
}

func permanent(index int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: ipnet("10.5.2.0/32").IP, HardwareAddr: []byte{2, 1, 1, 1, 1, 1}}
}

func TestWatchIgnoresOthers(t *testing.T) {
	b, w, _ := watched(t)
	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bare"}}))
	other := b.link("bare")
	b.must(b.other.LinkSetUp(other))
	index := other.Attrs().Index
	neigh := permanent(index)
	b.must(b.other.NeighSet(neigh))
	b.must(b.other.NeighDel(neigh))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("172.30.0.0/16"), LinkIndex: index}))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.8.0/24"), LinkIndex: index, Table: 200}))
	b.must(b.other.AddrAdd(other, &netlink.Addr{IPNet: ipnet("2001:db8::8/128")}))
	b.must(b.other.LinkSetMTU(other, 1300))
	b.must(b.other.LinkDel(other))
	b.quiet(w)
}

// TestWatchReportsCandidates: of other links, those that have addresses or default routes
// could be chosen as the uplink.
func TestWatchReportsCandidates(t *testing.T) {
	b, w, _ := watched(t)
	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bare"}}))
	other := b.link("bare")
	b.must(b.other.LinkSetUp(other))
	b.must(b.other.LinkSetMTU(other, 1300)) // no address yet: no candidate
	b.quiet(w)
	for _, change := range []func() error{
		func() error { return b.other.AddrAdd(other, &netlink.Addr{IPNet: ipnet("203.0.113.8/24")}) },
		func() error {
			return b.other.RouteAdd(&netlink.Route{Dst: ipnet("0.0.0.0/0"), LinkIndex: other.Attrs().Index, Gw: ipnet("203.0.113.1/32").IP})
		},
		func() error { return b.other.LinkSetMTU(other, 1400) },
		func() error { return b.other.LinkSetDown(other) },
		func() error { return b.other.AddrDel(other, &netlink.Addr{IPNet: ipnet("203.0.113.8/24")}) },
		func() error { return b.other.LinkDel(other) },
	} {
		b.must(change())
		await(t, w, driver.Candidates)
		b.quietBut(w, driver.Candidates, func() {})
	}
}

// Our own changes come back with our port id, except those of FDB entries,
// which are known by what they say.
func TestWatchIgnoresOwnChanges(t *testing.T) {
	b, w, want := watched(t)
	less := dataplane.State{Links: want.Links, Addrs: want.Addrs}
	for _, b.nextHops = range []bool{true, false} {
		for _, s := range []dataplane.State{less, want} {
			if len(b.pass(s)) == 0 {
				t.Error("the pass changes nothing")
			}
			b.quiet(w)
		}
	}
}

func TestWatchHoldsOneSet(t *testing.T) {
	b, w, want := watched(t)
	for k := range want.Neighs {
		b.must(b.other.NeighDel(&netlink.Neigh{LinkIndex: b.index(), IP: k.IP.AsSlice()}))
	}
	b.must(b.other.AddrDel(b.link(overlay), &netlink.Addr{IPNet: ipnet("10.5.1.0/32")}))
	b.must(b.other.LinkSetMTU(b.link(uplink), 1400))
	wait.True(t, "all events in one set", func() bool {
		e := <-w.Events()
		w.out.Report(e) // put back; later ones are merged into it
		return e&(driver.Neighs|driver.Addrs|driver.Uplink) == driver.Neighs|driver.Addrs|driver.Uplink
	})
}

func TestWatchEndsWithItsContext(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	w, err := b.k.Watch(ctx, dataplane.Scope{})
	b.must(err)
	cancel()
	for range w.Events() { // until it is closed
	}
}

// Focus takes up links that exist already, and drops others.
func TestWatchFocus(t *testing.T) {
	b, w, want := watched(t)
	neigh := permanent(b.link(foreign).Attrs().Index)
	w.Focus(dataplane.Scope{Networks: []netip.Prefix{network}, Links: []string{foreign}})
	b.must(b.other.NeighSet(neigh))
	await(t, w, driver.Neighs)
	w.Focus(want.ScopeOf(b.networks, uplink))
	drain(w)
	b.must(b.other.NeighDel(neigh))
	b.quiet(w)
}

func TestWatchOverflow(t *testing.T) {
	b, _, _ := watched(t)
	// A buffer for a single event, and a burst of them in one system call.
	w := b.subscribed(1)
	go w.run(t.Context())
	another := b.another()
	r := chance(t)
	var burst []dataplane.Op
	for range 2000 {
		burst = append(burst, dataplane.KindNeigh.Put(dataplane.NeighKey{Link: overlay, IP: netip.MustParseAddr("10.5.3.0")}, randomMAC(r)))
	}
	wait.True(t, "an overflow", func() bool {
		for _, err := range another.Apply(burst) {
			b.must(err)
		}
		return drain(w)&driver.Overflow != 0
	})
	// It continues to work.
	drain(w)
	b.must(b.other.LinkSetMTU(b.link(overlay), 1280))
	await(t, w, driver.Links|driver.Overflow)
}

// another is a second Kernel of the namespace, which stands for another program.
func (b *bed) another() *Kernel {
	b.t.Helper()
	var k *Kernel
	err := b.k.ns.Do(func() (err error) {
		k, err = New()
		return err
	})
	b.must(err)
	b.t.Cleanup(func() { k.Close() })
	return k
}

func TestWatchRecoversFromABrokenSocket(t *testing.T) {
	b, w, _ := watched(t)
	w.mu.Lock()
	w.conn.Close() // any failure will do
	w.mu.Unlock()
	await(t, w, driver.Overflow)
	b.must(b.other.LinkSetMTU(b.link(overlay), 1280))
	await(t, w, driver.Links)
}

package kernel

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

func TestInventory(t *testing.T) {
	b := newBed(t)
	up := b.link(uplink)
	b.must(b.other.AddrAdd(up, &netlink.Addr{IPNet: ipnet("198.51.100.7/25"), ValidLft: 3600, PreferedLft: 1800}))
	b.must(b.other.AddrAdd(up, &netlink.Addr{IPNet: ipnet("198.51.100.9/25")}))
	index := up.Attrs().Index
	gw := netip.MustParseAddr("192.0.2.254")
	for _, r := range []netlink.Route{
		{Dst: ipnet("0.0.0.0/0"), LinkIndex: index, Gw: gw.AsSlice(), Src: ipnet("198.51.100.9/32").IP, Priority: 100},
		{Dst: ipnet("10.9.0.0/16"), MultiPath: []*netlink.NexthopInfo{{LinkIndex: index, Gw: gw.AsSlice()}, {LinkIndex: index, Gw: ipnet("192.0.2.253/32").IP}}},
		{Dst: ipnet("10.8.0.0/16"), Type: unix.RTN_UNREACHABLE},
		{Dst: ipnet("10.7.0.0/16"), LinkIndex: index, Table: 100},
	} {
		b.must(b.other.RouteAdd(&r))
	}
	inv, err := b.k.Inventory(Wanted{Routes: true})
	b.must(err)
	i := slices.IndexFunc(inv.Ifaces, func(i host.Iface) bool { return i.Name == uplink })
	if i < 0 {
		t.Fatalf("%s is missing in %v", uplink, inv.Ifaces)
	}
	got := inv.Ifaces[i]
	if got.Index != index || got.MTU != 1500 || !got.Up || !got.Running || !bytes.Equal(got.MAC[:], up.Attrs().HardwareAddr) {
		t.Errorf("got %+v", got)
	}
	want := []host.Addr{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}, {Prefix: netip.MustParsePrefix("198.51.100.7/25"), Dynamic: true},
		{Prefix: netip.MustParsePrefix("198.51.100.9/25"), Secondary: true}}
	got.Addrs = slices.DeleteFunc(got.Addrs, func(a host.Addr) bool { return a.Prefix.Addr().Is6() })
	if !slices.Equal(got.Addrs, want) {
		t.Errorf("addresses %v, want %v", got.Addrs, want)
	}
	routes := []host.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: uplink, Gateway: gw, Source: netip.MustParseAddr("198.51.100.9"), Metric: 100},
		{Dst: netip.MustParsePrefix("10.9.0.0/16")},
		{Dst: netip.MustParsePrefix("192.0.2.0/24"), Iface: uplink, Source: uplinkIP, Kernel: true},
		{Dst: netip.MustParsePrefix("198.51.100.0/25"), Iface: uplink, Source: netip.MustParseAddr("198.51.100.7"), Kernel: true},
	}
	t.Logf("the kernel has IPv6: %v", inv.IPv6)
	inv.Routes = slices.DeleteFunc(inv.Routes, func(r host.Route) bool { return r.Dst.Addr().Is6() })
	if !slices.Equal(inv.Routes, routes) {
		t.Errorf("routes %v, want %v", inv.Routes, routes)
	}
}

// TestInventoryHasWhatIsWanted: of links without addresses and routes only those that were named,
// and of the routes those that are asked for.
func TestInventoryHasWhatIsWanted(t *testing.T) {
	b := newBed(t)
	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bare"}}))
	b.must(b.other.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "named"}}))
	index, gw := b.up(), netip.MustParseAddr("192.0.2.254").AsSlice()
	for _, dst := range []string{"0.0.0.0/0", "128.0.0.0/1", "20.0.0.0/8", "20.1.0.0/16", "20.2.0.0/16", "10.5.0.0/16", "10.5.9.0/24"} {
		b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet(dst), LinkIndex: index, Gw: gw}))
	}
	bare := b.link("bare")
	b.must(b.other.LinkSetUp(bare))
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet("10.5.7.0/24"), LinkIndex: bare.Attrs().Index, Scope: netlink.SCOPE_LINK}))
	for _, c := range []struct {
		wanted        Wanted
		links, routes string
	}{
		{Wanted{}, "lo up0", "0.0.0.0/0"},
		{Wanted{Names: []string{"named", "none", "a-name-that-no-link-can-have"}}, "lo up0 named", "0.0.0.0/0"},
		{Wanted{Routes: true, Network: network}, "lo up0", "0.0.0.0/0 128.0.0.0/1 192.0.2.0/24"},
		{Wanted{Targets: []netip.Addr{netip.MustParseAddr("20.1.2.3"), netip.MustParseAddr("10.5.9.9")}, Network: network}, "lo up0",
			"0.0.0.0/0 10.5.0.0/16 10.5.9.0/24 20.0.0.0/8 20.1.0.0/16"},
		{Wanted{Targets: []netip.Addr{netip.MustParseAddr("10.5.7.9")}, Network: network}, "lo up0 bare", "0.0.0.0/0 10.5.0.0/16 10.5.7.0/24"},
	} {
		inv, err := b.k.Inventory(c.wanted)
		b.must(err)
		var links, routes []string
		for _, i := range inv.Ifaces {
			links = append(links, i.Name)
		}
		for _, r := range inv.Routes {
			routes = append(routes, r.Dst.String())
		}
		slices.Sort(links[1:])
		want := strings.Fields(c.links)
		slices.Sort(want[1:])
		if !slices.Equal(links, want) || strings.Join(routes, " ") != c.routes {
			t.Errorf("%+v: got %v with %v, want %s with %s", c.wanted, links, routes, c.links, c.routes)
		}
	}
}

func TestRouteTo(t *testing.T) {
	b := newBed(t)
	iface, src, err := b.k.RouteTo(netip.MustParseAddr("192.0.2.77"))
	if iface != uplink || src != uplinkIP || err != nil {
		t.Errorf("got %s, %s, %v", iface, src, err)
	}
	if _, _, err := b.k.RouteTo(netip.MustParseAddr("10.99.0.1")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("got %v, want ENETUNREACH", err)
	}
}

// All methods work in the namespace of New, whatever the caller's.
func TestSysctlsFollowTheNamespace(t *testing.T) {
	b := newBed(t)
	path := "net/ipv4/conf/" + uplink + "/forwarding"
	for _, v := range []string{"1", "0"} {
		b.must(b.k.setSysctl(path, v))
		got, err := b.k.Sysctls([]string{path, "net/ipv4/conf/missing/forwarding"})
		b.must(err)
		if len(got) != 1 || got[path] != v {
			t.Errorf("read %v after writing %s", got, v)
		}
	}
	if err := b.k.setSysctl("../../tmp/file", "1"); err == nil {
		t.Error("a path outside /proc/sys was accepted")
	}
}

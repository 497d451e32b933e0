package kernel

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

func TestApplyManyPeers(t *testing.T) {
	b, want := withPeers(t, 2000)
	b.settled(want)
	own := dataplane.State{Links: want.Links}
	b.pass(own)
	b.settled(own)
}

// Few answers fit into a small receive buffer.
func TestApplyWithASmallReceiveBuffer(t *testing.T) {
	b, want := withPeers(t, 200)
	r := chance(t)
	b.must(b.k.conn.Close())
	var err error
	b.k.conn, err = b.k.ns.Dial(unix.NETLINK_ROUTE, 1)
	b.must(err)
	var ops []dataplane.Op
	for k := range want.Neighs {
		ops = append(ops, dataplane.KindNeigh.Put(dataplane.NeighKey{Link: overlay, IP: k.IP}, randomMAC(r)))
		// The kernel refuses a gateway that no route leads to.
		ops = append(ops, dataplane.KindRoute.Put(dataplane.RouteKey{Dst: netip.PrefixFrom(k.IP, 32), Link: uplink}, dataplane.Route{Via: netip.MustParseAddr("10.77.0.1")}))
	}
	failures := 0
	for i, err := range b.k.Apply(ops) {
		switch ops[i].Kind {
		case dataplane.KindNeigh:
			if err != nil {
				t.Fatalf("%s: %v", ops[i], err)
			}
		default:
			if !errors.Is(err, unix.ENETUNREACH) {
				t.Fatalf("%s: got %v, want ENETUNREACH", ops[i], err)
			}
			failures++
		}
	}
	have := b.snapshot(want.ScopeOf(b.networks))
	for _, op := range ops {
		if k, mac := dataplane.KindNeigh.Of(op); op.Kind == dataplane.KindNeigh && have.Neighs[k] != mac {
			t.Fatalf("%s is reported as done and is not", op)
		}
	}
	t.Logf("%d of %d operations failed as they should", failures, len(ops))
}

func TestOneFailureHarmsNoOther(t *testing.T) {
	b, _ := withPeers(t, 0)
	prefix := netip.MustParsePrefix
	neigh := func(link, ip string) dataplane.NeighKey {
		return dataplane.NeighKey{Link: link, IP: netip.MustParseAddr(ip)}
	}
	mac := randomMAC(chance(t))
	good := dataplane.Route{Via: netip.MustParseAddr("10.5.2.0"), OnLink: true, Proto: dataplane.ProtoBoot}
	ops := []struct {
		op    dataplane.Op
		errno unix.Errno
		text  string
	}{
		{dataplane.KindNeigh.Put(neigh(overlay, "10.5.2.0"), mac), 0, ""},
		{dataplane.KindNeigh.Put(neigh("missing", "10.5.2.0"), mac), unix.ENODEV,
			"replace neighbour 10.5.2.0 dev missing: no such device"},
		{dataplane.KindRoute.Put(dataplane.RouteKey{Dst: prefix("10.5.3.0/24"), Link: overlay}, dataplane.Route{Via: netip.MustParseAddr("10.77.0.1")}), unix.ENETUNREACH,
			"replace route 10.5.3.0/24 dev flannel.1: network is unreachable: Nexthop has invalid gateway"},
		{dataplane.KindRoute.Put(dataplane.RouteKey{Dst: prefix("10.5.2.0/24"), Link: overlay}, good), 0, ""},
		{dataplane.KindLink.Put("flannel.2", dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 2, Parent: "missing", Port: 8472}), unix.ENODEV,
			"replace link flannel.2: find parent missing: no such device"},
		{dataplane.KindAddr.Put(dataplane.Addr{Link: "flannel.2", Prefix: prefix("10.5.4.0/32")}, struct{}{}), unix.ENODEV, "replace address"},
		{dataplane.KindLink.Put("flannel.3", dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 3, Parent: uplink, Port: 8472, MTU: 1450, Up: true}), 0, ""},
		{dataplane.KindAddr.Put(dataplane.Addr{Link: "flannel.3", Prefix: prefix("10.5.5.0/32")}, struct{}{}), 0, ""},
		{dataplane.KindAddr.Put(dataplane.Addr{Link: "flannel.3", Prefix: prefix("10.5.5.0/32")}, struct{}{}), 0, ""},
		{dataplane.KindSysctl.Put("net/ipv4/conf/missing/rp_filter", "0"), unix.ENOENT, "replace sysctl net/ipv4/conf/missing/rp_filter: "},
		{dataplane.SetLink("flannel.3", dataplane.Link{Kind: dataplane.KindVXLAN, MTU: 1 << 20, Up: true}, dataplane.Link{}), unix.EINVAL, "change link flannel.3: invalid argument"},
		{dataplane.KindLink.Put("flannel.3", dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 4, Parent: uplink}), unix.EEXIST, "replace link flannel.3: file exists"},
		// Deleting a missing object is a success.
		{dataplane.KindRoute.Del(dataplane.RouteKey{Dst: prefix("10.5.9.0/24"), Link: overlay}, dataplane.Route{}), 0, ""},
		{dataplane.KindNeigh.Del(neigh(overlay, "10.5.9.0"), dataplane.MAC{}), 0, ""},
		{dataplane.KindFDB.Del(dataplane.FDB{Link: overlay, MAC: mac, Dst: uplinkIP}, struct{}{}), 0, ""},
		{dataplane.KindAddr.Del(dataplane.Addr{Link: overlay, Prefix: prefix("10.5.9.0/32")}, struct{}{}), 0, ""},
		{dataplane.KindAddr.Del(dataplane.Addr{Link: "missing", Prefix: prefix("10.5.9.0/32")}, struct{}{}), 0, ""},
		{dataplane.KindLink.Del("missing", dataplane.Link{}), 0, ""},
	}
	var batch []dataplane.Op
	for _, o := range ops {
		batch = append(batch, o.op)
	}
	for i, err := range b.k.Apply(batch) {
		o := ops[i]
		switch {
		case o.errno == 0 && err != nil:
			t.Errorf("%s: %v", o.op, err)
		case o.errno != 0 && (!errors.Is(err, o.errno) || !strings.HasPrefix(err.Error(), o.text)):
			t.Errorf("%s: got %v, want %s…", o.op, err, o.text)
		}
	}
	have := b.snapshot(dataplane.Scope{Networks: []netip.Prefix{network}, Links: []string{overlay, "flannel.3"}})
	if have.Neighs[neigh(overlay, "10.5.2.0")] != mac || have.Routes[dataplane.RouteKey{Dst: prefix("10.5.2.0/24"), Link: overlay}] != good {
		t.Errorf("what was done is not there:\n%s", have.Text())
	}
	if _, ok := have.Addrs[dataplane.Addr{Link: "flannel.3", Prefix: prefix("10.5.5.0/32")}]; !ok {
		t.Errorf("a link made in the same batch was not found:\n%s", have.Text())
	}
}

// A multipath route is read, has no owner, and stays.
func TestMultipathRouteIsAConflict(t *testing.T) {
	b, want := withPeers(t, 0)
	dst := netip.MustParsePrefix("10.5.7.0/24")
	b.must(b.other.RouteAdd(&netlink.Route{Dst: ipnet(dst.String()), MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: b.up(), Gw: ipnet("192.0.2.8/32").IP}, {LinkIndex: b.up(), Gw: ipnet("192.0.2.9/32").IP},
	}}))
	key := dataplane.RouteKey{Dst: dst, Link: overlay}
	want.Routes[key] = dataplane.Route{Via: dst.Addr(), OnLink: true, Proto: dataplane.ProtoBoot}
	d := b.diff(want)
	conflict := dataplane.KindRoute.Put(key, want.Routes[key])
	if d.Len() != 0 || len(d.Conflicts) != 1 || d.Conflicts[0].Op.String() != conflict.String() {
		t.Errorf("operations %v, conflicts %v; want one conflict about %s", slices.Collect(d.Ops()), d.Conflicts, dst)
	}
}

// A device with the same attributes that another program has created is adopted without a change.
func TestEqualDeviceIsAdopted(t *testing.T) {
	b := newBed(t)
	link := vxlanLink(chance(t))
	b.addVXLAN(link, 0)
	b.must(b.other.LinkSetUp(b.link(overlay)))
	b.settled(dataplane.State{Links: map[string]dataplane.Link{overlay: link}})
}

// TestIPv6Objects: IPv6 objects are kept in sync like those of IPv4 on the same link.
func TestIPv6Objects(t *testing.T) {
	b := newBed(t)
	r := chance(t)
	want := dataplane.NewState()
	link := vxlanLink(r)
	link.MTU = 1430
	link.Local = netip.MustParseAddr("2001:db8::1")
	want.Links["flannel-v6.1"] = link
	want.Addrs[dataplane.Addr{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd00:5:0:1::/128")}] = struct{}{}
	want.Addrs[dataplane.Addr{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("10.5.1.0/32")}] = struct{}{}
	want.Routes[dataplane.RouteKey{Dst: netip.MustParsePrefix("10.5.9.0/24"), Link: "flannel-v6.1"}] = dataplane.Route{Proto: dataplane.ProtoBoot}
	for i := range 20 {
		gw := netip.AddrFrom16([16]byte{0xfd, 0, 0, 5, 0, 0, 0, byte(2 + i)})
		mac := randomMAC(r)
		want.FDB[dataplane.FDB{Link: "flannel-v6.1", MAC: mac, Dst: netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(2 + i)})}] = struct{}{}
		want.Neighs[dataplane.NeighKey{Link: "flannel-v6.1", IP: gw}] = mac
		want.Routes[dataplane.RouteKey{Dst: netip.PrefixFrom(gw, 64), Link: "flannel-v6.1"}] = dataplane.Route{Via: gw, OnLink: true, Proto: dataplane.ProtoBoot}
	}
	b.networks = append(b.networks, netip.MustParsePrefix("fd00:5::/48"))
	for _, w := range []dataplane.State{want, {Links: want.Links}} {
		b.pass(w)
		b.settled(w)
	}
}

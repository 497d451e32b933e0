package dataplane

import (
	"net/netip"
	"runtime"
	"testing"
	"weak"
)

func TestOpText(t *testing.T) {
	link := Link{Kind: KindVXLAN, VNI: 1, Parent: "eth0", Local: netip.MustParseAddr("192.0.2.1"), Port: 8472, MAC: MAC{2, 5: 1}, MTU: 1450, Up: true}
	other := link
	other.MAC, other.MTU, other.Learning, other.Up = MAC{2, 5: 9}, 1400, true, false
	addr := Addr{Link: "flannel.1", Prefix: netip.MustParsePrefix("10.5.1.0/32")}
	fdb := FDB{Link: "flannel.1", MAC: MAC{2, 5: 2}, Dst: netip.MustParseAddr("192.0.2.2")}
	neigh := NeighKey{Link: "flannel.1", IP: netip.MustParseAddr("10.5.2.0")}
	key := RouteKey{Dst: netip.MustParsePrefix("10.5.2.0/24"), Link: "flannel.1"}
	route := Route{Via: neigh.IP, OnLink: true, Proto: ProtoBoot}
	for _, c := range []struct {
		op              Op
		command, object string
	}{
		{KindLink.Put("flannel.1", link),
			"ip link add flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning && ip link set flannel.1 up", "link flannel.1"},
		{SetLink("flannel.1", link, other),
			"ip link set flannel.1 address 02:00:00:00:00:01 mtu 1450 up && ip link set flannel.1 type vxlan nolearning", "link flannel.1"},
		{SetLink("flannel.1", other, link),
			"ip link set flannel.1 address 02:00:00:00:00:09 mtu 1400 down && ip link set flannel.1 type vxlan learning", "link flannel.1"},
		{KindLink.Del("flannel.1", link), "ip link del flannel.1", "link flannel.1"},
		{KindSysctl.Put("net/ipv6/conf/flannel.1/accept_ra", "0"),
			"sysctl -w net/ipv6/conf/flannel.1/accept_ra=0", "sysctl net/ipv6/conf/flannel.1/accept_ra"},
		{KindAddr.Put(addr, struct{}{}), "ip addr replace 10.5.1.0/32 dev flannel.1", "address 10.5.1.0/32 dev flannel.1"},
		{KindAddr.Del(addr, struct{}{}), "ip addr del 10.5.1.0/32 dev flannel.1", "address 10.5.1.0/32 dev flannel.1"},
		{KindFDB.Put(fdb, struct{}{}), "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent", "fdb 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1"},
		{KindFDB.Del(fdb, struct{}{}), "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent", "fdb 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1"},
		{KindNeigh.Put(neigh, fdb.MAC), "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent", "neighbour 10.5.2.0 dev flannel.1"},
		{KindNeigh.Del(neigh, MAC{}), "ip neigh del 10.5.2.0 dev flannel.1", "neighbour 10.5.2.0 dev flannel.1"},
		{KindRoute.Put(key, route), "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink", "route 10.5.2.0/24 dev flannel.1"},
		{KindRoute.Del(key, route), "ip route del 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink", "route 10.5.2.0/24 dev flannel.1"},
	} {
		if got := c.op.String(); got != c.command {
			t.Errorf("got  %s\nwant %s", got, c.command)
		}
		if got := c.op.Object(); got != c.object {
			t.Errorf("got  %s\nwant %s", got, c.object)
		}
		if got := c.op.Clone().String(); got != c.command {
			t.Errorf("its clone is %s\nwant %s", got, c.command)
		}
	}
}

// TestCloneKeepsNothingElse: a cloned operation does not retain the others of its Delta.
func TestCloneKeepsNothingElse(t *testing.T) {
	want := NewState()
	for i := range byte(100) {
		want.Addrs[Addr{"flannel.1", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, i, 0}), 32)}] = struct{}{}
	}
	kept := func() (op Op, all weak.Pointer[object[Addr, struct{}]]) {
		for op := range Diff(want, NewState(), Scope{}, true).Ops() {
			return op.Clone(), weak.Make(op.object.(*object[Addr, struct{}]))
		}
		return op, all
	}
	op, all := kept()
	runtime.GC()
	if all.Value() != nil {
		t.Error("the Delta is kept")
	}
	if want := "ip addr replace 10.5.0.0/32 dev flannel.1"; op.String() != want {
		t.Errorf("the operation is %s, want %s", op, want)
	}
}

package cleanup

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
)

// TestCleanupRemovesOnlyWhatIsProvablyOurs: each row is a state of the kernel, and the commands for
// network 10.42.0.0/16.
func TestCleanupRemovesOnlyWhatIsProvablyOurs(t *testing.T) {
	vxlan := dataplane.Link{Kind: dataplane.KindVXLAN, VNI: 1}
	type state struct {
		links  map[string]dataplane.Link
		addrs  []dataplane.Addr
		routes map[dataplane.RouteKey]dataplane.Route
		hops   map[uint32]dataplane.NextHop
	}
	prefix, via := netip.MustParsePrefix, netip.MustParseAddr
	addr := func(link, p string) dataplane.Addr { return dataplane.Addr{Link: link, Prefix: prefix(p)} }
	route := func(dst, link string) dataplane.RouteKey {
		p, _ := netip.ParsePrefix(dst)
		return dataplane.RouteKey{Dst: p, Link: link}
	}
	for name, c := range map[string]struct {
		state
		want string
		left string
	}{
		"vxlan with everything on it": {state{
			map[string]dataplane.Link{"flannel.1": vxlan}, []dataplane.Addr{addr("flannel.1", "10.42.7.0/32"), addr("flannel.1", "fe80::1/64")},
			map[dataplane.RouteKey]dataplane.Route{
				route("10.42.9.0/24", "flannel.1"):  {Via: via("10.42.9.0"), OnLink: true, Proto: dataplane.ProtoBoot},
				route("10.42.10.0/24", "flannel.1"): {Via: via("10.42.10.0"), OnLink: true, Proto: dataplane.ProtoBoot, NextHop: 0x0a2a0a00},
			},
			map[uint32]dataplane.NextHop{0x0a2a0a00: {Link: "flannel.1", Via: via("10.42.10.0"), OnLink: true, Proto: dataplane.ProtoFlannel}},
		}, "ip link del flannel.1", ""},
		"its address was deleted": {state{
			links:  map[string]dataplane.Link{"flannel.1": vxlan},
			routes: map[dataplane.RouteKey]dataplane.Route{route("10.42.9.0/24", "flannel.1"): {Via: via("10.42.9.0"), Proto: dataplane.ProtoBoot}},
		}, "ip link del flannel.1", ""},
		"udp": {state{
			links: map[string]dataplane.Link{"flannel0": {Kind: dataplane.KindTUN}, "flannel1": {Kind: dataplane.KindTUN}},
			addrs: []dataplane.Addr{addr("flannel0", "10.43.1.0/32"), addr("flannel1", "10.42.1.0/32")},
		}, "ip link del flannel1", ""},
		"host-gw and a blackhole": {state{
			routes: map[dataplane.RouteKey]dataplane.Route{
				route("10.42.9.0/24", "eth0"):  {Via: via("192.0.2.9"), Proto: dataplane.ProtoFlannel},
				route("10.42.10.0/24", "eth0"): {Via: via("192.0.2.10"), Proto: dataplane.ProtoBoot},
				route("10.43.9.0/24", "eth0"):  {Via: via("192.0.2.9"), Proto: dataplane.ProtoFlannel},
				route("10.42.7.0/24", ""):      {Blackhole: true, Proto: dataplane.ProtoFlannel},
			},
			hops: map[uint32]dataplane.NextHop{0x0a2a0b00: {Link: "eth0", Via: via("192.0.2.11"), Proto: dataplane.ProtoFlannel}, 7: {Link: "eth0", Via: via("192.0.2.7"), Proto: dataplane.ProtoFlannel}},
		}, "ip route del 10.42.9.0/24 via 192.0.2.9 dev eth0 proto 70; ip route del blackhole 10.42.7.0/24 proto 70; ip nexthop del id 170527488", ""},
		"another network's device": {state{
			links: map[string]dataplane.Link{"flannel.1": vxlan}, addrs: []dataplane.Addr{addr("flannel.1", "10.43.7.0/32")},
		}, "", ""},
		"a device that both have": {state{
			links: map[string]dataplane.Link{"flannel.1": vxlan}, addrs: []dataplane.Addr{addr("flannel.1", "10.43.7.0/32"), addr("flannel.1", "10.42.7.0/32")},
		}, "", "flannel.1 is left, for it has 10.43.7.0/32 too, which is not in 10.42.0.0/16: ip link del flannel.1"},
		"devices of ours in name only": {state{
			links: map[string]dataplane.Link{"flannel.2": vxlan, "flannel.3": {Kind: "bridge"}, "flannel0": {Kind: "veth"}, "flannel.4": {Kind: dataplane.KindTUN}},
			addrs: []dataplane.Addr{addr("flannel.2", "10.42.7.0/32"), addr("flannel.3", "10.42.7.0/32"), addr("flannel0", "10.42.7.0/32"), addr("flannel.4", "10.42.7.0/32")},
		}, "", ""},
	} {
		have := dataplane.NewState()
		have.Add(dataplane.State{Links: c.links, Routes: c.routes, NextHops: c.hops})
		for _, a := range c.addrs {
			have.Addrs[a] = struct{}{}
		}
		clean := &cleanup{owner: firewall.Owner{Network: prefix("10.42.0.0/16")}}
		ops, left := clean.removal(have, dataplane.Scope{Networks: []netip.Prefix{clean.owner.Network}, NextHops: true})
		var commands []string
		for _, op := range ops {
			commands = append(commands, op.String())
		}
		if got := strings.Join(commands, "; "); sorted(got) != sorted(c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if (left == nil) != (c.left == "") || left != nil && left.Error() != c.left {
			t.Errorf("%s: %v, want %q", name, left, c.left)
		}
	}
}

func sorted(commands string) string {
	all := strings.Split(commands, "; ")
	slices.Sort(all)
	return strings.Join(all, "; ")
}

func TestSubnetFileOfAnotherProcess(t *testing.T) {
	for _, c := range []struct{ args, env, want string }{
		{"flanneld", "", "/run/flannel/subnet.env"},
		{"flanneld -subnet-file=/a", "", "/a"},
		{"/opt/bin/flanneld --subnet-file /a -v 1", "FLANNELD_SUBNET_FILE=/b", "/a"},
		{"flanneld -subnet-file=/a -subnet-file=/c", "", "/c"},
		{"flanneld -v=1", "PATH=/bin FLANNELD_SUBNET_FILE=/b", "/b"},
		{"flanneld -v=1", "FLANNELD_SUBNET_FILE=", "/run/flannel/subnet.env"},
		{"", "", "/run/flannel/subnet.env"},
	} {
		zeros := func(s string) []byte { return []byte(strings.ReplaceAll(s, " ", "\x00") + "\x00") }
		if got := subnetFileOf(zeros(c.args), zeros(c.env)); got != c.want {
			t.Errorf("%q with %q: %s, want %s", c.args, c.env, got, c.want)
		}
	}
}

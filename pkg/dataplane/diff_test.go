package dataplane

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	device  = "link flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning up\n"
	address = "addr 10.5.1.0/32 dev flannel.1\n"
	sysctl0 = "sysctl net/ipv6/conf/flannel.1/accept_ra = 0\n"
	peer2   = `fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
neigh 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
`
	peer2hop = `fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
neigh 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
nexthop id 168100352 via 10.5.2.0 dev flannel.1 onlink proto 70
route 10.5.2.0/24 nhid 168100352 via 10.5.2.0 dev flannel.1 onlink
`
	peer3 = `fdb 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self permanent
neigh 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent
route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
`
)

func TestDiff(t *testing.T) {
	for _, c := range []struct {
		name       string
		want, have string
		keep       bool // no prune
		nextHops   bool
		ops        string
		conflicts  string
	}{
		{name: "nothing to do", want: device + address + sysctl0 + peer2, have: device + address + sysctl0 + peer2},
		{
			name: "first start",
			want: device + address + sysctl0 + peer2,
			ops: `ip link add flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning && ip link set flannel.1 up
sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
ip addr replace 10.5.1.0/32 dev flannel.1
bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
`,
		},
		{
			name: "one peer joins and another leaves",
			want: device + peer3, have: device + peer2,
			ops: `bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self permanent
ip neigh replace 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent
ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
ip route del 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
ip neigh del 10.5.2.0 dev flannel.1
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
`,
		},
		{name: "nobody leaves while the view is incomplete", want: device, have: device + peer2, keep: true},
		{
			name: "a peer has another VTEP",
			want: device + peer2, have: device + strings.ReplaceAll(strings.ReplaceAll(peer2, "00:02", "00:22"), "192.0.2.2", "192.0.2.22"),
			ops: `bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
bridge fdb del 02:00:00:00:00:22 dev flannel.1 dst 192.0.2.22 self permanent
`,
		},
		{
			name: "a changed MAC takes the neighbours along",
			want: device + sysctl0 + peer2, have: strings.Replace(device, "00:01", "00:99", 1) + sysctl0 + peer2,
			ops: `ip link set flannel.1 address 02:00:00:00:00:01
ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
`,
		},
		{
			name: "MTU, learning and state change in place",
			want: device + peer2, have: strings.NewReplacer("1450", "1400", "nolearning", "learning", " up", " down").Replace(device) + peer2,
			ops: "ip link set flannel.1 mtu 1450 up && ip link set flannel.1 type vxlan nolearning\n",
		},
		{
			name: "another port needs another device, which has nothing yet",
			want: device + address + sysctl0, have: strings.Replace(device, "8472", "4789", 1) + address + sysctl0 + peer2,
			ops: `ip link del flannel.1
ip link add flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning && ip link set flannel.1 up
sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
ip addr replace 10.5.1.0/32 dev flannel.1
`,
		},
		{name: "any MAC will do", want: strings.Replace(device, " address 02:00:00:00:00:01", "", 1), have: device},
		{
			name: "somebody else's device has our name",
			want: device + address + sysctl0 + peer2, have: "link flannel.1 mtu 1500 type bridge up\naddr 10.5.9.0/32 dev flannel.1\n" + peer3,
			conflicts: "link flannel.1: another device of that name and of type bridge exists\n",
		},
		{
			name: "addresses outside the network stay",
			want: device + address, have: device + address + "addr 10.5.9.9/32 dev flannel.1\naddr fe80::1/64 dev flannel.1\naddr 10.9.0.1/32 dev flannel.1\naddr 10.5.9.9/32 dev eth0\n",
			ops: "ip addr del 10.5.9.9/32 dev flannel.1\n",
		},
		{
			name: "the kernel's route of an address goes with it",
			want: device + address, have: device + "addr 10.5.1.0/16 dev flannel.1\nroute 10.5.0.0/16 dev flannel.1 proto kernel\n",
			ops: `ip addr replace 10.5.1.0/32 dev flannel.1
ip addr del 10.5.1.0/16 dev flannel.1
`,
		},
		{
			name: "only stamped routes on foreign links are ours",
			have: "route 10.5.2.0/24 via 192.0.2.2 dev eth0\nroute 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 70\nroute 10.6.3.0/24 via 192.0.2.3 dev eth0 proto 70\n",
			ops:  "ip route del 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 70\n",
		},
		{
			name: "a leftover without our stamp is adopted where wanted",
			want: "route 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70\n", have: "route 10.5.2.0/24 via 192.0.2.2 dev eth0\n",
			ops: "ip route replace 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70\n",
		},
		{
			name: "a route moves to another link",
			want: device + "route 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70\n", have: device + peer2,
			ops: `ip route replace 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70
ip route del 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
ip neigh del 10.5.2.0 dev flannel.1
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
`,
		},
		{
			name: "routes go over to nexthop objects", nextHops: true,
			want: device + peer2, have: device + peer2,
			ops: `ip nexthop replace id 168100352 via 10.5.2.0 dev flannel.1 onlink proto 70
ip route replace 10.5.2.0/24 nhid 168100352
`,
		},
		{name: "routes by way of nexthop objects", nextHops: true, want: device + peer2, have: device + peer2hop},
		{
			name: "and back, with what nobody needs",
			want: device + peer2, have: device + peer2hop + "nexthop id 168100609 via 10.5.3.1 dev flannel.1 onlink proto 70\n",
			ops: `ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
ip nexthop del id 168100352
ip nexthop del id 168100609
`,
		},
		{
			name: "a peer with a nexthop leaves", nextHops: true,
			want: device, have: device + peer2hop,
			ops: `ip route del 10.5.2.0/24 nhid 168100352
ip nexthop del id 168100352
ip neigh del 10.5.2.0 dev flannel.1
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
`,
		},
		{
			name: "a route through a nexthop moves to another link, and is not deleted there", nextHops: true,
			want: "route 10.5.2.0/24 via 192.0.2.2 dev eth1 proto 70\n",
			have: "nexthop id 168100352 via 192.0.2.2 dev eth0 proto 70\nroute 10.5.2.0/24 nhid 168100352 via 192.0.2.2 dev eth0 proto 70\n",
			ops: `ip nexthop replace id 168100352 via 192.0.2.2 dev eth1 proto 70
ip route replace 10.5.2.0/24 nhid 168100352 proto 70
`,
		},
		{
			name: "nexthops of others stay, and their ids are theirs", nextHops: true,
			want: device + peer2, have: device + peer2 + "nexthop id 168100352 via 192.0.2.7 dev eth0 proto 4\nnexthop id 7 via 192.0.2.7 dev eth0 proto 70\n",
		},
		{
			name: "a nexthop that somebody has turned elsewhere", nextHops: true,
			want: device + peer2, have: device + strings.ReplaceAll(peer2hop, "via 10.5.2.0", "via 10.5.2.9"),
			ops: `ip nexthop replace id 168100352 via 10.5.2.0 dev flannel.1 onlink proto 70
ip route replace 10.5.2.0/24 nhid 168100352
`,
		},
		{
			name:      "what must not be replaced",
			want:      "route 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 70\nroute 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 70\n",
			have:      "route 10.5.2.0/24 multipath proto 4\nroute 10.5.3.0/24 dev docker0 proto kernel\n",
			conflicts: "route 10.5.2.0/24 dev eth0: a foreign multipath route exists there\nroute 10.5.3.0/24 dev eth0: an interface address of dev docker0 covers the same destination\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, have := parse(t, c.want), parse(t, c.have)
			scope := want.ScopeOf([]netip.Prefix{network})
			scope.NextHops = c.nextHops
			delta := Diff(want, have, scope, !c.keep)
			if got := commands(slices.Collect(delta.Ops())); got != c.ops || delta.Len() != strings.Count(got, "\n") {
				t.Errorf("operations:\n%s\nwant:\n%s", got, c.ops)
			}
			got := ""
			for _, x := range delta.Conflicts {
				got += x.Op.Object() + ": " + x.Reason + "\n"
			}
			if got != c.conflicts {
				t.Errorf("conflicts:\n%s\nwant:\n%s", got, c.conflicts)
			}
		})
	}
}

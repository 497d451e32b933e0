package host

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// The tables below have links as "name kind addr..." and routes as in ip-route(8), with "proto
// kernel" for those of addresses.
func surroundings(t *testing.T, links, routes []string) (s Surroundings) {
	t.Helper()
	for _, l := range links {
		w := strings.Fields(l)
		link := Link{Name: w[0], Kind: w[1]}
		for _, a := range w[2:] {
			link.Addrs = append(link.Addrs, netip.MustParsePrefix(a))
		}
		s.Links = append(s.Links, link)
	}
	for _, r := range routes {
		var p Path
		w := strings.Fields(r)
		if strings.Trim(w[0], "abcdefghijklmnopqrstuvwxyz") == "" {
			p.Type, w = w[0], w[1:]
		}
		p.Dst = netip.MustParsePrefix(w[0])
		for i := 1; i+1 < len(w); i += 2 {
			switch w[i] {
			case "via":
				p.Gateway = netip.MustParseAddr(w[i+1])
			case "src":
				p.Source = netip.MustParseAddr(w[i+1])
			case "dev":
				p.Iface = w[i+1]
			case "proto":
				p.Kernel = w[i+1] == "kernel"
			case "metric":
				fmt.Sscan(w[i+1], &p.Metric)
			default:
				t.Fatalf("%q in %q", w[i], r)
			}
		}
		s.Paths = append(s.Paths, p)
	}
	return s
}

func TestCheck(t *testing.T) {
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	facts := Facts{Uplink: "eth0", Underlay: []Route{
		{Dst: prefix("0.0.0.0/0"), Iface: "eth0", Gateway: ip("192.0.2.1")},
		{Dst: prefix("192.0.2.0/24"), Iface: "eth0"},
	}}
	overlay := Overlay{
		Network: prefix("10.42.0.0/16"), Subnet: prefix("10.42.7.0/24"), Devices: []string{"flannel.1"}, Others: []netip.Prefix{prefix("10.43.0.0/16")},
		Peers: []Peer{{prefix("10.42.3.0/24"), ip("192.0.2.3")}, {prefix("10.42.9.0/24"), ip("192.0.2.9")}, {prefix("10.42.64.0/20"), ip("10.42.200.4")}},
	}
	const docker = "docker0 bridge 10.42.7.1/24"
	const dockerRoute = "10.42.7.0/24 dev docker0 proto kernel"
	for _, c := range []struct {
		name          string
		whole         bool
		links, routes []string
		want          []string // ID, command and parts of the fields
	}{
		{"nothing", false, nil, nil, nil},
		{"docker as it should be", false, []string{"eth0 device 192.0.2.7/24", docker, "flannel.1 vxlan 10.42.7.0/32"}, []string{dockerRoute}, nil},
		{"docker on a part of the subnet", false, []string{"docker0 bridge 10.42.7.1/25"}, []string{"10.42.7.0/25 dev docker0 proto kernel"}, nil},
		{"other networks of docker outside", false, []string{docker, "br-0123456789ab bridge 172.18.0.1/16", "docker_gwbridge bridge 172.19.0.1/16"}, []string{dockerRoute}, nil},

		{"names that a shell would execute", false, []string{docker, "$(id) dummy 10.42.9.1/25"}, []string{dockerRoute, "10.42.9.0/25 dev $(id) proto kernel", "10.42.3.0/25 dev a;b"},
			[]string{"peer-route|ip addr del 10.42.9.1/25 dev '$(id)'; ip route del 10.42.3.0/25 dev 'a;b'|peer 10.42.9.0/24"}},
		{"docker0 elsewhere", false, []string{"docker0 bridge 172.17.0.1/16"}, nil,
			[]string{"docker/docker0|systemctl restart docker|device docker0 addr 172.17.0.1/16 subnet 10.42.7.0/24"}},
		{"docker0 elsewhere, another bridge serves", false, []string{"docker0 bridge 172.17.0.1/16", "cni0 bridge 10.42.7.1/24"}, []string{"10.42.7.0/24 dev cni0 proto kernel"}, nil},
		{"our own device serves nobody", false, []string{"docker0 bridge 172.17.0.1/16", "flannel.1 vxlan 10.42.7.0/32"}, nil, []string{"docker/docker0|systemctl restart docker|"}},
		{"docker0 in the network of another daemon", false, []string{"docker0 bridge 10.43.7.1/24"}, nil, nil},
		{"docker0 on the subnet of before", false, []string{"docker0 bridge 10.42.8.1/24"}, []string{"10.42.8.0/24 dev docker0 proto kernel"},
			[]string{"docker/docker0|systemctl restart docker|addr 10.42.8.1/24"}},
		{"docker0 with a peer's subnet", false, []string{"docker0 bridge 10.42.9.1/24"}, []string{"10.42.9.0/24 dev docker0 proto kernel"},
			[]string{"docker/docker0|systemctl restart docker|peer 10.42.9.0/24"}},
		{"docker0 with a part of a peer's", false, []string{"docker0 bridge 10.42.79.1/24"}, []string{"10.42.79.0/24 dev docker0 proto kernel"},
			[]string{"docker/docker0|systemctl restart docker|peer 10.42.64.0/20"}},
		{"docker0 with the whole network", false, []string{"docker0 bridge 10.42.0.1/16"}, []string{"10.42.0.0/16 dev docker0 proto kernel"},
			[]string{"docker/docker0|systemctl restart docker|addr 10.42.0.1/16"}},
		{"docker0 with more than the network", false, []string{"docker0 bridge 10.0.0.1/8"}, nil, []string{"docker/docker0|systemctl restart docker|addr 10.0.0.1/8"}},
		{"docker0 with some of the network", false, []string{"docker0 bridge 10.42.4.1/22"}, nil, []string{"docker/docker0|systemctl restart docker|addr 10.42.4.1/22"}},
		{"a network of docker with a peer's subnet", false, []string{docker, "br-0123456789ab bridge 10.42.3.1/24"}, []string{dockerRoute, "10.42.3.0/24 dev br-0123456789ab proto kernel"},
			[]string{"docker/br-0123456789ab|docker network rm 0123456789ab|peer 10.42.3.0/24"}},
		{"names that are not plainly docker's", false, []string{"br-lan bridge 10.42.3.1/24", "docker0 dummy 172.17.0.1/16", "br-0123456789xy bridge 10.42.0.1/16"}, nil, nil},

		{"a stale route by a gateway, docker is not there yet", false, nil, []string{"10.42.7.0/24 via 192.0.2.9 dev eth0"},
			[]string{"route|ip route del 10.42.7.0/24 via 192.0.2.9 dev eth0|subnet 10.42.7.0/24 route 10.42.7.0/24 via 192.0.2.9 dev eth0 routes 1"}},
		{"one with a metric, docker is not there yet", false, nil, []string{"10.42.7.0/24 via 192.0.2.9 dev eth0 metric 100"}, nil},
		{"ahead of docker's", false, []string{docker}, []string{"10.42.7.0/24 via 192.0.2.9 dev eth0", dockerRoute}, []string{"route|ip route del 10.42.7.0/24 via 192.0.2.9 dev eth0|"}},
		{"behind docker's", false, []string{docker}, []string{dockerRoute, "10.42.7.0/24 via 192.0.2.9 dev eth0"}, nil},
		{"docker's with a metric", false, []string{docker}, []string{dockerRoute + " metric 5", "10.42.7.0/24 via 192.0.2.9 dev eth0 metric 6"}, nil},
		{"docker's with a greater metric", false, []string{docker}, []string{"10.42.7.0/24 via 192.0.2.9 dev eth0 metric 4", dockerRoute + " metric 5"},
			[]string{"route|ip route del 10.42.7.0/24 via 192.0.2.9 dev eth0 metric 4|"}},
		{"a longer one", false, []string{docker}, []string{dockerRoute, "10.42.7.128/25 dev eth1"}, []string{"route|ip route del 10.42.7.128/25 dev eth1|"}},
		{"a longer one behind docker's bridge", false, []string{docker}, []string{dockerRoute, "10.42.7.128/25 via 10.42.7.2 dev docker0"}, nil},
		{"unreachable", false, []string{docker}, []string{dockerRoute, "unreachable 10.42.7.128/25"}, []string{"route|ip route del unreachable 10.42.7.128/25|"}},
		{"by several links", false, []string{docker}, []string{"10.42.7.0/24", dockerRoute}, []string{"route|ip route del 10.42.7.0/24|"}},
		{"another interface with the same subnet", false, []string{docker, "virbr0 bridge 10.42.7.254/24"}, []string{"10.42.7.0/24 dev virbr0 proto kernel", dockerRoute},
			[]string{"route|ip addr del 10.42.7.254/24 dev virbr0|"}},
		{"a route to each container, without a bridge", false, nil, []string{"10.42.7.2/32 dev veth2", "10.42.7.3/32 dev veth3"}, nil},
		{"many", false, []string{docker}, []string{dockerRoute, "10.42.7.1/32 dev a", "10.42.7.2/32 dev b", "10.42.7.3/32 dev c", "10.42.7.4/32 dev d"},
			[]string{"route|ip route del 10.42.7.1/32 dev a; ip route del 10.42.7.2/32 dev b; ip route del 10.42.7.3/32 dev c|routes 4"}},

		{"a LAN in the subnet, by the uplink", false, []string{docker, "eth0 veth 10.42.7.130/26"}, []string{dockerRoute, "10.42.7.128/26 dev eth0 proto kernel"}, []string{"lan-inside||route 10.42.7.128/26 dev eth0"}},
		{"a LAN in the subnet, by another interface", false, []string{docker, "eth1 device 10.42.7.130/26"}, []string{dockerRoute, "10.42.7.128/26 dev eth1 proto kernel"}, []string{"lan-inside||route 10.42.7.128/26 dev eth1"}},

		{"a part of a peer's subnet", false, nil, []string{"10.42.9.128/25 via 192.0.2.33 dev eth0"}, []string{"peer-route|ip route del 10.42.9.128/25 via 192.0.2.33 dev eth0|peer 10.42.9.0/24"}},
		{"a peer's subnet with another metric", false, nil, []string{"10.42.9.0/24 via 192.0.2.33 dev eth0 metric 7"}, nil},
		{"a subnet that nobody has", false, nil, []string{"10.42.10.0/24 via 192.0.2.33 dev eth0"}, nil},
		{"another LAN inside a peer's subnet", false, []string{"eth1 device 10.42.9.130/25"}, []string{"10.42.9.128/25 dev eth1 proto kernel"}, []string{"peer-route||peer 10.42.9.0/24 route 10.42.9.128/25 dev eth1"}},
		{"the LAN inside a peer's subnet", false, nil, []string{"10.42.65.0/24 dev eth0 proto kernel"}, nil},

		{"a host's address inside the network", true, nil, nil, []string{"peer-address|ip route add 10.42.200.4/32 via 192.0.2.1 dev eth0|public_ip 10.42.200.4 peers 1"}},
		{"and one route a peer", false, nil, nil, nil},
		{"and a route that leads there", true, nil, []string{"10.42.200.0/24 dev eth0 proto kernel"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := overlay
			if c.whole {
				o.Routed = []netip.Prefix{o.Network}
			}
			found := o.Check(facts, surroundings(t, c.links, c.routes))
			for i, f := range found {
				said := strings.Trim(fmt.Sprint(f.Fields), "[]")
				if f.Text == "" || i >= len(c.want) {
					t.Errorf("found %q: %s: %s: %s", f.ID, f.Text, said, f.Command)
					continue
				}
				w := strings.Split(c.want[i], "|")
				if f.ID != w[0] || f.Command != w[1] || !strings.Contains(said, w[2]) {
					t.Errorf("found %s|%s|%s, want %s", f.ID, f.Command, said, c.want[i])
				}
			}
			if len(found) < len(c.want) {
				t.Errorf("found %d, want %q", len(found), c.want)
			}
		})
	}
}

func TestCheckOfADetour(t *testing.T) {
	o := Overlay{Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.7.0/24"), Devices: []string{"flannel.1"}}
	for _, c := range []struct{ bridge, iface, want string }{
		{"docker0 bridge 10.42.7.1/24", "wg0", "ip rule add to 10.42.0.0/16 lookup main priority 51"},
		{"docker0 bridge 10.42.7.1/24", "docker0", ""}, // the same gateway as without it
		{"flannel.1 vxlan 10.42.7.0/32", "wg0", ""},    // the default route, as long as docker is not there
	} {
		s := surroundings(t, []string{c.bridge}, nil)
		s.Detour = &Detour{Table: 52, Iface: c.iface, Priority: 52}
		got := ""
		for _, f := range o.Check(Facts{}, s) {
			got += f.Command
		}
		if got != c.want {
			t.Errorf("%s, by %s: %q, want %q", c.bridge, c.iface, got, c.want)
		}
	}
	if a := o.Container(); a.String() != "10.42.7.2" {
		t.Errorf("a container's address is %s", a)
	}
}

package host

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// routesOf parses routes such as "10.0.0.0/8 via 192.0.2.1 dev eth0 proto kernel metric 100". The
// protocol is kernel or 70, which is flanneld's.
func routesOf(t *testing.T, texts ...string) (all []Route) {
	t.Helper()
	for _, text := range texts {
		stamped := strings.Contains(text, "proto 70")
		for _, p := range surroundings(t, nil, []string{text}).Paths {
			p.Stamped = stamped
			all = append(all, p.Route)
		}
	}
	return all
}

// TestNeeds checks the addresses that a host needs inside the network, how they are reached and
// which routes would divert packets to them.
func TestNeeds(t *testing.T) {
	const byDefault, etcd = "0.0.0.0/0 via 192.0.2.1 dev eth0", "10.200.1.10"
	for _, c := range []struct {
		name     string
		network  string // empty: 10.0.0.0/8
		addrs    string // of the host
		wanted   string
		routes   []string
		want     string // each with the prefix length of the longest foreign route
		takes    []string
		harmless []string
	}{
		{name: "behind the default gateway", wanted: etcd, routes: []string{byDefault}, want: "10.200.1.10 etcd 0",
			takes: []string{"10.0.0.0/8", "10.200.1.0/24", "10.200.1.10/32"}, harmless: []string{"10.200.2.0/24", "10.42.0.0/16"}},
		{name: "without any route", wanted: etcd, want: "10.200.1.10 etcd -1", takes: []string{"0.0.0.0/0", "10.200.1.0/24"}},
		{name: "outside the network", wanted: "203.0.113.9", routes: []string{byDefault}, want: ""},
		{name: "on the LAN inside the network", wanted: "10.99.0.5", routes: []string{"10.99.0.0/16 dev eth0 proto kernel"}, want: "10.99.0.5 etcd 16 firm",
			takes: []string{"10.99.0.0/20", "10.99.0.4/30"}, harmless: []string{"10.0.0.0/8", "10.99.0.0/16"}},
		{name: "on a LAN with a metric", wanted: "10.99.0.5", routes: []string{"10.99.0.0/16 dev eth0 proto kernel metric 100"}, want: "10.99.0.5 etcd 16",
			takes: []string{"10.99.0.0/16", "10.99.0.0/20"}, harmless: []string{"10.0.0.0/8"}},
		{name: "behind a router's route", wanted: etcd, routes: []string{byDefault, "10.200.0.0/16 via 192.0.2.9 dev eth0"}, want: "10.200.1.10 etcd 16",
			takes: []string{"10.200.1.0/24", "10.200.0.0/16"}, harmless: []string{"10.0.0.0/8"}},
		{name: "a router inside the network", wanted: "203.0.113.9", routes: []string{byDefault, "203.0.113.0/24 via 10.99.0.9 dev eth0", "10.99.0.0/16 dev eth0 proto kernel"},
			want: "10.99.0.9 the gateway to etcd 16 firm", takes: []string{"10.99.0.0/24"}, harmless: []string{"10.99.0.0/16"}},
		{name: "a default gateway inside the network", routes: []string{"0.0.0.0/0 via 10.99.0.1 dev eth0", "10.99.0.0/16 dev eth0 proto kernel"},
			want: "10.99.0.1 the default gateway 16 firm", takes: []string{"10.99.0.0/24"}, harmless: []string{"10.0.0.0/8"}},
		{name: "in a container of this host", wanted: "10.42.7.5", routes: []string{byDefault, "10.42.7.0/24 dev docker0 proto kernel"}, want: "10.42.7.5 etcd 24 firm",
			takes: []string{"10.42.7.0/25"}, harmless: []string{"10.0.0.0/8", "10.42.7.0/24"}},
		{name: "in a container of a peer", wanted: "10.42.9.5", routes: []string{byDefault, "10.42.9.0/24 via 10.42.9.0 dev flannel.1"}, want: "10.42.9.5 etcd 0",
			takes: []string{"10.42.9.0/24"}},
		{name: "behind a route of ours to a peer on the link", wanted: "10.42.9.5", routes: []string{byDefault, "10.42.9.0/24 via 192.0.2.33 dev eth0 proto 70"}, want: "10.42.9.5 etcd 0",
			takes: []string{"10.42.9.0/24"}},
		{name: "behind the tunnel of udp", wanted: etcd, routes: []string{byDefault, "10.0.0.0/8 dev flannel0"}, want: "10.200.1.10 etcd 0", takes: []string{"10.0.0.0/8"}},
		{name: "of this host", addrs: "10.200.1.10/16", wanted: etcd, routes: []string{byDefault}, want: ""},
		{name: "given twice", wanted: etcd + " " + etcd, routes: []string{byDefault}, want: "10.200.1.10 etcd 0"},
		{name: "of another family", wanted: "2001:db8::5", routes: []string{byDefault}, want: ""},
		{name: "on the link, of IPv6", network: "2001:db8::/32", wanted: "2001:db8:1::5", routes: []string{"2001:db8:1::/48 dev eth0 proto kernel"}, want: "2001:db8:1::5 etcd 48 firm",
			takes: []string{"2001:db8:1::/64"}, harmless: []string{"2001:db8::/32"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inv := Inventory{Routes: routesOf(t, c.routes...)}
			for _, a := range strings.Fields(c.addrs) {
				inv.Ifaces = append(inv.Ifaces, Iface{Name: "eth0", Addrs: []Addr{{Prefix: netip.MustParsePrefix(a)}}})
			}
			var wanted []Need
			for _, a := range strings.Fields(c.wanted) {
				wanted = append(wanted, Need{Addr: netip.MustParseAddr(a), What: "etcd"})
			}
			var said []string
			needs := inv.Needs(netip.MustParsePrefix(cmp.Or(c.network, "10.0.0.0/8")), wanted)
			for _, n := range needs {
				text := fmt.Sprint(n.Addr, " ", n.What, " ", n.Bits)
				if n.Firm {
					text += " firm"
				}
				said = append(said, text)
			}
			if got := strings.Join(said, ", "); got != c.want {
				t.Fatalf("needs %q, want %q", got, c.want)
			}
			for want, routes := range map[bool][]string{true: c.takes, false: c.harmless} {
				for _, dst := range routes {
					if got := needs[0].DivertedBy(netip.MustParsePrefix(dst)); got != want {
						t.Errorf("a route to %s takes it: %v", dst, got)
					}
				}
			}
		})
	}
}

func TestFindingsOfWhatTheHostNeeds(t *testing.T) {
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	facts := Facts{Uplink: "eth0", Underlay: routesOf(t, "0.0.0.0/0 via 192.0.2.1 dev eth0", "192.0.2.0/24 dev eth0 proto kernel")}
	overlay := Overlay{
		Network: prefix("10.0.0.0/8"), Subnet: prefix("10.42.7.0/24"), Devices: []string{"flannel.1"},
		Peers: []Peer{{prefix("10.42.9.0/24"), ip("192.0.2.9")}},
	}
	for _, c := range []struct {
		name   string
		needs  []Need
		server string
		routed string
		routes []string
		want   string
	}{
		{name: "etcd in the subnet", needs: []Need{{Addr: ip("10.42.7.9"), What: "etcd", Bits: 0}}, want: "need-inside 10.42.7.0/24 10.42.7.9 etcd"},
		{name: "etcd in a container here", needs: []Need{{Addr: ip("10.42.7.9"), What: "etcd", Bits: 24, Firm: true}}},
		{name: "a longer route to etcd", needs: []Need{{Addr: ip("10.42.9.5"), What: "etcd", Bits: 32}}, routes: []string{"10.42.9.5/32 via 192.0.2.1 dev eth0"}},
		{name: "a name server elsewhere", server: "203.0.113.53"},
		{name: "a name server in no subnet", server: "10.255.255.53"},
		{name: "a name server in a peer's subnet", server: "10.42.9.53", want: "name-server 10.42.9.53 10.42.9.0/24 ip route add 10.42.9.53/32 via 192.0.2.1 dev eth0"},
		{name: "and a longer route to it", server: "10.42.9.53", routes: []string{"10.42.9.53/32 via 192.0.2.1 dev eth0"}},
		{name: "a name server where all of the network is led into the tunnel", server: "10.255.255.53", routed: "10.0.0.0/8",
			want: "name-server 10.255.255.53 10.0.0.0/8 ip route add 10.255.255.53/32 via 192.0.2.1 dev eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, f := overlay, facts
			f.Needs = c.needs
			if c.server != "" {
				inv := Inventory{Routes: append(routesOf(t, c.routes...), facts.Underlay...)}
				f.NameServers = inv.Inside(o.Network, []Need{{Addr: ip(c.server), What: "a name server"}})
			}
			if c.routed != "" {
				o.Routed = []netip.Prefix{prefix(c.routed)}
			}
			var said []string
			for _, x := range o.Check(f, surroundings(t, nil, c.routes)) {
				values := []string{x.ID}
				for i := 1; i < len(x.Fields); i += 2 {
					values = append(values, fmt.Sprint(x.Fields[i]))
				}
				said = append(said, strings.TrimSpace(strings.Join(append(values, x.Command), " ")))
			}
			if got := strings.Join(said, "; "); got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

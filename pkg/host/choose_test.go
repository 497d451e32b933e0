package host

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func addr(s string) Addr { return Addr{Prefix: netip.MustParsePrefix(s)} }

// vagrant is a machine whose default route uses the wrong interface.
var vagrant = Inventory{
	Ifaces: []Iface{
		{Name: "lo", Index: 1, MTU: 65536, Up: true, Addrs: []Addr{addr("127.0.0.1/8")}},
		{Name: "eth0", Running: true, Index: 2, MTU: 1500, Up: true, Addrs: []Addr{addr("10.0.2.15/24"), addr("fe80::1/64")}},
		{Name: "eth1", Running: true, Index: 3, MTU: 9000, Up: true, Addrs: []Addr{
			addr("169.254.3.3/16"),
			{Prefix: netip.MustParsePrefix("192.168.50.99/24"), Dynamic: true},
			{Prefix: netip.MustParsePrefix("192.168.50.98/24"), Deprecated: true},
			addr("192.168.50.11/24"),
			addr("192.168.50.12/24"),
		}},
		{Name: "bare", Index: 4, MTU: 1500},
		{Name: "nomtu", Index: 5, Addrs: []Addr{addr("192.168.60.1/24")}},
	},
	Routes: []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.168.50.1"), Iface: "eth1", Metric: 200},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.0.2.2"), Iface: "eth0", Metric: 100},
		{Dst: netip.MustParsePrefix("192.168.50.0/24"), Iface: "eth1"},
		{Dst: netip.MustParsePrefix("192.168.50.128/25"), Iface: "eth1", Gateway: netip.MustParseAddr("192.168.50.1")},
	},
}

func reachEth1(a netip.Addr) (string, netip.Addr, error) {
	if a == netip.MustParseAddr("203.0.113.1") {
		return "eth1", netip.MustParseAddr("192.168.50.12"), nil
	}
	return "", netip.Addr{}, errors.New("network is unreachable")
}

func TestChoose(t *testing.T) {
	ip := netip.MustParseAddr
	noDefault := Inventory{Ifaces: vagrant.Ifaces}
	multipath := Inventory{Ifaces: vagrant.Ifaces, Routes: []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}}}
	for _, c := range []struct {
		name string
		sel  Selectors
		inv  Inventory
		want string // the choice, or a part of the error
	}{
		{"default route with the lowest metric", Selectors{}, vagrant, "eth0 10.0.2.15 by default route"},
		{"name", Selectors{Ifaces: []string{"eth1"}}, vagrant, "eth1 192.168.50.11 by iface eth1"},
		{"address", Selectors{Ifaces: []string{"192.168.50.12"}}, vagrant, "eth1 192.168.50.12 by iface 192.168.50.12"},
		{"second of several", Selectors{Ifaces: []string{"bond0", "bare", "eth1"}}, vagrant, "eth1 192.168.50.11 by iface eth1"},
		{"regex on addresses", Selectors{Regexes: []string{`^192\.168\.50\.12$`}}, vagrant, "eth1 192.168.50.12 by iface-regex ^192\\.168\\.50\\.12$"},
		{"regex on addresses before names", Selectors{Regexes: []string{`eth0|50\.11`}}, vagrant, "eth1 192.168.50.11 by iface-regex eth0|50\\.11"},
		{"regex on names", Selectors{Regexes: []string{`eth[1-9]`}}, vagrant, "eth1 192.168.50.11 by iface-regex eth[1-9]"},
		{"name before regex", Selectors{Ifaces: []string{"eth0"}, Regexes: []string{"eth1"}}, vagrant, "eth0 10.0.2.15 by iface eth0"},
		{"reach last", Selectors{Regexes: []string{"none"}, CanReach: ip("203.0.113.1")}, vagrant, "eth1 192.168.50.12 by iface-can-reach 203.0.113.1"},
		{"public IP held by an interface", Selectors{PublicIP: ip("192.168.50.12")}, vagrant, "eth1 192.168.50.12 by public-ip 192.168.50.12"},
		{"public IP behind NAT", Selectors{PublicIP: ip("198.51.100.7")}, vagrant, "eth0 10.0.2.15 by default route"},
		{"public IP and a name", Selectors{Ifaces: []string{"eth1"}, PublicIP: ip("10.0.2.15")}, vagrant, "eth1 192.168.50.11 by iface eth1"},
		{"no such name", Selectors{Ifaces: []string{"bond0"}}, vagrant, "iface bond0: there is no such interface; there are lo, eth0, eth1, bare, nomtu"},
		{"no address", Selectors{Ifaces: []string{"bare"}}, vagrant, "interface bare has no usable IPv4 address"},
		{"loopback", Selectors{Ifaces: []string{"lo"}}, vagrant, "interface lo has no usable IPv4 address"},
		{"no such address", Selectors{Ifaces: []string{"192.0.2.1"}}, vagrant, "no interface has the address 192.0.2.1"},
		{"IPv6 address", Selectors{Ifaces: []string{"fe80::1"}}, vagrant, "fe80::1 is not an IPv4 address"},
		{"regex", Selectors{Regexes: []string{"wlan", "("}}, vagrant, "iface-regex wlan: no address or name matches"},
		{"all failures are named", Selectors{Ifaces: []string{"bond0"}, CanReach: netip.MustParseAddr("192.0.2.1")}, vagrant, "iface-can-reach 192.0.2.1: network is unreachable"},
		{"no default route", Selectors{}, noDefault, "there is no default route: choose an interface with -iface"},
		{"multipath", Selectors{}, multipath, "the default route names no single interface"},
	} {
		u, err := Choose(c.sel, c.inv, nil, reachEth1)
		if got := fmt.Sprint(u.Iface, " ", u.Addr, " by ", u.Reason); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

// TestChooseNeverTheOverlay: devices of the overlay, bridges of containers and their routes are not
// candidates. An uplink whose network is inside the overlay's network is one.
func TestChooseNeverTheOverlay(t *testing.T) {
	p := netip.MustParsePrefix
	up := func(name string, addrs ...string) Iface {
		i := Iface{Name: name, MTU: 1500, Up: true, Running: true}
		for _, a := range addrs {
			i.Addrs = append(i.Addrs, addr(a))
		}
		return i
	}
	own := []netip.Prefix{p("10.42.7.1/24"), p("10.42.9.0/24"), {}}
	devices := []Iface{up("flannel.1", "10.42.7.0/32"), up("docker0", "10.42.7.1/24"), up("cni0", "10.42.9.1/24"), up("flannel0", "10.77.0.0/32"), up("flannel-v6.1", "10.77.0.1/32")}
	any10 := Selectors{Regexes: []string{`^10\.`}}
	for _, c := range []struct {
		name   string
		sel    Selectors
		ifaces []Iface
		routes []string
		want   string // interface, or the error
	}{
		{"expression, without another", any10, devices, nil, "no address or name matches; there are "},
		{"expression, with another", any10, append(devices[:5:5], up("eth0", "10.99.0.2/16")), nil, "eth0"},
		{"expression on names", Selectors{Regexes: []string{"flannel|docker|eth"}}, append(devices[:5:5], up("eth0", "10.99.0.2/16")), nil, "eth0"},
		{"uplink inside the network", any10, append(devices[:5:5], up("eth0", "10.42.200.2/24")), nil, "eth0"},
		{"uplink inside the own subnet", Selectors{}, append(devices[:5:5], up("eth0", "10.42.7.200/16")), []string{"0.0.0.0/0 via 10.42.0.1 dev eth0"}, "eth0"},
		{"uplink inside the own subnet, by name", Selectors{Ifaces: []string{"eth0"}}, append(devices[:5:5], up("eth0", "10.42.7.200/16")), []string{"0.0.0.0/0 via 10.42.0.1 dev eth0"}, "eth0"},
		{"default route by a container", Selectors{}, devices, []string{"0.0.0.0/0 via 10.42.7.9 dev docker0"}, "there is no default route"},
		{"another bridge", any10, append(devices[:5:5], up("br0", "10.5.0.1/24")), nil, "br0"},
		{"by name", Selectors{Ifaces: []string{"flannel.1"}}, devices, nil, "interface flannel.1 belongs to the overlay"},
		{"by address", Selectors{Ifaces: []string{"10.42.7.1"}}, devices, nil, "no interface has the address 10.42.7.1"},
		{"by public IP", Selectors{PublicIP: netip.MustParseAddr("10.42.7.1")}, append(devices[:5:5], up("eth0", "10.99.0.2/16")), []string{"0.0.0.0/0 dev eth0 metric 0"}, "eth0"},
		{"by reach", Selectors{CanReach: netip.MustParseAddr("203.0.113.1")}, devices, nil, "interface flannel.1 belongs to the overlay"},
		{"default route by it", Selectors{}, append(devices[:5:5], up("eth0", "10.99.0.2/16")), []string{"0.0.0.0/0 dev flannel.1 metric 0", "0.0.0.0/0 dev docker0 metric 5", "0.0.0.0/0 dev eth0 metric 100"}, "eth0"},
		{"no default route but by it", Selectors{}, devices, []string{"0.0.0.0/0 dev flannel.1 metric 0"}, "there is no default route"},
		{"default routes by an interface without address", Selectors{}, []Iface{up("tun0"), up("eth0", "10.99.0.2/16")}, []string{"0.0.0.0/0 dev tun0 metric 0", "0.0.0.0/0 dev eth0 metric 100"}, "eth0"},
		{"no carrier, but better", Selectors{}, []Iface{{Name: "eth0", Up: true, Addrs: []Addr{addr("10.99.0.2/16")}}, up("eth1", "10.98.0.2/16")}, []string{"0.0.0.0/0 dev eth0 metric 0", "0.0.0.0/0 dev eth1 metric 100"}, "eth1"},
		{"no carrier, no other", Selectors{}, []Iface{{Name: "eth0", Up: true, Addrs: []Addr{addr("10.99.0.2/16")}}}, []string{"0.0.0.0/0 dev eth0 metric 0"}, "eth0"},
	} {
		reach := func(netip.Addr) (string, netip.Addr, error) {
			return "flannel.1", netip.MustParseAddr("10.42.7.0"), nil
		}
		u, err := Choose(c.sel, Inventory{Ifaces: c.ifaces, Routes: routesOf(t, c.routes...)}, own, reach)
		if err == nil && u.Iface != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v; want %s", c.name, u, err, c.want)
		}
	}
}

// TestSourceAddress: of several addresses, the source address of the default route is chosen.
func TestSourceAddress(t *testing.T) {
	p := netip.MustParsePrefix
	leased := func(s string) Addr { return Addr{Prefix: p(s), Dynamic: true} }
	second := func(s string) Addr { return Addr{Prefix: p(s), Secondary: true} }
	for _, c := range []struct {
		name  string
		addrs []Addr
		lo    string
		route string // the default route of eth0
		want  string
	}{
		{"floating beside a leased one", []Addr{leased("10.99.0.2/16"), addr("10.99.9.9/32")}, "", "0.0.0.0/0 via 10.99.0.1 dev eth0 src 10.99.0.2", "eth0 10.99.0.2"},
		{"floating first, no source named", []Addr{addr("10.99.9.9/32"), leased("10.99.0.2/16")}, "", "0.0.0.0/0 via 10.99.0.1 dev eth0", "eth0 10.99.0.2"},
		{"floating, with a mask", []Addr{leased("10.99.0.2/16"), second("10.99.9.9/16")}, "", "0.0.0.0/0 via 10.99.0.1 dev eth0", "eth0 10.99.0.2"},
		{"floating, no default route", []Addr{addr("10.99.9.9/32"), leased("10.99.0.2/16")}, "", "", "eth0 10.99.0.2"},
		{"/32 and a gateway on the link", []Addr{leased("192.0.2.7/32"), addr("203.0.113.9/32")}, "", "0.0.0.0/0 via 172.31.1.1 dev eth0", "eth0 192.0.2.7"},
		{"point to point", []Addr{addr("192.0.2.7/32"), addr("203.0.113.9/32")}, "", "0.0.0.0/0 dev eth0", "eth0 192.0.2.7"},
		{"two networks", []Addr{addr("192.0.2.7/24"), addr("10.99.0.2/16")}, "", "0.0.0.0/0 via 10.99.0.1 dev eth0", "eth0 10.99.0.2"},
		{"the source that the route names", []Addr{addr("10.99.0.2/16"), second("10.99.0.3/16")}, "", "0.0.0.0/0 via 10.99.0.1 dev eth0 src 10.99.0.3", "eth0 10.99.0.3"},
		{"on the loopback interface", []Addr{addr("169.254.1.2/30")}, "10.99.0.2/32", "0.0.0.0/0 via 169.254.1.1 dev eth0 src 10.99.0.2", "eth0 10.99.0.2 of lo"},
		{"link-local beside it", []Addr{addr("169.254.1.2/16"), addr("10.99.0.2/16")}, "", "0.0.0.0/0 dev eth0", "eth0 10.99.0.2"},
	} {
		inv := Inventory{Ifaces: []Iface{
			{Name: "lo", Index: 1, MTU: 65536, Up: true, Running: true, Addrs: []Addr{addr("127.0.0.1/8")}},
			{Name: "eth0", Index: 2, MTU: 1500, Up: true, Running: true, Addrs: c.addrs},
		}}
		if c.lo != "" {
			inv.Ifaces[0].Addrs = append(inv.Ifaces[0].Addrs, addr(c.lo))
		}
		selectors := []Selectors{{Ifaces: []string{"eth0"}}, {Regexes: []string{"^eth"}}}
		if c.route != "" {
			inv.Routes = routesOf(t, c.route)
			selectors = append(selectors, Selectors{}, Selectors{Regexes: []string{`^(10\.|192\.0\.2|203)`}})
		}
		for _, sel := range selectors {
			u, err := Choose(sel, inv, nil, reachEth1)
			got := u.Iface + " " + u.Addr.String()
			if u.Holder != "" {
				got += " of " + u.Holder
			}
			if err != nil || got != c.want {
				t.Errorf("%s, by %s: got %s, %v; want %s", c.name, u.Reason, got, err, c.want)
			}
			if f, err := u.Facts(inv, netip.Addr{}, overlay); err != nil || f.Addr != u.Addr || f.Uplink != "eth0" || !inv.Has(u) {
				t.Errorf("%s: facts %+v, %v", c.name, f, err)
			}
		}
	}
}

var overlay = netip.MustParsePrefix("10.0.0.0/8")

func TestFacts(t *testing.T) {
	u := Uplink{Iface: "eth1", Addr: netip.MustParseAddr("192.168.50.11")}
	f, err := u.Facts(vagrant, netip.Addr{}, overlay)
	if err != nil || f.MTU != 9000 || f.PublicIP != u.Addr || f.Addr != u.Addr {
		t.Errorf("got %+v, %v", f, err)
	}
	if f, err = u.Facts(vagrant, netip.MustParseAddr("198.51.100.7"), overlay); err != nil || f.PublicIP.String() != "198.51.100.7" || f.Addr != u.Addr {
		t.Errorf("behind NAT: got %+v, %v", f, err)
	}
	inside := Uplink{Iface: "eth0", Addr: netip.MustParseAddr("10.0.2.15")}
	inv := Inventory{Ifaces: vagrant.Ifaces, IPv6: true, Routes: []Route{
		{Dst: netip.MustParsePrefix("10.0.2.0/24"), Iface: "eth0"},                                                // its own link
		{Dst: netip.MustParsePrefix("10.5.2.0/24"), Iface: "eth0", Gateway: netip.MustParseAddr("10.0.2.16")},     // to a peer
		{Dst: netip.MustParsePrefix("10.5.3.0/24"), Iface: "flannel.1", Gateway: netip.MustParseAddr("10.5.3.0")}, // to a peer
		{Dst: netip.MustParsePrefix("192.168.50.0/24"), Iface: "eth1"},
	}}
	if f, err = inside.Facts(inv, netip.Addr{}, overlay); err != nil || len(f.Underlay) != 2 || f.Underlay[1].Iface != "eth1" || !f.IPv6 {
		t.Errorf("underlay inside the network: got %+v, %v", f, err)
	}
	for _, gone := range []Uplink{{Iface: "eth1", Addr: netip.MustParseAddr("192.168.50.1")}, {Iface: "eth9", Addr: u.Addr}, {Iface: "nomtu", Addr: netip.MustParseAddr("192.168.60.1")}} {
		if f, err := gone.Facts(vagrant, netip.Addr{}, overlay); err == nil {
			t.Errorf("%+v gave %+v", gone, f)
		}
	}
}

func TestOnLink(t *testing.T) {
	for a, want := range map[string]string{
		"192.168.50.7":   "eth1", // connected
		"192.168.50.200": "",     // a longer prefix leads to a gateway
		"203.0.113.1":    "",     // default route
	} {
		iface, ok := OnLink(vagrant.Routes, netip.MustParseAddr(a))
		if iface != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", a, iface, ok)
		}
	}
}

package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestNewSubnetAvoidsWhatTheHostReaches(t *testing.T) {
	for _, c := range []struct {
		name          string
		network       string
		links, routes []string
		want          string
	}{
		{"LAN inside", "10.0.0.0/8", []string{"eth0 device 10.99.0.2/16"}, []string{"10.99.0.0/16 dev eth0 proto kernel"}, "10.99.0.0/16 10.99.0.2/32"},
		{"LAN outside", "10.42.0.0/16", []string{"eth0 device 192.0.2.2/24"}, []string{}, ""},
		{"LAN around", "10.42.0.0/16", []string{"eth0 device 10.42.0.2/8"}, nil, "10.42.0.2/32"},
		{"LAN the same", "10.42.0.0/16", []string{"eth0 device 10.42.0.2/16"}, []string{"10.42.0.0/16 dev eth0 proto kernel"}, "10.42.0.2/32"},
		{"behind a router", "10.0.0.0/8", nil, []string{"10.50.0.0/16 via 192.0.2.1 dev eth0"}, "10.50.0.0/16"},
		{"a VPN's", "10.0.0.0/8", []string{"tun0 tun 10.8.0.6/32"}, []string{"10.8.0.0/24 via 10.8.0.5 dev tun0"}, "10.8.0.0/24 10.8.0.6/32"},
		{"a black hole", "10.0.0.0/8", nil, []string{"blackhole 10.66.0.0/16"}, "10.66.0.0/16"},
		{"another bridge", "10.0.0.0/8", []string{"br-0123456789ab bridge 10.200.0.1/24"}, []string{"10.200.0.0/24 dev br-0123456789ab proto kernel"}, "10.200.0.0/24 10.200.0.1/32"},
		{"our own device", "10.42.0.0/16", []string{"flannel.1 vxlan 10.42.7.0/32"}, []string{"10.42.3.0/24 via 10.42.3.0 dev flannel.1"}, ""},
		{"a floating address on lo", "10.42.0.0/16", []string{"lo device 127.0.0.1/8 10.42.3.3/32"}, nil, "10.42.3.3/32"},
		{"all of the network", "10.42.0.0/16", nil, []string{"10.42.0.0/16 dev eth1"}, ""},
	} {
		s := surroundings(t, c.links, c.routes)
		got := strings.Trim(fmt.Sprint(s.Avoid(netip.MustParsePrefix(c.network))), "[]")
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestSubnetInsideAnotherNetworkIsFound(t *testing.T) {
	o := Overlay{Network: netip.MustParsePrefix("10.0.0.0/8"), Subnet: netip.MustParsePrefix("10.99.16.0/20"), Devices: []string{"flannel.1"}}
	for route, want := range map[string]bool{
		"10.99.0.0/16 dev eth0 proto kernel": true,
		"10.99.0.0/16 via 192.0.2.1":         true,
		"10.0.0.0/8 dev eth0 proto kernel":   false, // the LAN is the network
		"10.99.16.0/20 dev docker0":          false, // has a finding of its own
		"10.99.17.0/24 dev eth1":             false, // likewise
		"10.98.0.0/16 dev eth1":              false,
		"10.99.0.0/16 dev docker0":           false, // has a finding of its own
		"unreachable 10.99.0.0/16":           false, // unused
	} {
		found := o.Check(Facts{Uplink: "eth0"}, surroundings(t, []string{"docker0 bridge 10.99.16.1/20"}, []string{route}))
		if got := slices.ContainsFunc(found, func(f Finding) bool { return f.ID == SubnetInside }); got != want {
			t.Errorf("%s: found %v", route, found)
		}
	}
}

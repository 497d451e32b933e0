package host

import (
	"net/netip"
	"testing"
)

// TestBridgeServesTheSubnet: which interface leads to the containers of this host.
func TestBridgeServesTheSubnet(t *testing.T) {
	eth0, flannel := "eth0 device 192.0.2.7/24", "flannel.1 vxlan 10.42.7.0/32"
	for _, x := range []struct {
		name          string
		links, routes []string
		device, addr  string
	}{
		{"docker", []string{eth0, flannel, "docker0 bridge 10.42.7.1/24"}, []string{"10.42.7.0/24 dev docker0 proto kernel"}, "docker0", "10.42.7.1"},
		{"other addresses first", []string{"docker0 bridge 172.17.0.1/16 10.42.7.1/24"}, nil, "docker0", "10.42.7.1"},
		{"a bridge of another program", []string{eth0, "docker0 bridge 172.17.0.1/16", "cni0 bridge 10.42.7.1/24"}, nil, "cni0", "10.42.7.1"},
		{"a bridge before others", []string{"veth1 veth 10.42.7.1/32", "cni0 bridge 10.42.7.2/24"}, nil, "cni0", "10.42.7.2"},
		{"no bridge", []string{eth0, "veth1 veth 10.42.7.1/32"}, nil, "veth1", "10.42.7.1"},
		{"wide", []string{"docker0 bridge 10.42.7.1/16"}, nil, "docker0", "10.42.7.1"},
		{"no address", []string{eth0, flannel}, []string{"0.0.0.0/0 via 192.0.2.1 dev eth0"}, "", ""},
		{"docker on another subnet", []string{eth0, "docker0 bridge 10.42.8.1/24"}, []string{"10.42.8.0/24 dev docker0 proto kernel"}, "", ""},
		{"the uplink", []string{"eth0 device 10.42.7.9/24"}, []string{"10.42.7.0/24 dev eth0 proto kernel"}, "", ""},
		{"a route to each container", []string{eth0, flannel}, []string{"10.42.7.2/32 dev cali1", "10.42.7.3/32 dev cali2"}, "cali1", ""},
		{"other routes", []string{eth0}, []string{"blackhole 10.42.7.0/24", "10.42.7.0/25 via 192.0.2.1 dev eth1", "10.42.0.0/16 dev eth1", "10.42.7.0/24 dev flannel.1"}, "", ""},
	} {
		subnet := netip.MustParsePrefix("10.42.7.0/24")
		got := surroundings(t, x.links, x.routes).Bridge(subnet, "flannel.1", "eth0")
		want := Bridge{Subnet: subnet, Device: x.device}
		if x.addr != "" {
			want.Addr = netip.MustParseAddr(x.addr)
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", x.name, got, want)
		}
	}
	s := Surroundings{Links: []Link{{Name: "docker0", Kind: "bridge", MTU: 1450, Addrs: []netip.Prefix{netip.MustParsePrefix("10.42.7.1/24")}}}}
	if got := s.Bridge(netip.MustParsePrefix("10.42.7.0/24")); got.MTU != 1450 {
		t.Errorf("%+v", got)
	}
	if got := s.Bridge(netip.Prefix{}); got != (Bridge{}) {
		t.Errorf("without a subnet: %+v", got)
	}
}

package backend

import (
	"net/netip"
	"testing"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

func TestNetworkThatTakesTheUplinksLinkIsRefused(t *testing.T) {
	addr, gateway := netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.1")
	byDefault := host.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: "eth0", Gateway: gateway}
	lan := func(dst string) host.Route { return host.Route{Dst: netip.MustParsePrefix(dst), Iface: "eth0"} }
	for _, c := range []struct {
		name, network string
		underlay      []host.Route
		refused       bool
	}{
		{"elsewhere", "10.42.0.0/16", []host.Route{byDefault, lan("10.99.0.0/16")}, false},
		{"the LAN's own", "10.99.0.0/16", []host.Route{byDefault, lan("10.99.0.0/16")}, true},
		{"a part of the LAN with this host", "10.99.0.0/20", []host.Route{byDefault, lan("10.99.0.0/16")}, true},
		{"a part of the LAN without it", "10.99.128.0/17", []host.Route{byDefault, lan("10.99.0.0/16")}, false},
		{"the LAN and more", "10.0.0.0/8", []host.Route{byDefault, lan("10.99.0.0/16")}, false},
		{"a LAN that is wider than the network", "10.42.0.0/16", []host.Route{byDefault, lan("10.0.0.0/8")}, false},
		{"two LANs, one of them smaller", "10.99.0.0/16", []host.Route{byDefault, lan("10.99.0.0/16"), lan("10.99.0.0/24")}, false},
		{"an address without a LAN", "10.99.0.0/16", []host.Route{byDefault}, false},
		{"a link to everywhere", "10.99.0.0/16", []host.Route{lan("0.0.0.0/0")}, false},
		{"the same LAN by another interface", "10.99.0.0/16", []host.Route{byDefault, {Dst: netip.MustParsePrefix("10.99.0.0/16"), Iface: "eth1"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, backendType := range []string{"udp", "vxlan", "host-gw"} {
				b, config := mustNew(t, `{"Network":"`+c.network+`","Backend":{"Type":"`+backendType+`"}}`)
				own := lease.Lease{Subnet: netip.PrefixFrom(config.Network.Addr(), 24), Attrs: lease.Attrs{PublicIP: addr}}
				p := NewPlan(b, config.Network)
				p.Update(host.Facts{Uplink: "eth0", Addr: addr, PublicIP: addr, MTU: 1500, Underlay: c.underlay}, lease.View{Own: own})
				want, routes := 0, 0
				if backendType == "udp" {
					routes = 1
				}
				if c.refused && backendType == "udp" { // the others have no route for the whole network
					want, routes = 1, 0
				}
				if len(p.Refused()) != want || len(p.Want().Routes) != routes {
					t.Errorf("%s: refused is %v, wanted\n%s", backendType, p.Refused(), p.Want().Text())
				}
			}
		})
	}
}

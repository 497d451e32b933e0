package backend

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// TestSubnetsAndTheUnderlay: a subnet is rejected if it covers or equals a part of the underlay
// that this host needs, but not if a wider route contains it.
func TestSubnetsAndTheUnderlay(t *testing.T) {
	on := func(dst string) host.Route { return host.Route{Dst: netip.MustParsePrefix(dst), Iface: "eth0"} }
	by := func(gateway, iface string) host.Route {
		return host.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr(gateway), Iface: iface}
	}
	for _, c := range []struct {
		name, network, addr string
		underlay            []host.Route
		subnet              string
		refused             string // empty: it is a peer
	}{
		{"beside the LAN", "10.42.0.0/16", "10.99.0.2", []host.Route{on("10.99.0.0/16")}, "10.42.9.0/24", ""},
		{"LAN wider than Network", "10.42.0.0/16", "10.99.0.2", []host.Route{on("10.0.0.0/8")}, "10.42.9.0/24", ""},
		{"further on-link route wider than Network", "10.42.0.0/16", "10.99.0.2", []host.Route{on("10.99.0.0/16"), on("10.0.0.0/8")}, "10.42.9.0/24", ""},
		{"on-link route to everywhere", "10.42.0.0/16", "10.99.0.2", []host.Route{on("0.0.0.0/0")}, "10.42.9.0/24", ""},
		{"LAN equal to Network", "10.42.0.0/16", "10.42.0.2", []host.Route{on("10.42.0.0/16")}, "10.42.9.0/24", ""},
		{"in a LAN inside Network", "10.0.0.0/8", "10.99.0.2", []host.Route{on("10.99.0.0/16")}, "10.99.16.0/20", ""},
		{"all of a LAN inside Network", "10.0.0.0/8", "10.99.0.2", []host.Route{on("10.99.0.0/20")}, "10.99.0.0/20", "contains this host's address: 10.99.0.2"},
		{"equal to an on-link route", "10.42.0.0/16", "10.99.0.2", []host.Route{on("10.42.9.0/24")}, "10.42.9.0/24", "covers an underlay network of this host: 10.42.9.0/24 dev eth0"},
		{"covers an on-link route", "10.42.0.0/16", "10.99.0.2", []host.Route{on("10.42.9.128/25")}, "10.42.9.0/24", "covers an underlay network of this host: 10.42.9.128/25 dev eth0"},
		{"contains the host's address", "10.0.0.0/8", "10.99.0.2", []host.Route{on("10.99.0.0/16")}, "10.99.0.0/20", "contains this host's address: 10.99.0.2"},
		{"contains the gateway", "10.0.0.0/8", "10.99.0.2", []host.Route{on("10.99.0.0/16"), by("10.99.16.1", "eth0")}, "10.99.16.0/20", "contains this host's gateway: 10.99.16.1 dev eth0"},
		{"contains a gateway inside the overlay", "10.0.0.0/8", "10.99.0.2", []host.Route{on("10.99.0.0/16"), by("10.42.9.7", "flannel.1")}, "10.42.9.0/24", ""},
		{"equal to another device's route", "10.42.0.0/16", "10.99.0.2", []host.Route{{Dst: netip.MustParsePrefix("10.42.9.0/24"), Iface: "docker0"}}, "10.42.9.0/24", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, conf := mustNew(t, `{"Network":"`+c.network+`","Backend":{"Type":"vxlan"}}`)
			ip := netip.MustParseAddr(c.addr)
			facts := host.Facts{Uplink: "eth0", MTU: 1500, Addr: ip, PublicIP: ip, Underlay: c.underlay}
			own := peer(t, 1, "10.42.7.0-24", vxlanAt(c.addr, "02:00:00:00:00:07"))
			p := peer(t, 2, strings.ReplaceAll(c.subnet, "/", "-"), vxlanAt("203.0.113.9", "02:00:00:00:00:09"))
			plan := NewPlan(b, conf.V4.Network)
			plan.Update(facts, lease.NewView(own, []*lease.Lease{&p}, true))
			routes, skipped := len(plan.Want().Routes), plan.Skipped()
			if c.refused == "" && (routes != 1 || len(skipped) != 0) || c.refused != "" && (routes != 0 || len(skipped) != 1 || !strings.Contains(skipped[0].Error(), c.refused)) {
				t.Errorf("%d routes, skipped %v; want refused: %q", routes, skipped, c.refused)
			}
		})
	}
}

// TestPublicIPsInsideSubnets: if the subnet of a lease contains another lease's public IP, the
// older of the two is kept. No other lease is affected.
func TestPublicIPsInsideSubnets(t *testing.T) {
	b, conf := mustNew(t, `{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}`)
	facts := us()
	for _, c := range []struct {
		name  string
		peers []entry // the oldest first
		kept  []string
	}{
		{"in nobody's", []entry{{"10.42.9.0-24", "10.99.0.9"}, {"10.42.8.0-24", "10.99.0.8"}}, []string{"10.42.8.0/24", "10.42.9.0/24"}},
		{"in a newer one", []entry{{"10.42.9.0-24", "10.99.0.9"}, {"10.42.8.0-24", "10.99.0.8"}, {"10.99.0.0-24", "203.0.113.1"}}, []string{"10.42.8.0/24", "10.42.9.0/24"}},
		{"in an older one", []entry{{"10.99.0.0-24", "203.0.113.1"}, {"10.42.9.0-24", "10.99.0.9"}, {"10.42.8.0-24", "192.0.2.1"}}, []string{"10.42.8.0/24", "10.99.0.0/24"}},
		{"in its own", []entry{{"10.99.0.0-24", "10.99.0.1"}, {"10.42.9.0-24", "10.99.0.9"}}, []string{"10.42.9.0/24"}},
		{"in one that is itself refused", []entry{{"10.42.9.0-24", "10.99.0.9"}, {"10.99.0.0-24", "203.0.113.1"}, {"10.42.8.0-24", "10.99.0.8"}}, []string{"10.42.8.0/24", "10.42.9.0/24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all []*lease.Lease
			for i, e := range c.peers {
				l := peer(t, uint64(i+2), e.key, `{"PublicIP":"`+e.value+`"}`)
				all = append(all, &l)
			}
			plan := NewPlan(b, conf.V4.Network)
			plan.Update(facts, lease.NewView(peer(t, 1, "10.42.7.0-24", `{"PublicIP":"198.51.100.7"}`), all, true))
			var kept []string
			for k, addr := range plan.Want().Tunnel {
				if addr.IsValid() {
					kept = append(kept, k.Subnet.String())
				}
			}
			if slices.Sort(kept); !slices.Equal(kept, c.kept) || len(plan.Skipped()) != len(c.peers)-len(c.kept) {
				t.Errorf("kept %v, skipped %v; want %v", kept, plan.Skipped(), c.kept)
			}
		})
	}
}

// TestNobodyIsANeighbourByADefaultRoute: a default route without a gateway makes no address
// on-link.
func TestNobodyIsANeighbourByADefaultRoute(t *testing.T) {
	for _, everywhere := range [][]string{{"0.0.0.0/0"}, {"0.0.0.0/1", "128.0.0.0/1"}} {
		for _, config := range []string{`{"Type":"vxlan","DirectRouting":true}`, `{"Type":"host-gw"}`} {
			b, conf := mustNew(t, `{"Network":"10.42.0.0/16","Backend":`+config+`}`)
			facts := us()
			facts.Uplink, facts.Underlay = "ppp0", []host.Route{{Dst: netip.MustParsePrefix("192.0.2.1/32"), Iface: "ppp0"}}
			for _, dst := range everywhere {
				facts.Underlay = append(facts.Underlay, host.Route{Dst: netip.MustParsePrefix(dst), Iface: "ppp0"})
			}
			own, p := peer(t, 1, "10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07")), peer(t, 2, "10.42.9.0-24", vxlanAt("203.0.113.9", "02:00:00:00:00:09"))
			p.BackendType = conf.BackendType
			plan := NewPlan(b, conf.V4.Network)
			plan.Update(facts, lease.NewView(own, []*lease.Lease{&p}, true))
			for k := range plan.Want().Routes {
				if k.Link == "ppp0" {
					t.Errorf("%s behind %v: a plain route to %s", config, everywhere, k.Dst)
				}
			}
			if tunnelled := len(plan.Want().FDB) == 1; tunnelled != (conf.BackendType == "vxlan") || len(plan.Skipped()) == 1 == tunnelled {
				t.Errorf("%s behind %v: wanted\n%sskipped %v", config, everywhere, plan.Want().Text(), plan.Skipped())
			}
		}
	}
}

// TestIPv6SettingsOfSmallDevices: the kernel has no IPv6 and no IPv6 sysctls on a device with an
// MTU below 1280.
func TestIPv6SettingsOfSmallDevices(t *testing.T) {
	for _, c := range []struct {
		config string
		uplink int
		wanted bool
	}{
		{`{"Type":"vxlan"}`, 1500, true},
		{`{"Type":"vxlan"}`, 1330, true},
		{`{"Type":"vxlan"}`, 1329, false},
		{`{"Type":"vxlan"}`, 1280, false},
		{`{"Type":"vxlan","MTU":1300}`, 1500, false},
	} {
		b, _ := mustNew(t, `{"Network":"10.42.0.0/16","Backend":`+c.config+`}`)
		facts := us()
		facts.MTU = c.uplink
		if s := b.Base(facts, peer(t, 1, "10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07"))); (len(s.Sysctls) == 1) != c.wanted {
			t.Errorf("%s by an uplink of %d: %v", c.config, c.uplink, s.Sysctls)
		}
	}
}

package backend

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
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
				own := lease.Lease{Subnets: lease.SubnetsOf(netip.PrefixFrom(config.V4.Network.Addr(), 24)), Attrs: lease.Attrs{PublicIP: addr}}
				p := NewPlan(b, config.V4.Network)
				p.Update(host.Facts{Uplink: "eth0", Addr: addr, PublicIP: addr, MTU: 1500, Underlay: c.underlay}, lease.View{Own: own})
				want, routes := 0, 0
				if backendType == "udp" {
					routes = 1
				}
				if c.refused && backendType == "udp" { // the others have no route for the whole network
					want, routes = 1, 0
				}
				if len(p.UnsafeRoutes()) != want || len(p.Want().Routes) != routes {
					t.Errorf("%s: refused is %v, wanted\n%s", backendType, p.UnsafeRoutes(), p.Want().Text())
				}
			}
		})
	}
}

// etcdAt is an etcd endpoint that the host reaches by its default route.
func etcdAt(addr string) host.Need { return host.Need{Addr: netip.MustParseAddr(addr), What: "etcd"} }

// led returns the wanted routes, sorted by destination, with their gateways or devices.
func led(s dataplane.State) string {
	var all []string
	for k, r := range s.Routes {
		by := k.Link
		if r.Blackhole {
			by = "blackhole"
		}
		all = append(all, k.Dst.String()+" "+by)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestLeasesOverWhatTheHostNeeds: leases with addresses that the host needs are skipped with the
// reason by every backend that has routes, and no other lease is.
func TestLeasesOverWhatTheHostNeeds(t *testing.T) {
	onLAN, inContainer := etcdAt("10.99.0.5"), etcdAt("10.200.1.10")
	onLAN.Bits, onLAN.Firm = 16, true
	inContainer.Bits, inContainer.Firm = 24, true
	for _, c := range []struct {
		name    string
		need    host.Need
		subnet  string
		refused bool
	}{
		{"around it", etcdAt("10.200.1.10"), "10.200.1.0-24", true},
		{"it alone", etcdAt("10.200.1.10"), "10.200.1.8-30", true},
		{"beside it", etcdAt("10.200.1.10"), "10.200.2.0-24", false},
		{"a part of the LAN that it is on", onLAN, "10.99.0.0-20", true},
		{"a part of the LAN that it is not on", onLAN, "10.99.16.0-20", false},
		{"with a bridge of this host for it", inContainer, "10.200.0.0-16", false},
		{"a part of that bridge's network", inContainer, "10.200.1.0-25", true},
	} {
		for _, options := range []string{`{"Type":"vxlan"}`, `{"Type":"vxlan","DirectRouting":true}`, `{"Type":"host-gw"}`, `{"Type":"udp"}`, `{"Type":"alloc"}`} {
			b, conf := mustNew(t, `{"Network":"10.0.0.0/8","Backend":`+options+`}`)
			facts := us()
			facts.Needs, facts.Leased = []host.Need{c.need}, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
			value := func(ip, mac string) string {
				return strings.Replace(vxlanAt(ip, mac), `"vxlan"`, `"`+conf.BackendType+`"`, 1)
			}
			own := peer(t, 1, "10.42.7.0-24", value("198.51.100.7", "02:00:00:00:00:07"))
			bad, good := peer(t, 2, c.subnet, value("198.51.100.8", "02:00:00:00:00:08")), peer(t, 3, "10.42.9.0-24", value("198.51.100.9", "02:00:00:00:00:09"))
			p := NewPlan(b, conf.V4.Network)
			p.Update(facts, lease.NewView(own, []*lease.Lease{&bad, &good}, true))
			refused := len(p.Skipped()) == 1 && p.Skipped()[0].Subnets == bad.Subnets && strings.Contains(p.Skipped()[0].Error(), "needs: "+c.need.Addr.String()+", etcd")
			wanted := c.refused && conf.BackendType != "alloc"
			if refused != wanted || !wanted && len(p.Skipped()) != 0 {
				t.Errorf("%s, %s: skipped %v", c.name, options, p.Skipped())
			}
			if routes := led(p.Want()); wanted && strings.Contains(routes, bad.Subnets.V4().String()) || conf.BackendType != "alloc" && !strings.Contains(routes, "10.42.") && !strings.Contains(routes, "10.0.0.0/8") {
				t.Errorf("%s, %s: routes %s", c.name, options, routes)
			}
		}
	}
}

// TestRoutesForAllPeers: udp routes the whole network into its device, unless that would divert
// packets that hosts need. Then it routes the leased prefixes and the earlier subnets. Routes that
// divert such packets in any case are left out, and at the start the config is rejected.
func TestRoutesForAllPeers(t *testing.T) {
	onLAN := etcdAt("10.99.0.5")
	onLAN.Bits, onLAN.Firm = 16, true
	for _, c := range []struct {
		name   string
		pool   string // SubnetMin to SubnetMax
		needs  []host.Need
		server string
		lan    string
		own    string
		peers  []entry
		routes string
		check  string // why the config is rejected
	}{
		{name: "nothing inside", pool: "10.42.0.0 10.42.255.0", routes: "10.0.0.0/8 flannel0"},
		{name: "what has a longer route", pool: "10.42.0.0 10.42.255.0", needs: []host.Need{onLAN}, routes: "10.0.0.0/8 flannel0"},
		{name: "etcd", pool: "10.42.0.0 10.42.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, routes: "10.42.0.0/16 flannel0"},
		{name: "the fewest prefixes", pool: "10.42.7.0 10.42.10.0", needs: []host.Need{etcdAt("10.200.1.10")}, own: "10.42.8.0-24", routes: "10.42.10.0/24 flannel0, 10.42.7.0/24 flannel0, 10.42.8.0/23 flannel0"},
		{name: "not the own subnet", pool: "10.42.7.0 10.42.10.0", needs: []host.Need{etcdAt("10.200.1.10")}, own: "10.42.7.0-24", routes: "10.42.10.0/24 flannel0, 10.42.8.0/23 flannel0"},
		{name: "subnets of a config before", pool: "10.42.0.0 10.42.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, own: "10.41.7.0-24",
			peers: []entry{{"10.43.9.0-24", "203.0.113.9"}, {"10.42.9.0-24", "203.0.113.8"}}, routes: "10.42.0.0/16 flannel0, 10.43.9.0/24 flannel0"},
		{name: "not of one that is refused", pool: "10.42.0.0 10.42.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, peers: []entry{{"10.200.1.0-24", "203.0.113.9"}}, routes: "10.42.0.0/16 flannel0"},
		{name: "a peer's public IP", pool: "10.42.0.0 10.42.255.0", peers: []entry{{"10.42.9.0-24", "10.99.0.9"}}, routes: "10.42.0.0/16 flannel0"},
		{name: "a name server", pool: "10.42.0.0 10.42.255.0", server: "10.255.255.53", routes: "10.42.0.0/16 flannel0"},
		{name: "a name server among what is leased", pool: "10.42.0.0 10.42.255.0", server: "10.42.9.53", routes: "10.0.0.0/8 flannel0"},
		{name: "a LAN among what is leased", pool: "10.98.0.0 10.99.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, lan: "10.99.0.0/16", own: "10.98.7.0-24",
			peers: []entry{{"10.99.9.0-24", "203.0.113.9"}, {"10.98.9.0-24", "203.0.113.8"}}, routes: "10.98.0.0/15 flannel0"},
		{name: "what is leased on a LAN", pool: "10.98.0.0 10.99.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, lan: "10.96.0.0/12", own: "10.98.7.0-24",
			peers: []entry{{"10.99.9.0-24", "203.0.113.9"}, {"10.98.9.0-24", "203.0.113.8"}}, routes: "10.98.9.0/24 flannel0, 10.99.9.0/24 flannel0"},
		{name: "a peer's public IP among what is leased", pool: "10.42.0.0 10.42.255.0", peers: []entry{{"10.42.9.0-24", "10.42.99.9"}}, routes: "10.0.0.0/8 flannel0"},
		{name: "etcd among what is leased", pool: "10.200.0.0 10.201.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, own: "10.201.7.0-24",
			check: "the route 10.200.0.0/15 takes 10.200.1.10, etcd, which the hosts need"},
		{name: "etcd in one of the prefixes", pool: "10.199.0.0 10.200.255.0", needs: []host.Need{etcdAt("10.200.1.10")}, own: "10.199.7.0-24",
			routes: "10.199.0.0/16 flannel0", check: "the route 10.200.0.0/16 takes 10.200.1.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, conf := mustNew(t, `{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}`)
			pool := strings.Fields(c.pool)
			facts := us()
			facts.Needs = c.needs
			if c.server != "" {
				facts.NameServers = []host.Need{{Addr: netip.MustParseAddr(c.server), What: "a name server"}}
			}
			if c.lan != "" {
				facts.Underlay = append(facts.Underlay, host.Route{Dst: netip.MustParsePrefix(c.lan), Iface: "eth0"})
			}
			facts.Leased = lease.Pool{Network: conf.V4.Network, SubnetLen: 24, Min: netip.MustParseAddr(pool[0]), Max: netip.MustParseAddr(pool[1])}.Cover()
			own := "10.42.7.0-24"
			if c.own != "" {
				own = c.own
			}
			var peers []*lease.Lease
			for i, e := range c.peers {
				l := peer(t, uint64(2+i), e.key, `{"PublicIP":"`+e.value+`"}`)
				peers = append(peers, &l)
			}
			view := lease.NewView(peer(t, 1, own, `{"PublicIP":"198.51.100.7"}`), peers, true)
			p := NewPlan(b, conf.V4.Network)
			p.Update(facts, view)
			if got := led(p.Want()); got != c.routes {
				t.Errorf("routes %s, want %s", got, c.routes)
			}
			if got := led(SafeBase(b, conf.V4.Network, facts, view)); got != c.routes {
				t.Errorf("the foundation has routes %s, want %s", got, c.routes)
			}
			err := Check(b, facts)
			if (err != nil) != (c.check != "") || err != nil && !strings.Contains(err.Error(), c.check) {
				t.Errorf("checked: %v, want %q", err, c.check)
			}
			if (len(p.UnsafeRoutes()) == 1) != (c.check != "") {
				t.Errorf("refused %v", p.UnsafeRoutes())
			}
		})
	}
}

// TestBlackholeOverWhatTheHostNeeds: the blackhole drops only packets for this host's subnet, and
// another route of the same length has precedence.
func TestBlackholeOverWhatTheHostNeeds(t *testing.T) {
	for bits, wanted := range map[int]bool{-1: false, 0: false, 23: false, 24: true, 32: true} {
		b, conf := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`)
		facts, need := us(), etcdAt("10.42.7.9")
		need.Bits = bits
		facts.Needs = []host.Need{need}
		p := NewPlan(WithBlackhole(b), conf.V4.Network)
		p.Update(facts, lease.View{Own: peer(t, 1, "10.42.7.0-24", `{"PublicIP":"198.51.100.7"}`)})
		if got := led(p.Want()) == "10.42.7.0/24 blackhole"; got != wanted {
			t.Errorf("behind a route of %d bits: %q", bits, led(p.Want()))
		}
	}
}

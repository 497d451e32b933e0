package backend

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lab/golden"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// us is a host at 198.51.100.7 on a /24, with a second network behind a router.
func us() host.Facts {
	ip := netip.MustParseAddr("198.51.100.7")
	return host.Facts{
		Uplink: "eth0", MTU: 1500, Addr: ip, PublicIP: ip, IPv6: true,
		Underlay: []host.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: "eth0", Gateway: netip.MustParseAddr("198.51.100.1")},
			{Dst: netip.MustParsePrefix("198.51.100.0/24"), Iface: "eth0"},
		},
		MACs: map[string][6]byte{},
	}
}

func mustNew(t testing.TB, config string) (Backend, netconf.Config) {
	t.Helper()
	n, err := ParseNetwork([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return n.Backend, n.Config
}

// peer parses a lease in its registry form. Earlier ones are older.
func peer(t testing.TB, created uint64, key, value string) lease.Lease {
	t.Helper()
	subnets, err := lease.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := lease.DecodeAttrs([]byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return lease.Lease{Subnets: subnets, Attrs: a, Created: created}
}

type entry struct{ key, value string }

func vxlanAt(ip, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"BackendType":"vxlan","BackendData":{"VtepMAC":%q}}`, ip, mac)
}

var vxlanPeers = []entry{
	{"10.42.9.0-24", vxlanAt("198.51.100.9", "02:00:00:00:00:09")},
	{"10.42.20.0-24", vxlanAt("203.0.113.20", "02:00:00:00:00:20")},
	{"10.42.200.0-25", vxlanAt("203.0.113.200", "02:00:00:00:02:00")},
}

var hostile = []entry{
	{"10.43.1.0-24", vxlanAt("203.0.113.1", "02:00:00:00:01:01")}, // outside the network
	{"10.42.0.0-16", vxlanAt("203.0.113.2", "02:00:00:00:01:02")}, // all of it
	{"10.0.0.0-8", vxlanAt("203.0.113.3", "02:00:00:00:01:03")},   // a wider prefix
	{"10.42.7.128-25", vxlanAt("203.0.113.4", "02:00:00:00:01:04")},
	{"10.42.30.0-24", `{"PublicIP":"203.0.113.30","BackendType":"host-gw"}`},
	{"10.42.31.0-24", `{"PublicIP":"203.0.113.31","BackendType":"vxlan"}`},
	{"10.42.32.0-24", `{"PublicIP":"203.0.113.32","BackendType":"vxlan","BackendData":"x"}`},
	{"10.42.33.0-24", vxlanAt("203.0.113.33", "no mac")},
	{"10.42.34.0-24", vxlanAt("203.0.113.34", "ff:ff:ff:ff:ff:ff")},
	{"10.42.35.0-24", vxlanAt("203.0.113.35", "02:00:00:00:00:07")},
	{"10.42.36.0-24", vxlanAt("203.0.113.36", "02:00:00:00:00:09")},
	{"10.42.37.0-24", vxlanAt("0.0.0.0", "02:00:00:00:01:37")},
	{"10.42.38.0-24", vxlanAt("224.0.0.1", "02:00:00:00:01:38")},
	{"10.42.39.0-24", vxlanAt("198.51.100.7", "02:00:00:00:01:39")},
	{"10.42.40.0-24", vxlanAt("198.51.100.9", "02:00:00:00:01:40")},
	{"10.42.41.0-24", vxlanAt("10.42.9.5", "02:00:00:00:01:41")},
	{"10.42.42.0-24", vxlanAt("10.42.7.5", "02:00:00:00:01:42")},
	{"10.42.9.64-26", vxlanAt("203.0.113.43", "02:00:00:00:01:43")},
	{"10.42.44.0-24", `{"PublicIP":"203.0.113.44","BackendType":"vxlan","BackendData":{"VtepMAC":7}}`},
}

func TestDesired(t *testing.T) {
	nat := us()
	nat.PublicIP = netip.MustParseAddr("192.0.2.7")
	overlapping := us()
	overlapping.Underlay = append(overlapping.Underlay, host.Route{Dst: netip.MustParsePrefix("10.42.16.0/20"), Iface: "eth0"},
		host.Route{Dst: netip.MustParsePrefix("10.42.200.0/26"), Iface: "eth0"}, host.Route{Dst: netip.MustParsePrefix("10.42.9.0/24"), Iface: "docker0"})
	own := entry{"10.42.7.0-24", vxlanAt("198.51.100.7", "02:00:00:00:00:07")}
	for _, c := range []struct {
		name, config string
		facts        host.Facts
		own          entry
		peers        []entry
	}{
		{"vxlan", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, us(), own, vxlanPeers},
		{"vxlan-options", `{"Network":"10.42.0.0/16","Backend":{"Type":"VXLAN","VNI":172,"Port":8889,"GBP":true,"Learning":true,"MTU":1400}}`, nat, own, vxlanPeers[:1]},
		{"vxlan-direct", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`, us(), own, vxlanPeers},
		{"vxlan-blackhole", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, us(), own, vxlanPeers[:1]},
		{"vxlan-alone", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, us(), own, nil},
		{"vxlan-hostile", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, us(), own, append(vxlanPeers[:len(vxlanPeers):len(vxlanPeers)], hostile...)},
		{"vxlan-underlay-inside", `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`, overlapping, own, vxlanPeers},
		{"host-gw", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, us(), entry{"10.42.7.0-24", `{"PublicIP":"198.51.100.7","BackendType":"host-gw"}`}, []entry{
			{"10.42.9.0-24", `{"PublicIP":"198.51.100.9","BackendType":"host-gw"}`},
			{"10.42.20.0-24", `{"PublicIP":"203.0.113.20","BackendType":"host-gw"}`},
			vxlanPeers[2],
		}},
		{"udp", `{"Network":"10.42.0.0/16"}`, us(), entry{"10.42.7.0-24", `{"PublicIP":"198.51.100.7"}`}, append([]entry{
			{"10.42.30.0-24", `{"PublicIP":"203.0.113.30"}`},
			{"10.42.31.0-24", `{"PublicIP":"198.51.100.7"}`},
		}, vxlanPeers...)},
		{"udp-options", `{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":9000,"AllowUnknownSources":true,"Offload":false}}`, nat, entry{"10.42.7.0-24", `{"PublicIP":"192.0.2.7"}`}, nil},
		{"alloc", `{"Network":"10.42.0.0/16","Backend":{"Type":"alloc"}}`, us(), entry{"10.42.7.0-24", `{"PublicIP":"198.51.100.7"}`}, vxlanPeers},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, conf := mustNew(t, c.config)
			if strings.Contains(c.name, "blackhole") {
				b = WithBlackhole(b)
			}
			var all []*lease.Lease
			for i, p := range c.peers {
				l := peer(t, uint64(i+2), p.key, p.value)
				all = append(all, &l)
			}
			plan := NewPlan(b, conf.V4.Network)
			plan.Update(c.facts, lease.NewView(peer(t, 1, c.own.key, c.own.value), all, true))
			state, skipped := plan.Want(), plan.Skipped()
			var out strings.Builder
			fmt.Fprintf(&out, "# %s\n# own subnet %s\n", c.config, c.own.key)
			out.WriteString(state.Text())
			for _, s := range skipped {
				fmt.Fprintf(&out, "skipped %s: %s\n", s.Subnets, s.Fault)
			}
			fmt.Fprintf(&out, "container mtu %d\n", b.MTU(c.facts))
			golden.Equal(t, filepath.Join("testdata", c.name+".txt"), out.String())
			for k := range state.Routes {
				if k == (dataplane.RouteKey{Dst: conf.V4.Network, Link: "flannel0"}) {
					continue // udp's shared route
				}
				if !conf.V4.Network.Contains(k.Dst.Addr()) || k.Dst.Bits() <= conf.V4.Network.Bits() {
					t.Errorf("route %s is outside the network", k.Dst)
				}
			}
		})
	}
}

func TestAttrs(t *testing.T) {
	b, _ := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`)
	previous := lease.Attrs{BackendType: "vxlan", BackendData: `{"VtepMAC":"02:aa:00:00:00:01"}`}
	derived := lease.Attrs{PublicIP: us().PublicIP, BackendType: "vxlan", BackendData: `{"VNI":3,"VtepMAC":"` + derivedMAC(us().PublicIP, 3).String() + `"}`}
	others := func(macs ...string) (all []lease.Lease) {
		for _, m := range macs {
			all = append(all, lease.Lease{Attrs: lease.Attrs{BackendType: "vxlan", BackendData: `{"VtepMAC":"` + m + `"}`}})
		}
		return all
	}
	data := func(m dataplane.MAC) string { return `{"VNI":3,"VtepMAC":"` + m.String() + `"}` }
	next1 := nextMAC(dataplane.MAC{2, 0xaa, 0, 0, 0, 1}, us().PublicIP, 3)
	existing := us()
	existing.MACs["flannel.3"] = [6]byte{2, 0xbb, 0, 0, 0, 2}
	for _, c := range []struct {
		name     string
		facts    host.Facts
		previous lease.Attrs
		others   []lease.Lease
		want     string
	}{
		{"existing device first", existing, previous, nil, `{"VNI":3,"VtepMAC":"02:bb:00:00:00:02"}`},
		{"previous lease next", us(), previous, nil, `{"VNI":3,"VtepMAC":"02:aa:00:00:00:01"}`},
		{"then derived", us(), lease.Attrs{}, nil, derived.BackendData},
		{"previous of another backend", us(), lease.Attrs{BackendType: "x", BackendData: previous.BackendData}, nil, derived.BackendData},
		{"damaged previous", us(), lease.Attrs{BackendType: "vxlan", BackendData: `{"VtepMAC":"01:00:5e:00:00:01"}`}, nil, derived.BackendData},
		{"others have others", us(), previous, others("02:aa:00:00:00:02", "no MAC"), `{"VNI":3,"VtepMAC":"02:aa:00:00:00:01"}`},
		{"another has the previous one", us(), previous, others("02:AA:00:00:00:01"), data(next1)},
		{"another has the device's", existing, previous, others("02:bb:00:00:00:02"), data(nextMAC(dataplane.MAC{2, 0xbb, 0, 0, 0, 2}, us().PublicIP, 3))},
		{"others have the previous and the next one", us(), previous, others("02:aa:00:00:00:01", next1.String()), data(nextMAC(next1, us().PublicIP, 3))},
	} {
		a, err := b.Attrs(c.facts, c.previous, c.others)
		if err != nil || a.BackendData != c.want || a.BackendType != "vxlan" || a.PublicIP != c.facts.PublicIP {
			t.Errorf("%s: got %+v, %v", c.name, a, err)
		}
	}
	if m := derivedMAC(us().PublicIP, 3); m[0]&3 != 2 {
		t.Errorf("%s is not a locally administered unicast address", m)
	}
	if derivedMAC(us().PublicIP, 3) == derivedMAC(us().PublicIP, 4) {
		t.Error("two VNIs share a MAC")
	}
	small := us()
	small.MTU = 100
	if _, err := b.Attrs(small, lease.Attrs{}, nil); err == nil {
		t.Error("no error for an uplink with an MTU of 100")
	}

	gw, _ := mustNew(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`)
	nat := us()
	nat.PublicIP = netip.MustParseAddr("192.0.2.7")
	if _, err := gw.Attrs(nat, lease.Attrs{}, nil); err == nil || !strings.Contains(err.Error(), "public IP 192.0.2.7 is not the address of eth0") {
		t.Errorf("host-gw behind NAT: %v", err)
	}
}

func TestInvalidConfigs(t *testing.T) {
	for _, c := range []struct{ backend, want string }{
		{`{"Type":"carrier-pigeon"}`, `network config: Backend.Type: "carrier-pigeon": must be one of alloc, host-gw, udp, vxlan`},
		{`{}`, `network config: Backend.Type: (missing): must be one of alloc, host-gw, udp, vxlan`},
		{`{"Type":"vxlan","VNI":"1"}`, `network config: Backend.VNI: "1": must be a whole number from 0 to 9999999`},
		{`{"Type":"vxlan","VNI":16777216}`, `network config: Backend.VNI: 16777216: must be a whole number from 0 to 9999999`},
		{`{"Type":"vxlan","Port":65536}`, `network config: Backend.Port: 65536: must be a whole number from 0 to 65535`},
		{`{"Type":"vxlan","MTU":100}`, `network config: Backend.MTU: 100: must be 0 (the uplink's) or 118 to 65535`},
		{`{"Type":"udp","Port":0}`, `network config: Backend.Port: 0: must be a whole number from 1 to 65535`},
		{`{"Type":"vxlan","GBP":1}`, `network config: Backend.GBP: 1: must be true or false`},
		{`{"Type":"vxlan","DirectRouting":"true"}`, `network config: Backend.DirectRouting: "true": must be true or false`},
	} {
		_, err := ParseNetwork([]byte(`{"Network":"10.42.0.0/16","Backend":` + c.backend + `}`))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s:\n got %v\nwant %s", c.backend, err, c.want)
		}
	}
}

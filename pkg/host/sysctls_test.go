package host

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
)

func TestCheckSysctls(t *testing.T) {
	f := Facts{Uplink: "eth1", Underlay: []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Iface: "eth0", Gateway: netip.MustParseAddr("192.0.2.1")},
		{Dst: netip.MustParsePrefix("198.51.100.0/24"), Iface: "eth1"},
	}}
	near, far, there := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.200")
	// The facts have at most one route with a gateway.
	s := surroundings(t, nil, []string{"198.51.100.192/26 via 192.0.2.7 dev eth0", "blackhole 198.51.100.0/25"})
	devices := []string{"flannel.1"}
	good := map[string]string{"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1", "net/ipv4/conf/all/rp_filter": "0"}
	with := func(kv ...string) map[string]string {
		m := maps.Clone(good)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	without := with()
	delete(without, "net/bridge/bridge-nf-call-iptables")
	track := func(now, most string) map[string]string {
		return with("net/netfilter/nf_conntrack_count", now, "net/netfilter/nf_conntrack_max", most)
	}
	tests := []struct {
		name   string
		values map[string]string
		peers  []netip.Addr
		masq   bool
		want   []string
	}{
		{"none", good, []netip.Addr{near, far}, false, nil},
		{"no forwarding", with("net/ipv4/ip_forward", "0"), nil, true, []string{"sysctl -w net.ipv4.ip_forward=1"}},
		{"connections, some", track("235929", "262144"), nil, true, nil},
		{"connections, many", track("235930", "262144"), nil, true, []string{"sysctl -w net.netfilter.nf_conntrack_max=524288"}},
		{"connections, all", track("262144", "262144"), nil, true, []string{"sysctl -w net.netfilter.nf_conntrack_max=524288"}},
		{"connections, more than all", track("300000", "262144"), nil, true, []string{"sysctl -w net.netfilter.nf_conntrack_max=524288"}},
		{"connections, few of few", track("0", "50"), nil, true, nil},
		{"connections without a limit", track("235930", "0"), nil, true, nil},
		{"connections of an unknown number", track("", "262144"), nil, true, nil},
		{"no bridge filter", without, nil, true, []string{"modprobe br_netfilter"}},
		{"strict uplink, symmetric", with("net/ipv4/conf/eth1/rp_filter", "1"), []netip.Addr{near}, true, nil},
		{"strict uplink, asymmetric", with("net/ipv4/conf/eth1/rp_filter", "1"), []netip.Addr{near, far, far}, true, []string{"sysctl -w net/ipv4/conf/eth1/rp_filter=2"}},
		{"strict uplink, one of many routes", with("net/ipv4/conf/eth1/rp_filter", "1"), []netip.Addr{near, there}, true, []string{"sysctl -w net/ipv4/conf/eth1/rp_filter=2"}},
		{"strict everywhere, asymmetric", with("net/ipv4/conf/all/rp_filter", "1"), []netip.Addr{far}, true, []string{"sysctl -w net/ipv4/conf/eth1/rp_filter=2"}},
		{"strict everywhere but loose here", with("net/ipv4/conf/all/rp_filter", "1", "net/ipv4/conf/eth1/rp_filter", "2"), []netip.Addr{far}, true, nil},
		{"strict device, masquerading", with("net/ipv4/conf/flannel.1/rp_filter", "1"), nil, true, nil},
		{"strict device", with("net/ipv4/conf/flannel.1/rp_filter", "1"), nil, false, []string{"sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"}},
		{"garbage", with("net/ipv4/conf/flannel.1/rp_filter", "x", "net/ipv4/ip_forward", ""), nil, false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			overlay := Overlay{Devices: devices, Masquerade: tt.masq}
			for _, p := range tt.peers {
				overlay.Peers = append(overlay.Peers, Peer{PublicIP: p})
			}
			for _, o := range overlay.CheckSysctls(f, s, tt.values) {
				if o.Text == "" || o.ID == "" {
					t.Errorf("%s: nothing is said", o.Command)
				}
				got = append(got, o.Command)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for _, f := range []Facts{f, {}} {
		for _, path := range (Overlay{Devices: devices}).CheckedSysctls(f) {
			if path == "" || path != filepath.Clean(path) || path[0] == '/' {
				t.Errorf("path %q", path)
			}
		}
	}
}

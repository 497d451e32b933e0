package backend

import (
	"strings"
	"testing"
)

func mustParse(t *testing.T, raw string) Network {
	t.Helper()
	b, c := mustNew(t, raw)
	return Network{c, b}
}

// TestDevicesOfNetworks checks which backends need a device with a fixed name, a TUN device or
// shared routes.
func TestDevicesOfNetworks(t *testing.T) {
	for _, c := range []struct {
		backend, device string
		tun, routes     bool
	}{
		{`{"Type":"vxlan","VNI":7}`, "flannel.7", false, false},
		{`{"Type":"udp"}`, "", true, true},
		{`{"Type":"host-gw"}`, "", false, false},
		{`{"Type":"alloc"}`, "", false, false},
	} {
		n := mustParse(t, `{"Network":"10.42.0.0/16","Backend":`+c.backend+`}`)
		if device, tun, routes := n.FixedDevice(), n.UsesTUN(), n.RoutesToAll(); device != c.device || tun != c.tun || routes != c.routes {
			t.Errorf("%s: device %q, TUN %t, routes %t; want %+v", c.backend, device, tun, routes, c)
		}
	}
}

// TestWhatALaterConfigMayChange: the pool, the TTL of leases and the packet filter may change at
// run time. Anything else needs a restart.
func TestWhatALaterConfigMayChange(t *testing.T) {
	before := mustParse(t, `{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`)
	for later, want := range map[string]string{
		`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}`:                                                  "",
		`{"Network":"10.42.0.0/16","SubnetMax":"10.42.99.0","EnableNFTables":true,"Backend":{"Type":"vxlan"}}`:   "",
		`{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`:                                                  "Network is 10.43.0.0/16, was 10.42.0.0/16",
		`{"Network":"10.42.0.0/16","SubnetLen":25,"Backend":{"Type":"host-gw"}}`:                                 "SubnetLen is 25, was 24; Backend.Type is host-gw, was vxlan",
		`{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`:                                          "Backend has other options",
		`{"Network":"10.42.0.0/16","SubnetLen":25,"SubnetMin":"10.42.1.0","Backend":{"Type":"vxlan","Port":99}}`: "SubnetLen is 25, was 24",
	} {
		n := mustParse(t, later)
		if got := strings.Join(before.NeedsRestart(n), "; "); got != want {
			t.Errorf("%s: %q, want %q", later, got, want)
		}
		if same := before.Equal(n); same != (before.V4 == n.V4 && want == "" && before.NFTables == n.NFTables) {
			t.Errorf("%s: equal: %t", later, same)
		}
	}
}

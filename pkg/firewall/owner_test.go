package firewall

import (
	"net/netip"
	"testing"
)

func from(p string) Match    { return In(netip.MustParsePrefix(p)) }
func notFrom(p string) Match { return NotIn(netip.MustParsePrefix(p)) }

// TestOwnerByWhatARuleNames has a daemon of 10.42.0.0/16 that has noted 10.50.0.0/16 before.
func TestOwnerByWhatARuleNames(t *testing.T) {
	owner := Owner{Network: four.Network, Overlays: []Overlay{
		{Network: netip.MustParsePrefix("10.50.0.0/16"), Subnet: netip.MustParsePrefix("10.50.9.0/24")}, {}, four,
	}}
	tests := []struct {
		name         string
		rule         Rule
		ours, shared bool
	}{
		{"the network", Rule{Src: from("10.42.0.0/16")}, true, false},
		{"the network and a subnet", Rule{Src: notFrom("10.42.0.0/16"), Dst: from("10.42.7.0/24")}, true, false},
		{"a former subnet", Rule{Src: from("10.42.9.0/24")}, true, false},
		{"the network and multicast", Rule{Src: from("10.42.0.0/16"), Dst: notFrom("224.0.0.0/4")}, true, false},
		{"multicast alone", Rule{Dst: notFrom("224.0.0.0/4")}, false, true},
		{"no address", Rule{Mark: keepSourceMark}, false, true},
		{"another network", Rule{Src: from("10.43.0.0/16")}, false, false},
		{"the network and another", Rule{Src: from("10.42.0.0/16"), Dst: from("10.43.0.0/16")}, false, false},
		{"what contains the network", Rule{Src: from("10.0.0.0/8")}, false, false},
		{"all addresses but the network's", Rule{Dst: notFrom("0.0.0.0/0")}, false, false},
		{"the one before", Rule{Src: from("10.50.0.0/16"), Dst: from("10.50.9.0/24")}, true, false},
		{"the one before, another subnet", Rule{Src: notFrom("10.50.0.0/16"), Dst: from("10.50.1.0/24")}, true, false},
		{"part of the one before, which may be another network's by now", Rule{Src: from("10.50.9.0/24")}, false, false},
		{"IPv6", Rule{Src: from("fd42::/48")}, false, false},
	}
	for _, tt := range tests {
		if got := owner.Owns(tt.rule); got != tt.ours {
			t.Errorf("%s (%s): owned: %v", tt.name, tt.rule, got)
		}
		if got := tt.rule.Shared(); got != tt.shared {
			t.Errorf("%s (%s): shared: %v", tt.name, tt.rule, got)
		}
	}
	for _, o := range []Overlay{four, six} {
		owner := Owner{Network: o.Network}
		for _, c := range Rules(Options{Overlay: o, Masquerade: true, Forward: true, Tunnel: Tunnel{Port: 8472}}) {
			for i, r := range c.Rules {
				if !owner.Owns(r) && !(r.Shared() && i == 0) {
					t.Errorf("a wanted rule is neither owned nor the first: %s", r)
				}
			}
		}
	}
}

// TestRulesLeftBehind has the rules of 10.42.7.0/24 stay while the host has gone back to an
// original of v0.8 to v0.19 and leased 10.42.9.0/24: its rules stand behind ours.
func TestRulesLeftBehind(t *testing.T) {
	left := Rules(Options{Overlay: four, Masquerade: true})[0].Rules
	now := OldRulesets(Overlay{four.Network, netip.MustParsePrefix("10.42.9.0/24")})[0].Rules
	for _, tt := range []struct {
		name, src, dst string
		want           Verdict
	}{
		{"own container to a peer's", "10.42.9.2", "10.42.8.2", Return},
		{"own container to one in the subnet of before", "10.42.9.2", "10.42.7.2", Return},
		{"a peer's container to ours", "10.42.8.2", "10.42.9.2", Return},
		{"own container to the outside", "10.42.9.2", "198.51.100.1", Masquerade},
		{"own container to a group", "10.42.9.2", "239.1.2.3", Return},
		{"outside to another's container in the subnet of before", "198.51.100.1", "10.42.7.2", Masquerade},
		// The price, until `flanneld cleanup`: the original alone leaves the address as it is.
		{"outside to own container", "198.51.100.1", "10.42.9.2", Masquerade},
	} {
		got := verdict(left, 0, tt.src, tt.dst, 0)
		if got == Return {
			got = verdict(now, 0, tt.src, tt.dst, 0)
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

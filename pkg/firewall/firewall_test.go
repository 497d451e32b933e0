package firewall

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	four = Overlay{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.42.7.0/24")}
	six  = Overlay{netip.MustParsePrefix("fd42::/48"), netip.MustParsePrefix("fd42:0:0:7::/64")}
)

func text(chains []Chain) string {
	var b strings.Builder
	for _, c := range chains {
		for _, r := range c.Rules {
			b.WriteString(c.Hook.Chain() + ": " + r.String() + "\n")
		}
	}
	return b.String()
}

func TestRules(t *testing.T) {
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"nothing", Options{Overlay: four}, ""},
		{"masquerade", Options{Overlay: four, Masquerade: true}, `
POSTROUTING: mark 0x4000 return
POSTROUTING: from 10.42.0.0/16 to 10.42.0.0/16 return
POSTROUTING: not from 10.42.0.0/16 to 10.42.7.0/24 return
POSTROUTING: from 10.42.0.0/16 not to 224.0.0.0/4 masquerade
POSTROUTING: not from 10.42.0.0/16 to 10.42.0.0/16 masquerade
`},
		{"all", Options{Overlay: six, Masquerade: true, RandomPorts: true, Forward: true}, `
POSTROUTING: mark 0x4000 return
POSTROUTING: from fd42::/48 to fd42::/48 return
POSTROUTING: not from fd42::/48 to fd42:0:0:7::/64 return
POSTROUTING: from fd42::/48 not to ff00::/8 masquerade with random ports
POSTROUTING: not from fd42::/48 to fd42::/48 masquerade with random ports
FORWARD: from fd42::/48 accept
FORWARD: to fd42::/48 accept
PREROUTING: from fd42::/48 to fd42:0:0:7::/64 accept
`},
		{"forward", Options{Overlay: four, RandomPorts: true, Forward: true}, `
FORWARD: from 10.42.0.0/16 accept
FORWARD: to 10.42.0.0/16 accept
PREROUTING: from 10.42.0.0/16 to 10.42.7.0/24 accept
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, want := text(Rules(tt.o)), strings.TrimPrefix(tt.want, "\n"); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// verdict is what the rules say of a packet, as the kernel would ask them.
func verdict(rules []Rule, mark uint32, src, dst string) Verdict {
	meets := func(m Match, a string) bool {
		return !m.Prefix.IsValid() || m.Prefix.Contains(netip.MustParseAddr(a)) != m.Not
	}
	for _, r := range rules {
		if mark&r.Mark == r.Mark && meets(r.Src, src) && meets(r.Dst, dst) {
			return r.Verdict
		}
	}
	return Return
}

// TestWhoseAddressIsSeen follows packets through this host.
func TestWhoseAddressIsSeen(t *testing.T) {
	rules := Rules(Options{Overlay: four, Masquerade: true})[0].Rules
	tests := []struct {
		name     string
		mark     uint32
		src, dst string
		want     Verdict
	}{
		{"own container to a peer's", 0, "10.42.7.2", "10.42.9.2", Return},
		{"a peer's container to ours", 0, "10.42.9.2", "10.42.7.2", Return},
		{"own container to the outside", 0, "10.42.7.2", "198.51.100.1", Masquerade},
		{"own container to the outside, to be kept", 0x4000, "10.42.7.2", "198.51.100.1", Return},
		{"own container to a group", 0, "10.42.7.2", "239.1.2.3", Return},
		{"outside to own container", 0, "198.51.100.1", "10.42.7.2", Return},
		{"outside by way of this host to a peer's container", 0, "198.51.100.1", "10.42.9.2", Masquerade},
		{"this host to the outside", 0, "192.0.2.1", "198.51.100.1", Return},
		{"a peer's container by way of this host to another peer's", 0, "10.42.9.2", "10.42.8.2", Return},
	}
	for _, tt := range tests {
		if got := verdict(rules, tt.mark, tt.src, tt.dst); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestFormerRules asks only that no generation is taken for another: the rules
// of a longer one are no superset, in order and without gaps, of a shorter one's.
func TestFormerRules(t *testing.T) {
	all := FormerRules(four)
	for i, a := range all {
		for _, b := range all[i+1:] {
			for at := 0; a.Hook == b.Hook && at+len(b.Rules) <= len(a.Rules); at++ {
				if slices.Equal(a.Rules[at:at+len(b.Rules)], b.Rules) {
					t.Errorf("%s contains %s", a.Releases, b.Releases)
				}
			}
		}
	}
	for _, f := range FormerRules(six) {
		for _, r := range slices.Concat(f.Rules, f.ChainRules) {
			for _, m := range []Match{r.Src, r.Dst} {
				if m.Prefix.IsValid() && m.Prefix.Addr().Is4() {
					t.Errorf("%s: %s is no IPv6 rule", f.Releases, r)
				}
			}
		}
	}
}

package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	four = Overlay{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.42.7.0/24")}
	six  = Overlay{netip.MustParsePrefix("fd42::/48"), netip.MustParsePrefix("fd42:0:0:7::/64")}
)

var lan = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}

func text(chains []Chain) string {
	var b strings.Builder
	for _, c := range chains {
		for _, r := range c.Rules {
			b.WriteString(c.Hook.Chain() + ": " + r.String() + "\n")
		}
	}
	return b.String()
}

// String returns the rule in the notation of the tests.
func (r Rule) String() string {
	text := ""
	if r.Mark != 0 {
		text = fmt.Sprintf("mark %#x ", r.Mark)
	}
	for i, m := range []Match{r.Src, r.Dst} {
		if m.Not {
			text += "not "
		}
		if m.Prefix.IsValid() {
			text += [...]string{"from ", "to "}[i] + m.Prefix.String() + " "
		}
	}
	if r.Port != 0 {
		text += fmt.Sprintf("by UDP to port %d ", r.Port)
	}
	return text + r.Verdict.String()
}

func (v Verdict) String() string {
	return [...]string{"return", "accept", "masquerade", "masquerade with random ports", "drop"}[v]
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
		{"vxlan", Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472}}, `
FORWARD: from 10.42.0.0/16 not to 10.42.0.0/16 by UDP to port 8472 drop
FORWARD: from 10.42.0.0/16 accept
FORWARD: to 10.42.0.0/16 accept
PREROUTING: from 10.42.0.0/16 to 10.42.7.0/24 accept
INPUT: from 10.42.7.0/24 not to 10.42.0.0/16 by UDP to port 8472 drop
INPUT: from 10.42.0.0/16 to 10.42.7.0/24 by UDP to port 8472 drop
INPUT: not from 10.42.0.0/16 to 10.42.7.0/24 by UDP to port 8472 drop
`},
		{"udp, hosts in the network", Options{Overlay: four, Forward: true, Tunnel: Tunnel{8285, true, lan}}, `
FORWARD: from 10.42.0.0/24 not to 10.42.0.0/16 by UDP to port 8285 accept
FORWARD: from 10.42.0.0/24 to 10.42.0.0/16 by UDP to port 8285 accept
FORWARD: from 10.42.0.0/16 not to 10.42.0.0/16 by UDP to port 8285 drop
FORWARD: from 10.42.0.0/16 to 10.42.0.0/24 by UDP to port 8285 drop
FORWARD: from 10.42.0.0/16 accept
FORWARD: to 10.42.0.0/16 accept
PREROUTING: from 10.42.0.0/16 to 10.42.7.0/24 accept
OUTPUT: from 10.42.7.0/24 not to 10.42.0.0/16 by UDP to port 8285 drop
OUTPUT: from 10.42.7.0/24 to 10.42.0.0/24 by UDP to port 8285 drop
`},
		{"tunnel without rules for forwarding", Options{Overlay: four, Tunnel: Tunnel{Port: 8472}}, ""},
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

// verdict is what the rules say of a packet, to a port if it is one of UDP, as the kernel would ask
// them.
func verdict(rules []Rule, mark uint32, src, dst string, port uint16) Verdict {
	meets := func(m Match, a string) bool {
		return !m.Prefix.IsValid() || m.Prefix.Contains(netip.MustParseAddr(a)) != m.Not
	}
	for _, r := range rules {
		if mark&r.Mark == r.Mark && (r.Port == 0 || r.Port == port) && meets(r.Src, src) && meets(r.Dst, dst) {
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
		if got := verdict(rules, tt.mark, tt.src, tt.dst, 0); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestWhoReachesATunnelsPort follows UDP packets through this host, whose uplink is 10.42.0.7 if
// the hosts' LAN is part of the network, else 192.0.2.7.
func TestWhoReachesATunnelsPort(t *testing.T) {
	vxlan := Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472}}
	udp := Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472, Bound: true}}
	inside := Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472, Hosts: lan}}
	bound := Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472, Bound: true, Hosts: lan}}
	clash := Options{Overlay: four, Forward: true, Tunnel: Tunnel{Port: 8472, Hosts: []netip.Prefix{four.Subnet}}}
	for _, tt := range []struct {
		name     string
		o        Options
		hook     Hook
		src, dst string
		port     uint16
		want     Verdict // Return: none of ours
	}{
		{"own container to a peer", vxlan, Forward, "10.42.7.2", "192.0.2.9", 8472, Discard},
		{"a peer's container by way of this host to another peer", vxlan, Forward, "10.42.9.2", "192.0.2.8", 8472, Discard},
		{"own container to another port of a peer", vxlan, Forward, "10.42.7.2", "192.0.2.9", 8473, Accept},
		{"overlay of containers: between two of them", vxlan, Forward, "10.42.7.2", "10.42.9.2", 8472, Accept},
		{"host behind this router to a peer", vxlan, Forward, "192.0.2.130", "192.0.2.9", 8472, Return},
		{"own container to this host", vxlan, Input, "10.42.7.2", "192.0.2.7", 8472, Discard},
		{"own container to this host's bridge", vxlan, Input, "10.42.7.2", "10.42.7.1", 8472, Discard},
		{"a peer's container to this host's bridge", vxlan, Input, "10.42.9.2", "10.42.7.1", 8472, Discard},
		{"somebody's to this host's device", vxlan, Input, "198.51.100.1", "10.42.7.0", 8472, Discard},
		{"a peer to this host", vxlan, Input, "192.0.2.9", "192.0.2.7", 8472, Return},
		{"own container to another port of this host", vxlan, Input, "10.42.7.2", "10.42.7.1", 53, Return},
		{"own container to a peer", udp, Forward, "10.42.7.2", "192.0.2.9", 8472, Discard},
		{"local process at the bridge's address to a peer", udp, Output, "10.42.7.1", "192.0.2.9", 8472, Discard},
		{"the tunnel to a peer", udp, Output, "192.0.2.7", "192.0.2.9", 8472, Return},
		{"own container to a peer in the network", inside, Forward, "10.42.7.2", "10.42.0.9", 8472, Discard},
		{"own container to a peer outside", inside, Forward, "10.42.7.2", "192.0.2.9", 8472, Discard},
		{"peer in the network by way of this host to one outside", inside, Forward, "10.42.0.9", "192.0.2.9", 8472, Accept},
		{"peer outside by way of this host to one in the network", inside, Forward, "192.0.2.9", "10.42.0.9", 8472, Accept},
		{"between containers", inside, Forward, "10.42.7.2", "10.42.9.2", 8472, Accept},
		{"peer in the network to this host", inside, Input, "10.42.0.9", "10.42.0.7", 8472, Return},
		{"own container to this host in the network", inside, Input, "10.42.7.2", "10.42.0.7", 8472, Discard},
		{"the tunnel to a peer in the network", bound, Output, "10.42.0.7", "10.42.0.9", 8472, Return},
		{"peer to this host, whose subnet is the LAN", clash, Input, "10.42.7.9", "10.42.7.7", 8472, Return},
	} {
		got := Return
		for _, c := range Rules(tt.o) {
			if c.Hook == tt.hook {
				got = verdict(c.Rules, 0, tt.src, tt.dst, tt.port)
			}
		}
		if got != tt.want {
			t.Errorf("%s, %+v: got %s, want %s", tt.name, tt.o.Tunnel, got, tt.want)
		}
	}
}

// TestOldRulesets asks only that no generation is taken for another: the rules
// of a longer one are no superset, in order and without gaps, of a shorter one's.
func TestOldRulesets(t *testing.T) {
	all := OldRulesets(four)
	for i, a := range all {
		for _, b := range all[i+1:] {
			for at := 0; a.Hook == b.Hook && at+len(b.Rules) <= len(a.Rules); at++ {
				if slices.Equal(a.Rules[at:at+len(b.Rules)], b.Rules) {
					t.Errorf("%s contains %s", a.Releases, b.Releases)
				}
			}
		}
	}
	for _, f := range OldRulesets(six) {
		for _, r := range slices.Concat(f.Rules, f.ChainRules) {
			for _, m := range []Match{r.Src, r.Dst} {
				if m.Prefix.IsValid() && m.Prefix.Addr().Is4() {
					t.Errorf("%s: %s is no IPv6 rule", f.Releases, r)
				}
			}
		}
	}
}

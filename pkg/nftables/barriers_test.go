package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// toTunnel is the first packet of a peer.
var toTunnel = firewall.Packet{
	In: "eth0", Src: netip.MustParseAddr("10.99.0.3"), Dst: netip.MustParseAddr("10.99.0.2"),
	Protocol: unix.IPPROTO_UDP, SrcPort: 40000, DstPort: 8472, ToHost: true,
}

// toContainer is one between containers of two hosts.
var toContainer = firewall.Packet{
	In: "flannel.1", Src: netip.MustParseAddr("10.42.9.2"), Dst: netip.MustParseAddr("10.42.7.2"),
}

// barriers are the chains that drop a packet for certain.
func (b *bed) barriers(p firewall.Packet) []firewall.Barrier {
	b.t.Helper()
	all, err := b.tables.Barriers(context.Background(), p)
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(b firewall.Barrier) bool { return !b.Certain })
}

// TestWhichChainsDropAPacketForCertain: a chain is named only if nothing in it may let the packet
// pass.
func TestWhichChainsDropAPacketForCertain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const begin = "table inet t {\n chain other { tcp dport 22 accept\n }\n chain open { udp dport 8472 accept\n }\n" +
		"chain no { drop\n }\n set ports { type inet_service; flags interval; elements = { 53, 8000-9000 }\n }\n"
	for _, c := range []struct {
		name, rules string
		dropped     bool
	}{
		{"nothing", "", false},
		{"policy", "policy drop;", true},
		{"end", "reject", true},
		{"state", "policy drop; ct state established,related accept; ct state invalid drop; iifname lo accept", true},
		{"map of states", "policy drop; ct state vmap { established : accept, related : accept, invalid : drop }", true},
		{"new", "policy drop; ct state new accept", false},
		{"port", "policy drop; udp dport 8472 accept", false},
		{"other port", "policy drop; udp dport 8473 accept", true},
		{"other protocol", "policy drop; tcp dport 8472 accept", true},
		{"set of ports", "policy drop; udp dport { 53, 8472 } accept", false},
		{"set of other ports", "policy drop; udp dport { 53, 8473 } accept", true},
		{"both protocols", "policy drop; meta l4proto { tcp, udp } th dport { 8472 } accept", false},
		{"range", "policy drop; udp dport 8000-9000 accept", false},
		{"other range", "policy drop; udp dport 8473-9000 accept", true},
		{"not that range", "policy drop; udp dport != 8473-9000 accept", false},
		{"ranges", "policy drop; udp dport @ports accept", false},
		{"not in ranges", "policy drop; udp dport != @ports accept", true},
		{"network", "policy drop; ip saddr 10.99.0.0/16 accept", false},
		{"other network", "policy drop; ip saddr 10.98.0.0/16 accept", true},
		{"odd network", "policy drop; ip saddr 10.96.0.0/11 accept", false},
		{"networks", "policy drop; ip saddr { 10.98.0.0/15, 192.168.0.0/16 } accept", false},
		{"all networks", "policy drop; ip saddr { 0.0.0.0/0 } accept", false},
		{"other networks", "policy drop; ip saddr { 10.98.0.0/16, 192.168.0.0/16 } accept", true},
		{"last network", "policy drop; ip saddr { 10.100.0.0-255.255.255.255 } accept", true},
		{"device", "policy drop; iifname eth0 accept", false},
		{"devices", "policy drop; iifname \"eth*\" accept", false},
		{"other devices", "policy drop; iifname \"wlan*\" accept", true},
		{"map of devices", "policy drop; iifname vmap { lo : accept, eth0 : jump open }", false},
		{"map of other devices", "policy drop; iifname vmap { lo : accept, eth1 : jump open }", true},
		{"pair", "policy drop; iifname . udp dport { eth0 . 8472 } accept", false},
		{"other pair", "policy drop; iifname . udp dport { eth0 . 8473 } accept", true},
		{"pair of ranges", "policy drop; ip saddr . udp dport { 10.99.0.0/16 . 8400-8500 } accept", false},
		{"jump", "policy drop; jump other; jump open", false},
		{"jump to nothing", "policy drop; jump other", true},
		{"goto", "goto no", true},
		{"jump and drop", "jump no", true},
		{"drop of others", "tcp dport 22 drop; ip saddr 10.98.0.0/16 drop", false},
		{"unknown condition", "policy drop; meta mark 7 accept", false},
		{"unknown drop", "meta mark 7 drop", false},
		{"either way", "policy drop; meta mark 7 drop; ip ttl 1 drop", true},
		{"limit", "policy drop; limit rate 10/second accept", false},
		{"local", "fib daddr type != local drop; policy drop; fib daddr type local udp dport 8472 accept", false},
		{"log", "policy drop; log prefix \"x\" counter", true},
		{"return", "policy drop; return; udp dport 8472 accept", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			b.nft("flush ruleset\n" + begin + "chain c { type filter hook input priority 0; " + c.rules + "\n }\n}\n")
			got := b.barriers(toTunnel)
			if (len(got) == 1) != c.dropped {
				t.Errorf("dropped by %v, want dropped: %v\n%s", got, c.dropped, b.sh("nft list chain inet t c"))
			}
		})
	}
	b.t = t
	b.nft("flush ruleset\ntable ip t {\n chain c { type filter hook prerouting priority raw; udp dport 8472 drop\n }\n}\n" +
		"table ip s {\n flags dormant; chain c { type filter hook input priority 0; policy drop;\n }\n}\n")
	if got := fmt.Sprint(b.barriers(toTunnel)); got != "[nftables ip t c]" {
		t.Errorf("got %s", got)
	}
}

// TestBarriersOfTools: rulesets as firewalld and ufw leave them.
func TestBarriersOfTools(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	input := func(name string) string {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	check := func(what string, p firewall.Packet, want, command string) {
		t.Helper()
		got := b.barriers(p)
		said := ""
		if len(got) > 0 {
			said = got[0].OpenCommand(8472)
		}
		if fmt.Sprint(got) != "["+want+"]" || said != command {
			t.Errorf("%s: %v, %q", what, got, said)
		}
	}
	const firewalld = "firewall-cmd --zone=public --add-port=8472/udp; firewall-cmd --permanent --zone=public --add-port=8472/udp"
	for version, trusting := range map[string]string{"1.3": "filter_FORWARD_ZONES", "2.3": "filter_FORWARD_POLICIES"} {
		b.nft("flush ruleset\n" + input("firewalld-"+version+".nft"))
		check(version, toTunnel, "nftables inet firewalld filter_INPUT", firewalld)
		b.nft("add rule inet firewalld filter_IN_public_allow udp dport 8472 accept")
		check(version+" opened", toTunnel, "", "")
		if got := fmt.Sprint(b.barriers(toContainer)); got != "[nftables inet firewalld filter_FORWARD]" {
			t.Errorf("%s, forwarded: %s", version, got)
		}
		b.nft("insert rule inet firewalld " + trusting + " ip saddr 10.42.0.0/16 accept")
		check(version+", trusted", toContainer, "", "")
	}
	b.nft("flush ruleset")
	b.run(input("ufw.iptables"), "iptables-nft-restore")
	check("ufw", toTunnel, "nftables ip filter INPUT", "ufw allow 8472/udp")
	b.run("", strings.Fields("iptables-nft -A ufw-user-input -p udp -m udp --dport 8472 -j ACCEPT")...)
	check("ufw opened", toTunnel, "", "")
	b.nft("flush ruleset")
	b.sh("iptables-nft -P INPUT DROP")
	b.sh("iptables-nft -A INPUT -p udp -m multiport --dports 53,8473 -j ACCEPT")
	b.sh("iptables-nft -A INPUT -p tcp -m tcp --dport 8472 -j ACCEPT")
	b.sh("iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	check("policy", toTunnel, "nftables ip filter INPUT", "iptables-nft -I INPUT -p udp --dport 8472 -j ACCEPT")
}

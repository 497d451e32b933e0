package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// toTunnel is the first packet of a peer.
var toTunnel = firewall.Packet{
	In: "eth0", Src: netip.MustParseAddr("10.99.0.3"), Dst: netip.MustParseAddr("10.99.0.2"),
	Protocol: unix.IPPROTO_UDP, SrcPort: 40000, DstPort: 8472, ToHost: true,
}

// TestRulesThatRedirectHideNoDrops: rules for NAT may redirect the packets of some peers, and the
// chain after them drops those of the others.
func TestRulesThatRedirectHideNoDrops(t *testing.T) {
	l, drops, err := parseListing("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 192.0.2.0/24 -j DNAT --to-destination 192.0.2.1\nCOMMIT\n" +
		"*filter\n:INPUT DROP [0:0]\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	unknownSource := toTunnel
	unknownSource.Src = netip.Addr{}
	for _, p := range []firewall.Packet{toTunnel, unknownSource} {
		if got := barriers("iptables-legacy", l, drops, p); len(got) != 1 || !got[0].Certain || got[0].Chain != "INPUT" {
			t.Errorf("from %s: %v", p.Src, got)
		}
	}
}

// TestWhichRulesDropAPacketForCertain follows a packet to the tunnel's port.
func TestWhichRulesDropAPacketForCertain(t *testing.T) {
	const pass, maybe, drop = "pass", "maybe", "drop"
	for _, c := range []struct{ policy, rules, want string }{
		{"ACCEPT", "", pass},
		{"DROP", "", drop},
		{"ACCEPT", "-j REJECT --reject-with icmp-host-prohibited", drop},
		{"ACCEPT", "-p tcp -m tcp --dport 22 -j DROP", pass},
		{"DROP", "-p udp -m udp --dport 8472 -j ACCEPT", pass},
		{"DROP", "-p udp -m udp --dport 8473 -j ACCEPT", drop},
		{"DROP", "-p udp -m udp ! --dport 8473 -j ACCEPT", pass},
		{"DROP", "-p udp -m udp --dport 8000:9000 -j ACCEPT", pass},
		{"DROP", "-p udp -m multiport --dports 53,8472 -j ACCEPT", pass},
		{"DROP", "-p udp -m multiport --dports 53,8000:8400 -j ACCEPT", drop},
		{"DROP", "-p tcp -m tcp --dport 8472 -j ACCEPT", drop},
		{"DROP", "-p udp -j ACCEPT", pass},
		{"DROP", "-m state --state RELATED,ESTABLISHED -j ACCEPT", drop},
		{"DROP", "-m conntrack --ctstate NEW -j ACCEPT", pass},
		{"DROP", "-i lo -j ACCEPT", drop},
		{"DROP", "-i eth+ -j ACCEPT", pass},
		{"DROP", "! -i eth1 -j ACCEPT", pass},
		{"DROP", "-s 10.99.0.0/16 -j ACCEPT", pass},
		{"DROP", "-s 10.98.0.0/16 -j ACCEPT", drop},
		{"DROP", "! -s 10.98.0.0/16 -d 10.99.0.2/32 -j ACCEPT", pass},
		{"DROP", "-m mark --mark 0x7 -j ACCEPT", maybe},
		{"ACCEPT", "-m mark --mark 0x7 -j DROP", maybe},
		{"DROP", "-m limit --limit 3/min --limit-burst 10 -j ACCEPT", maybe},
		{"DROP", "-m addrtype --dst-type LOCAL -j ACCEPT", pass},
		{"DROP", "-m addrtype ! --dst-type LOCAL -j ACCEPT", drop},
		{"DROP", `-m comment --comment "the \"door\" -j DROP" -j ACCEPT`, pass},
		{"DROP", "-j LOG --log-prefix x\n-A INPUT -j RETURN\n-A INPUT -p udp -j ACCEPT", drop},
		{"DROP", "-j MINE", pass},
		{"DROP", "-g MINE", pass},
		{"DROP", "-p tcp -g MINE", drop},
		{"DROP", "-g LOOP", maybe},
		{"DROP", "-j NFQUEUE --queue-num 0", maybe},
		{"DROP", "-m unknown --what -j ACCEPT", maybe},
	} {
		text := "*filter\n:INPUT " + c.policy + " [0:0]\n:FORWARD DROP [0:0]\n:MINE - [0:0]\n:LOOP - [0:0]\n"
		if c.rules != "" {
			text += "-A INPUT " + c.rules + "\n"
		}
		text += "-A MINE -p udp -m udp --dport 8472 -j ACCEPT\n-A LOOP -j LOOP\nCOMMIT\n"
		l, drops, err := parseListing(text)
		if err != nil {
			t.Fatal(err)
		}
		got := pass
		for _, b := range barriers("iptables-legacy", l, drops, toTunnel) {
			if got = maybe; b.Certain {
				got = drop
			}
		}
		if got != c.want {
			t.Errorf("policy %s, %s: %s, want %s", c.policy, c.rules, got, c.want)
		}
	}
}

// TestBarriersNameTheTool checks the message, and that the suggested command helps.
func TestBarriersNameTheTool(t *testing.T) {
	eachVariant(t, func(b *bed) {
		one := func(what, command string) {
			b.t.Helper()
			all, err := b.Barriers(b.t.Context(), toTunnel)
			b.must(err)
			said := ""
			if len(all) > 0 && all[0].Certain {
				said = all[0].OpenCommand(8472)
			}
			if said != command {
				b.t.Errorf("%s: %+v, %q", what, all, said)
			}
		}
		one("nothing", "")
		b.load("ufw.rules")
		one("ufw", "ufw allow 8472/udp")
		b.others("iptables -A ufw-user-input -p udp -m udp --dport 8472 -j ACCEPT")
		one("ufw opened", "")
		b.others("iptables -F; iptables -X; iptables -P INPUT DROP")
		command := "iptables -t filter -I INPUT -p udp --dport 8472 -j ACCEPT"
		one("policy", command)
		b.others(command)
		one("opened", "")
		b.others("iptables -t raw -A PREROUTING -p udp --dport 8472 -j DROP")
		one("raw", "iptables -t raw -I PREROUTING -p udp --dport 8472 -j ACCEPT")
	})
}

// TestLookingForLegacyTablesMakesNone: without legacy tables, no method creates them.
func TestLookingForLegacyTablesMakesNone(t *testing.T) {
	b := newBed(t, "nft")
	look := func(want ...string) {
		t.Helper()
		if got, err := legacyTables(firewall.IPv4); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v, want %v", got, err, want)
		}
	}
	look()
	other, err := NewTools(time.Second).get(tool{firewall.IPv4, firewall.Legacy})
	b.must(err)
	look()
	if _, err := other.SyncAccepts(t.Context(), oneDaemon(four), everything(four)); err != nil {
		t.Fatal(err)
	}
	look()
	b.others("iptables-legacy -S FORWARD")
	look("filter")
}

// TestSyncAcceptsOnlyWherePacketsMayBeDropped: the other variant gets accepts where packets may be
// dropped, no masquerading, and nothing elsewhere.
func TestSyncAcceptsOnlyWherePacketsMayBeDropped(t *testing.T) {
	eachVariant(t, func(b *bed) {
		beside := func(want []firewall.Chain) []string {
			b.t.Helper()
			changes, err := b.SyncAccepts(b.t.Context(), oneDaemon(four), want)
			b.must(err)
			if again, err := b.SyncAccepts(b.t.Context(), oneDaemon(four), want); err != nil || len(again) > 0 {
				b.t.Errorf("the second pass is not empty: %q, %v", again, err)
			}
			return changes
		}
		for _, c := range []struct {
			name, rules string
			want        bool
		}{
			{"nothing", "iptables -S FORWARD", false},
			{"accepts", "iptables -A FORWARD -s 192.0.2.0/24 -j ACCEPT", false},
			{"policy", "iptables -P FORWARD DROP", true},
			{"end", "iptables -A FORWARD -j REJECT", true},
			{"branch", "iptables -N MINE; iptables -A FORWARD -i eth7 -j MINE", true},
			{"raw", "iptables -t raw -A PREROUTING -i eth7 -j DROP", false},
			{"docker", "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -i docker0 -j ACCEPT", true},
		} {
			b.others("iptables -P FORWARD ACCEPT; iptables -F; iptables -X; iptables -t raw -F; " + c.rules)
			before := b.rules()
			beside(everything(four))
			rules := b.rules()
			if got := strings.Contains(rules, "FLANNEL-FWD"); got != c.want {
				b.t.Errorf("%s: accepts: %v\n%s", c.name, got, rules)
			}
			if strings.Contains(rules, "FLANNEL-POSTRTG") || strings.Contains(rules, "FLANNEL-PRERTG") != (c.name == "raw") {
				b.t.Errorf("%s: more or less than is needed:\n%s", c.name, rules)
			}
			beside(nil)
			b.differ(c.name+", removed", b.rules(), before)
		}
		// Rules from before another variant was chosen are removed.
		b.others("iptables -P FORWARD DROP")
		b.sync(everything(four), four)
		beside(everything(four))
		if rules := b.rules(); !strings.Contains(rules, "FLANNEL-FWD") || strings.Contains(rules, "FLANNEL-POSTRTG") {
			b.t.Errorf("%s", fmt.Sprint(rules))
		}
	})
}

// FuzzBarriers follows a packet through arbitrary listings: that terminates, and no chain both
// drops for certain and never drops.
func FuzzBarriers(f *testing.F) {
	f.Add("*filter\n:INPUT DROP [0:0]\n:MINE - [0:0]\n-A INPUT -p udp -m multiport --dports 53,8000:8400 -j MINE\n-A MINE -g MINE\nCOMMIT\n")
	f.Add("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING ! -s 10.99.0.0/16 -i eth+ -m comment --comment \"a \\\"b\" -j DROP\nCOMMIT\n*filter\n:FORWARD DROP\nCOMMIT\n")
	through := toTunnel
	through.ToHost, through.Out = false, "docker0"
	f.Fuzz(func(t *testing.T, text string) {
		l, drops, err := parseListing(text)
		if err != nil {
			return
		}
		for _, p := range []firewall.Packet{toTunnel, through, {}} {
			// Tables raw, mangle, nat, filter and security at up to three hooks.
			if all := barriers("iptables", l, drops, p); len(all) > 10 {
				t.Errorf("%q: %+v", text, all)
			}
			p.Reply, p.Unmarked = true, true
			path, err := firewall.Evaluate(p, l.baseChains("iptables", drops, false))
			if err != nil {
				t.Errorf("%q: %v", text, err)
			}
			for _, b := range path.Barriers {
				if b.Rule.Number > 0 && l.ruleText(b.Table, b.Rule) == "" {
					t.Errorf("%q: no text of %+v", text, b)
				}
			}
		}
	})
}

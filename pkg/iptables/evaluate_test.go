package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// fates returns what may happen to a packet in table filter, chain FORWARD.
func fates(t *testing.T, rules []string, p firewall.Packet) (may firewall.Fate) {
	t.Helper()
	text := "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
	l, err := ParseListing("iptables", text)
	if err != nil {
		t.Fatal(err)
	}
	path, err := firewall.Evaluate(p, l.BaseChains())
	if err != nil {
		t.Fatal(err)
	}
	may = firewall.Passes
	for _, b := range path.Barriers {
		may = firewall.Passes | firewall.Drops
		if b.Certain {
			return firewall.Drops
		}
	}
	return may
}

// TestUnknownConditionsAreNeverAGuess inserts a rule with a condition that is not understood into
// random rules, in many forms. What may happen then includes what happens if the condition is met,
// and what happens if it is not.
func TestUnknownConditionsAreNeverAGuess(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	p := firewall.Packet{
		In: "flannel.1", Out: "docker0", Src: netip.MustParseAddr("10.42.8.2"), Dst: netip.MustParseAddr("10.42.7.2"),
		Protocol: unix.IPPROTO_TCP, SrcPort: 40000, DstPort: 443, Unmarked: true,
	}
	conditions := []string{"", "-s 10.42.0.0/16 ", "-s 10.43.0.0/16 ", "! -d 10.42.7.0/24 ", "-i flannel+ ", "-i eth0 ", "-p udp -m udp --dport 443 ",
		"-p tcp -m multiport --dports 80,443 ", "-m conntrack --ctstate ESTABLISHED ", "-m mark --mark 0x1 ", "-m set --match-set x src "}
	targets := []string{"-j ACCEPT", "-j DROP", "-j RETURN", "-j A", "-g A", "-j B", "-g B", "-j LOG", "-j MARK --set-xmark 0x1/0xffffffff", "-j WHAT"}
	opaque := []string{"-m what ", "-m what --ever ", "-m set --match-set bad src ", "! --odd -m what ", "-m recent --rcheck --name x --mask 255.255.255.255 ",
		"-m string --string \"-s\" --algo bm ", "-m u32 --u32 \"0x0=0x1\" ", "-m socket ", "-m physdev --physdev-is-bridged ", "-m tcp --tcp-option 7 "}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	undecided := 0
	for range 3000 {
		var rules []string
		for range r.IntN(8) {
			chain := pick([]string{"FORWARD", "FORWARD", "A", "B"})
			target := pick(targets)
			if chain == "A" && strings.HasSuffix(target, " A") || chain == "B" && (strings.HasSuffix(target, " A") || strings.HasSuffix(target, " B")) {
				continue // the kernel has no loops
			}
			rules = append(rules, "-A "+chain+" "+pick(conditions)+target)
		}
		at, chain, known := r.IntN(len(rules)+1), pick([]string{"FORWARD", "A"}), pick(conditions[:8])
		target := pick([]string{"-j ACCEPT", "-j DROP", "-j RETURN", "-j B", "-g B"})
		with := func(rule string) []string {
			all := append([]string{}, rules[:at]...)
			if rule != "" {
				all = append(all, rule)
			}
			return append(all, rules[at:]...)
		}
		unknown := "-A " + chain + " " + known + pick(opaque) + target
		got := fates(t, with(unknown), p)
		met, not := fates(t, with("-A "+chain+" "+known+target), p), fates(t, with(""), p)
		if got|met|not != got {
			t.Errorf("%s: %b, but %b if it is met and %b if not, in\n%s", unknown, got, met, not, strings.Join(with(unknown), "\n"))
		}
		if got == firewall.Passes|firewall.Drops && met != not {
			undecided++
		}
	}
	if undecided == 0 {
		t.Error("no rule mattered")
	}
}

// TestOptionsBelongToTheirMatch: an option of a match that is not understood is not taken for that
// of another, and a value is not taken for an option.
func TestOptionsBelongToTheirMatch(t *testing.T) {
	p := firewall.Packet{
		In: "flannel.1", Out: "docker0", Src: netip.MustParseAddr("10.42.8.2"), Dst: netip.MustParseAddr("10.42.7.2"),
		Protocol: unix.IPPROTO_TCP, SrcPort: 40000, DstPort: 443, Unmarked: true, Reply: true,
	}
	const maybe = firewall.Passes | firewall.Drops
	for rule, want := range map[string]firewall.Fate{
		"-m connmark --mark 0x1 -j DROP":                                   maybe, // the connection's mark, not the packet's
		"-m mark --mark 0x1 -j DROP":                                       firewall.Passes,
		"-m connmark --mark 0x1 -m tcp --dport 80 -j DROP":                 firewall.Passes,
		`-m string --string "-f" --algo bm --to 65535 -j DROP`:             maybe,
		`-m string --string "-i" --algo bm --to 65535 -j DROP`:             maybe,
		`-m string --string "--syn" --algo bm --to 65535 -j DROP`:          maybe,
		`-m string --string "--dport" --algo bm --to 65535 -j DROP`:        maybe,
		"-m set --match-set x src -m conntrack --ctstate INVALID -j DROP":  firewall.Passes,
		"-m what --ever -m conntrack --ctstate ESTABLISHED -j DROP":        maybe,
		"-i eth0 -m what --ever -j DROP":                                   firewall.Passes,
		"-p tcp -m set --match-set x src -m tcp --dport 443 -j DROP":       maybe,
		"-p tcp -m tcp --sport 443 --tcp-flags SYN,ACK SYN,ACK -j DROP":    firewall.Passes,
		"-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP":            firewall.Passes,
		"-m policy --dir in --pol ipsec --proto esp --mode tunnel -j DROP": maybe,
	} {
		if got := fates(t, []string{"-A FORWARD " + rule}, p); got != want {
			t.Errorf("%s: %b, want %b", rule, got, want)
		}
	}
}

// TestManyRules: a table of 10,000 rules of others is evaluated quickly enough for many packets.
func TestManyRules(t *testing.T) {
	rules := make([]string, 0, 10000)
	for i := range 10000 {
		rules = append(rules, fmt.Sprintf("-A FORWARD -s 172.16.%d.%d/32 -p tcp -m tcp --dport %d -j DROP", i/250, i%250, 1+i))
	}
	p := firewall.Packet{In: "flannel.1", Src: netip.MustParseAddr("10.42.8.2"), Dst: netip.MustParseAddr("10.42.7.2"), Protocol: unix.IPPROTO_TCP}
	if got := fates(t, rules, p); got != firewall.Passes {
		t.Errorf("%b", got)
	}
	if got := fates(t, append(rules, "-A FORWARD -p tcp -j DROP"), p); got != firewall.Drops {
		t.Errorf("%b", got)
	}
}

// TestRulesAreNamed: the rule that drops is named as it is listed, and the first that is not
// understood.
func TestRulesAreNamed(t *testing.T) {
	const text = "*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n-A FORWARD -p icmp -j ACCEPT\n-A FORWARD -i eth0 -j A\n-A FORWARD -m what -j ACCEPT\n" +
		"-A A -j LOG\n-A A -s 10.9.0.0/16 -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n"
	l, err := ParseListing("iptables", text)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ in, src, rule, unclear string }{
		{"eth0", "10.9.0.1", "-A A -s 10.9.0.0/16 -j REJECT --reject-with icmp-port-unreachable", ""},
		{"eth1", "10.9.0.1", "", "-A FORWARD -m what -j ACCEPT"},
	} {
		path, err := firewall.Evaluate(firewall.Packet{In: c.in, Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr("10.8.0.1"), Protocol: unix.IPPROTO_UDP}, l.BaseChains())
		if err != nil || len(path.Barriers) != 1 {
			t.Fatalf("%+v, %v", path, err)
		}
		b := path.Barriers[0]
		if rule, unclear := l.RuleText(b.Table, b.Rule), l.RuleText(b.Table, b.Unclear); rule != c.rule || unclear != c.unclear || b.Certain != (unclear == "") {
			t.Errorf("%s: rule %q, unclear %q, certain %v", c.in, rule, unclear, b.Certain)
		}
	}
}

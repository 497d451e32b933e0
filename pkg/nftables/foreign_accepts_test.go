package nftables

import (
	"strings"
	"testing"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/golden"
)

// plainTable is as an operator with nft(8) may have it: for both families, with its end in a
// reject.
const plainTable = `
table inet firewalld {
	chain filter_PREROUTING {
		type filter hook prerouting priority filter + 10; policy accept;
		icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
		meta nfproto ipv6 fib saddr . mark . iif oif missing drop
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		jump filter_FORWARD_POLICIES
		ct state invalid drop
		reject with icmpx type admin-prohibited
	}
	chain filter_FORWARD_POLICIES {
		ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 type addr-unreachable
	}
	chain mangle_FORWARD {
		type filter hook forward priority mangle; policy accept;
		jump clamp
	}
	chain clamp {
		tcp flags syn tcp option maxseg size set rt mtu
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
		oifname "eth0" masquerade
	}
}
`

// docker is what Docker 28 has, for a published container.
const docker = `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 10.42.7.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -d 10.42.7.2/32 ! -i docker0 -j DROP
COMMIT
`

// saved is iptables-nft-save without what changes from run to run.
func (b *bed) saved(table string) string {
	b.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(b.sh("iptables-nft-save -t " + table)) {
		if !strings.HasPrefix(line, "#") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// rulesOf are the lines that append to a chain, in order.
func rulesOf(saved, chain string) string {
	var out strings.Builder
	for line := range strings.Lines(saved) {
		if rest, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			out.WriteString(rest)
		}
	}
	return out.String()
}

const (
	fromOverlay = `-s 10.42.0.0/16 -m comment --comment flanneld -j ACCEPT` + "\n"
	toOverlay   = `-d 10.42.0.0/16 -m comment --comment flanneld -j ACCEPT` + "\n"
	toSubnet    = `-s 10.42.0.0/16 -d 10.42.7.0/24 -m comment --comment flanneld -j ACCEPT` + "\n"
)

// TestPolicyDrop is Docker's old way, and an operator's.
func TestPolicyDrop(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.sh("iptables-nft -P FORWARD DROP")
	b.sh("ip6tables-nft -P FORWARD DROP")
	before := b.ruleset()
	b.sync(firewall.IPv4, all(four))
	equal(t, rulesOf(b.saved("filter"), "FORWARD"), fromOverlay+toOverlay)
	if strings.Contains(b.sh("ip6tables-nft-save"), "flanneld") {
		t.Error("a Sync of IPv4 wrote IPv6 rules")
	}
	b.sync(firewall.IPv6, all(six))
	has(t, b.sh("ip6tables-nft-save"), `-A FORWARD -s fd42::/48 -m comment --comment flanneld -j ACCEPT`)

	b.sync(firewall.IPv4, nil)
	b.sync(firewall.IPv6, nil)
	equal(t, b.ruleset(), before)

	// iptables-nft works on.
	b.sync(firewall.IPv4, all(four))
	b.sh("iptables-nft -D FORWARD -s 10.42.0.0/16 -m comment --comment flanneld -j ACCEPT") // fails if it is not there
	equal(t, rulesOf(b.sh("iptables-nft -S FORWARD"), "FORWARD"), toOverlay)
	b.sync(firewall.IPv4, all(four))
	equal(t, rulesOf(b.sh("iptables-nft -S FORWARD"), "FORWARD"), fromOverlay+toOverlay)

	// Rules saved and restored have the comment in another form; they are ours.
	b.run(b.sh("iptables-nft-save"), "iptables-nft-restore")
	equal(t, rulesOf(b.saved("filter"), "FORWARD"), fromOverlay+toOverlay)
	b.settled(firewall.IPv4, all(four))

	// A chain that no longer drops needs no accepts.
	b.sh("iptables-nft -P FORWARD ACCEPT")
	b.sync(firewall.IPv4, all(four))
	equal(t, rulesOf(b.saved("filter"), "FORWARD"), "")
}

// TestOddPrefixes: prefixes within a byte have a form of their own.
func TestOddPrefixes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.run(docker, "iptables-nft-restore")
	b.sync(firewall.IPv4, all(odd))
	replace := strings.NewReplacer("10.42.0.0/16", "10.32.0.0/11", "10.42.7.0/24", "10.42.7.64/26")
	equal(t, rulesOf(b.saved("filter"), "FORWARD"), "-j DOCKER-USER\n"+replace.Replace(fromOverlay+toOverlay)+"-j DOCKER-FORWARD\n")
	has(t, b.saved("raw"), replace.Replace(toSubnet))
	for _, chain := range []string{"ip filter FORWARD", "ip raw PREROUTING"} {
		for _, form := range []string{"payload load 4b @ network header + 12", "counter", "immediate reg 0 accept"} {
			has(t, b.sh("nft --debug=netlink list chain "+chain), form)
		}
	}

	b.sh("ip6tables-nft -P FORWARD DROP")
	b.sync(firewall.IPv6, all(odd6))
	equal(t, rulesOf(b.sh("ip6tables-nft-save -t filter"), "FORWARD"),
		strings.ReplaceAll(fromOverlay+toOverlay, "10.42.0.0/16", "fd42:8000::/19"))
}

// dockerRight fails the test unless a Sync leaves Docker's rules with accepts in their places, and
// only those.
func (b *bed) dockerRight(what string) {
	b.t.Helper()
	b.sync(firewall.IPv4, all(four))
	want := strings.Replace(docker, "-A FORWARD -j DOCKER-FORWARD\n",
		"-A FORWARD "+fromOverlay+"-A FORWARD "+toOverlay+"-A FORWARD -j DOCKER-FORWARD\n", 1)
	want = strings.Replace(want, "-A PREROUTING -d", "-A PREROUTING "+toSubnet+"-A PREROUTING -d", 1)
	if got := b.saved("filter") + b.saved("raw"); got != want {
		b.t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

// TestDocker: accepts stand behind the operator's own chain and before Docker's.
func TestDocker(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.run(docker, "iptables-nft-restore")
	news := b.watch()
	b.sync(firewall.IPv4, all(four))
	b.dockerRight("at first")
	b.quiet(news, "after Syncs only")
	for what, damage := range map[string]func(){
		"inserted above": func() { b.sh("iptables-nft -I FORWARD -p tcp -j DROP") },
		"docker inserts its jump anew": func() {
			b.sh("iptables-nft -D FORWARD -j DOCKER-USER")
			b.sh("iptables-nft -I FORWARD -j DOCKER-USER")
		},
		"docker moves its jump down": func() {
			b.sh("iptables-nft -D FORWARD -j DOCKER-USER")
			b.sync(firewall.IPv4, all(four))
			b.sh("iptables-nft -I FORWARD -j DOCKER-USER")
			b.sh("iptables-nft -D FORWARD -j DOCKER-FORWARD")
			b.sh("iptables-nft -I FORWARD 2 -j DOCKER-FORWARD")
		},
		"one is gone": func() { b.sh("iptables-nft -D FORWARD 2") },
		"one is twice": func() {
			b.run("", "iptables-nft", "-A", "FORWARD", "-s", "10.42.0.0/16", "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
		},
	} {
		damage()
		signal(t, news, what)
		if what == "inserted above" {
			b.sync(firewall.IPv4, all(four))
			equal(t, rulesOf(b.saved("filter"), "FORWARD"), fromOverlay+toOverlay+"-p tcp -j DROP\n-j DOCKER-USER\n-j DOCKER-FORWARD\n")
			b.sh("iptables-nft -D FORWARD -p tcp -j DROP")
		}
		b.dockerRight(what)
		select { // what the repair of the test itself has signalled
		case <-news:
		default:
		}
	}
}

// TestDockerLeft: foreign rules are not changed, and ours are removed when they are no longer
// wanted.
func TestDockerLeft(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.run(docker, "iptables-nft-restore")
	before := b.ruleset()
	b.sync(firewall.IPv4, all(four))
	// Other rules with our comment are foreign.
	b.run("", "iptables-nft", "-A", "DOCKER-USER", "-s", "10.42.0.0/16", "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
	b.run("", "iptables-nft", "-A", "FORWARD", "-s", "10.42.0.0/16", "-p", "tcp", "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
	b.settled(firewall.IPv4, all(four))
	b.sh("iptables-nft -F DOCKER-USER")
	b.sh("iptables-nft -D FORWARD 5")
	b.dockerRight("in the end")

	b.sync(firewall.IPv4, firewall.Rules(firewall.Options{Overlay: four, Masquerade: true}))
	if strings.Contains(b.sh("iptables-nft-save"), "flanneld") {
		t.Error("accepts are left though none are wanted")
	}
	b.sync(firewall.IPv4, nil)
	equal(t, b.ruleset(), before)
	b.run(docker, "iptables-nft-restore")
	b.dockerRight("restored without accepts")
	b.nft("delete table ip filter")
	b.settled(firewall.IPv4, all(four))
}

// TestPlain: tables of nft(8), for both families.
func TestPlain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.nft(plainTable)
	before := b.ruleset()
	b.sync(firewall.IPv4, all(four))
	b.sync(firewall.IPv6, all(six))
	b.settled(firewall.IPv4, all(four))
	golden.Equal(t, "testdata/plain.golden", b.ruleset())

	b.nft("insert rule inet firewalld filter_FORWARD ip saddr 10.42.1.0/24 drop")
	b.sync(firewall.IPv6, all(six))
	b.sync(firewall.IPv4, all(four))
	b.settled(firewall.IPv6, all(six))
	has(t, b.ruleset(), "ip6 daddr fd42::/48 counter accept comment \"flanneld\"\n\t\tip saddr 10.42.1.0/24 drop")

	b.nft("delete rule inet firewalld filter_FORWARD handle " + b.handle("inet firewalld filter_FORWARD", "10.42.1.0/24"))
	b.sync(firewall.IPv6, nil)
	b.settled(firewall.IPv4, all(four))
	if strings.Contains(b.ruleset(), "fd42") {
		t.Error("IPv6 accepts are left")
	}
	b.sync(firewall.IPv4, nil)
	equal(t, b.ruleset(), before)
}

// TestRulesHeldByIPTables: our table is not created, or is removed, and only chains outside of
// iptables get accepts.
func TestRulesHeldByIPTables(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	held := firewall.Ruleset{Owner: oneDaemon(), Chains: all(four), HeldIn: firewall.Compat}
	b.run(docker, "iptables-nft-restore")
	b.nft(plainTable)
	before := b.ruleset()
	b.sync(firewall.IPv4, all(four))
	b.apply(held)
	if got := b.ruleset(); strings.Contains(got, "flannel-ipv4") || strings.Contains(b.saved("filter")+b.saved("raw"), "flanneld") {
		t.Errorf("kept where iptables does it:\n%s", got)
	}
	has(t, b.sh("nft -s list chain inet firewalld filter_FORWARD"), "\t\tip saddr 10.42.0.0/16 counter accept comment \"flanneld\"\n"+
		"\t\tip daddr 10.42.0.0/16 counter accept comment \"flanneld\"\n\t\tct state ")
	if changes := b.apply(held); len(changes) > 0 {
		t.Errorf("not settled: %q", changes)
	}
	b.nft("flush chain inet firewalld filter_FORWARD")
	b.nft("add rule inet firewalld filter_FORWARD reject")
	if changes := b.apply(held); len(changes) != 1 {
		t.Errorf("after a reload: %q", changes)
	}
	b.nft("flush ruleset")
	b.run(docker, "iptables-nft-restore")
	b.nft(plainTable)
	b.apply(held)
	b.apply(firewall.Ruleset{Owner: oneDaemon(), HeldIn: firewall.Compat})
	equal(t, b.ruleset(), before)
}

package nftables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/netlink"
)

// TestWhichForeignChainsNeedAccepts decides by the rules that a chain has.
func TestWhichForeignChainsNeedAccepts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for name, c := range map[string]struct {
		chain string
		want  bool
	}{
		"empty":            {"type filter hook forward priority 0;", false},
		"accepts":          {"type filter hook forward priority 0; ip saddr 10.1.0.1 accept; counter", false},
		"policy":           {"type filter hook forward priority -200; policy drop;", true},
		"drops":            {"type filter hook forward priority 0; tcp dport 22 drop", true},
		"rejects":          {"type filter hook forward priority 0; tcp dport 22 reject", true},
		"goes":             {"type filter hook forward priority 0; tcp dport 22 goto other", true},
		"by map":           {"type filter hook forward priority 0; ct state vmap { invalid : drop }", true},
		"map of others":    {"type filter hook forward priority 0; meta mark set ip saddr map { 10.1.1.1 : 7 }", false},
		"set":              {"type filter hook forward priority 0; ip saddr { 10.1.1.1, 10.1.1.3 } accept", false},
		"mangles":          {"type filter hook forward priority mangle; jump other", false},
		"mangles, drops":   {"type filter hook forward priority mangle; tcp dport 22 drop", true},
		"no forwarding":    {"type filter hook input priority 0; policy drop;", false},
		"other type":       {"type nat hook postrouting priority 0; tcp dport 22 drop", false},
		"raw drops":        {"type filter hook prerouting priority raw; tcp dport 22 drop", true},
		"raw jumps":        {"type filter hook prerouting priority raw; jump other", false},
		"raw policy":       {"type filter hook prerouting priority raw; policy accept;", false},
		"other family":     {"type filter hook forward priority 0; meta nfproto ipv6 drop", false},
		"deferred":         {"type filter hook forward priority 0; jump DOCKER-USER", true},
		"to deferred only": {"type filter hook forward priority 0; tcp dport 22 jump DOCKER-USER; drop", true},
	} {
		for _, family := range []string{"ip", "inet", "ip6"} {
			if family != "inet" && strings.Contains(c.chain, "nfproto") {
				continue
			}
			if family == "ip6" {
				c.chain = strings.NewReplacer("ip saddr", "ip6 saddr", "10.1.", "fd10::", ".", ":").Replace(c.chain)
			}
			b.nft("flush ruleset\ntable " + family + " t {\nchain other { }\nchain DOCKER-USER { }\nchain c { " + c.chain + "\n}\n}\n")
			before := b.sh("nft -s list table " + family + " t")
			b.sync(firewall.IPv4, forward(four))
			after := b.sh("nft -s list table " + family + " t")
			if want := c.want && family != "ip6"; want != (before != after) {
				t.Errorf("%s, %s: accepts are wanted: %v; got\n%s", name, family, want, after)
			}
			b.sync(firewall.IPv4, nil)
			equal(t, b.ruleset(), before)
		}
	}
	b.nft("flush ruleset\ntable ip t { flags dormant; chain c { type filter hook forward priority 0; policy drop; }\n}\n")
	b.sync(firewall.IPv4, forward(four))
	if strings.Contains(b.sh("nft list table ip t"), "flanneld") {
		t.Error("accepts in a table that sleeps")
	}
}

// TestPlaces of accepts in a chain.
func TestPlaces(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const accepts = "ip saddr 10.42.0.0/16 counter accept comment \"flanneld\"\n" +
		"ip daddr 10.42.0.0/16 counter accept comment \"flanneld\"\n"
	for name, c := range map[string]struct{ before, after string }{
		"operator's":       {"jump DOCKER-USER\n", "drop\n"},
		"policy engine's":  {"counter jump cali-FORWARD comment \"cali:x\"\njump DOCKER-USER\n", "jump other\ndrop\n"},
		"behind a drop":    {"", "tcp dport 22 drop\njump DOCKER-USER\n"},
		"jump with an if":  {"", "tcp dport 22 jump DOCKER-USER\ndrop\n"},
		"goto":             {"", "goto DOCKER-USER\n"},
		"behind a counter": {"", "counter\njump DOCKER-USER\n"},
	} {
		b.nft("flush ruleset\ntable ip t {\nchain other { }\nchain DOCKER-USER { }\nchain cali-FORWARD { }\n" +
			"chain c {\ntype filter hook forward priority 0\n" + c.before + c.after + "}\n}\n")
		b.sync(firewall.IPv4, forward(four))
		got := strings.NewReplacer("\t", "", " packets 0 bytes 0", "").Replace(b.sh("nft -s list chain ip t c"))
		if !strings.Contains(got, "policy accept;\n"+c.before+accepts+c.after) {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
}

// TestBigTables: of foreign rules only those of base chains are read, however many there are.
func TestBigTables(t *testing.T) {
	// Not parallel: it counts allocations.
	b := newBed(t)
	var lines strings.Builder
	lines.WriteString("table ip big {\nchain lots {\n")
	for i := range 10000 {
		fmt.Fprintf(&lines, "ip saddr 10.1.%d.%d drop\n", i/256, i%256)
	}
	lines.WriteString("}\nchain f {\ntype filter hook forward priority 0\njump lots\n}\n}\n")
	b.nft(lines.String())
	b.sync(firewall.IPv4, all(four))
	allocations := testing.AllocsPerRun(1, func() { b.sync(firewall.IPv4, all(four)) })
	if allocations > 10000 { // fewer than one for each of the rules
		t.Errorf("a Sync makes %v allocations", allocations)
	}
	has(t, b.sh("nft -s list chain ip big f"), "comment \"flanneld\"\n\t\tjump lots")
}

// TestOwnedTableIsNotChanged: a table with an owner cannot be changed. That is reported, and
// everything else is done.
func TestOwnedTableIsNotChanged(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	owner := b.open()
	n := chainName{unix.NFPROTO_INET, "theirs", "c"}
	body := netlink.Attrs{}.Text(unix.NFTA_TABLE_NAME, n.table).Uint32BE(unix.NFTA_TABLE_FLAGS, owned)
	c := n.create(place{"filter", unix.NF_INET_FORWARD, 0})
	c.body = c.body.Uint32BE(unix.NFTA_CHAIN_POLICY, nfDrop)
	if err := owner.write([]message{{unix.NFT_MSG_NEWTABLE, create, n.family, body}, c}); err != nil {
		t.Skipf("SKIPPED: the kernel has no tables with owners: %v", err)
	}
	want := firewall.Ruleset{Owner: oneDaemon(), Chains: all(four)}
	changes, err := b.tables.Sync(context.Background(), want)
	if !errors.Is(err, firewall.ErrOwnerLocked) || !strings.Contains(err.Error(), "inet theirs c") {
		t.Errorf("got %v", err)
	}
	if len(changes) == 0 {
		t.Error("nothing else was done")
	}
	has(t, b.sh("nft list table ip flannel-ipv4"), "10.42.0.0/16")
	if changes, err = b.tables.Sync(context.Background(), want); !errors.Is(err, firewall.ErrOwnerLocked) || len(changes) > 0 {
		t.Errorf("second Sync: %v, %v", changes, err)
	}
	b.sync(firewall.IPv4, nil)
	owner.Close()
	// A process that another test is just starting may have the socket, too, for as long as it has
	// not become another program.
	wait.True(t, "the table ends with its owner", func() bool { return !strings.Contains(b.sh("nft list tables"), "theirs") })
	b.sync(firewall.IPv4, all(four))
}

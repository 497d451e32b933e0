package nftables

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/firewall"
)

// signal fails the test unless news come.
func signal(t testing.TB, news <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-news:
	case <-time.After(timeout):
		t.Errorf("no signal within %v: %s", timeout, what)
	}
}

// quiet fails the test if there are signals. The kernel's messages are sent when the system call
// that has caused them returns; a later change by another program marks the point up to which the
// Watch has read.
func (b *bed) quiet(news <-chan struct{}, what string) {
	b.t.Helper()
	select {
	case <-news:
		b.t.Errorf("a signal: %s", what)
	case <-time.After(50 * time.Millisecond):
	}
	b.nft("add table arp other")
	signal(b.t, news, "somebody else's change")
	b.nft("delete table arp other")
	signal(b.t, news, "somebody else's change")
}

// handle finds the handle of the rule that has all the words.
func (b *bed) handle(chain string, words string) string {
	b.t.Helper()
	for line := range strings.Lines(b.sh("nft -a list chain " + chain)) {
		if strings.Contains(line, words) {
			_, h, _ := strings.Cut(line, "# handle ")
			return strings.TrimSpace(h)
		}
	}
	b.t.Fatalf("no rule %q in %s", words, chain)
	return ""
}

// TestDamage: any change of our table by other programs is signalled, and repaired by the next
// Sync.
func TestDamage(t *testing.T) {
	const own = "ip flannel-ipv4"
	for name, damage := range map[string]func(b *bed){
		"flush ruleset":  func(b *bed) { b.nft("flush ruleset") },
		"flush chain":    func(b *bed) { b.nft("flush chain ip flannel-ipv4 postrtg") },
		"delete table":   func(b *bed) { b.nft("delete table ip flannel-ipv4") },
		"delete a chain": func(b *bed) { b.nft("flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 forward") },
		"delete a rule": func(b *bed) {
			b.nft("delete rule ip flannel-ipv4 forward handle " + b.handle(own+" forward", "daddr"))
		},
		"reorder": func(b *bed) {
			b.nft("delete rule ip flannel-ipv4 postrtg handle " + b.handle(own+" postrtg", "224.0.0.0") +
				"; insert rule ip flannel-ipv4 postrtg ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 counter masquerade fully-random comment \"flanneld masq\"")
		},
		"foreign rule":    func(b *bed) { b.nft("insert rule ip flannel-ipv4 forward tcp dport 22 drop") },
		"rule made wider": func(b *bed) { b.nft("add rule ip flannel-ipv4 postrtg counter masquerade comment \"flanneld masq\"") },
		"without comment": func(b *bed) { b.nft("add rule ip flannel-ipv4 forward ip saddr 10.42.0.0/16 counter accept") },
		"policy":          func(b *bed) { b.nft("add chain ip flannel-ipv4 forward { policy drop; }") },
		"foreign chain":   func(b *bed) { b.nft("add chain ip flannel-ipv4 x; add rule ip flannel-ipv4 forward jump x") },
		"foreign set":     func(b *bed) { b.nft("add set ip flannel-ipv4 s { type ipv4_addr; elements = { 10.1.1.1 }; }") },
		"asleep":          func(b *bed) { b.nft("add table ip flannel-ipv4 { flags dormant; }") },
		"chain elsewhere": func(b *bed) { b.rehook("type filter hook input priority 0") },
		"other priority":  func(b *bed) { b.rehook("type filter hook forward priority 5") },
		"other type":      func(b *bed) { b.rehook("type route hook output priority 0") },
		"no base chain":   func(b *bed) { b.nft("delete chain ip flannel-ipv4 forward; add chain ip flannel-ipv4 forward") },
		"base chain beside": func(b *bed) {
			b.nft("add chain ip flannel-ipv4 masqueradeTest { type nat hook postrouting priority srcnat; }")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.sync(firewall.IPv4, all(four))
			right := b.ruleset()
			news := b.watch()
			damage(b)
			signal(t, news, name)
			if b.ruleset() == right {
				t.Fatal("no damage was done")
			}
			if len(b.sync(firewall.IPv4, all(four))) == 0 {
				t.Error("Sync changed nothing")
			}
			equal(t, b.ruleset(), right)
		})
	}
}

func (b *bed) rehook(to string) {
	b.nft("delete chain ip flannel-ipv4 forward; add chain ip flannel-ipv4 forward { " + to + "; policy accept; }; " +
		"add rule ip flannel-ipv4 forward ip saddr 10.42.0.0/16 counter accept comment \"flanneld forward\"; " +
		"add rule ip flannel-ipv4 forward ip daddr 10.42.0.0/16 counter accept comment \"flanneld forward\"")
}

// TestOriginal starts with the tables of the original with EnableNFTables, on a host without and
// with a record of that network.
func TestOriginal(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, f := range []struct{ family, table, network, subnet, groups string }{
		{"ip", "flannel-ipv4", "10.50.0.0/16", "10.50.9.0/24", "224.0.0.0/4"},
		{"ip6", "flannel-ipv6", "fd50::/48", "fd50:0:0:9::/64", "ff00::/8"},
	} {
		b.nft(strings.NewReplacer("FAMILY", f.family, "TABLE", f.table, "NET", f.network, "SUB", f.subnet, "GROUPS", f.groups).Replace(`
table FAMILY TABLE {
	comment "rules for TABLE"
	chain masqueradeTest {
		type nat hook postrouting priority srcnat;
		FAMILY saddr NET FAMILY daddr != GROUPS masquerade fully-random
	}
	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter;
		FAMILY saddr NET accept comment "flanneld forward"
		FAMILY daddr NET accept
	}
	chain postrtg {
		comment "chain to manage traffic masquerading"
		type nat hook postrouting priority srcnat;
		meta mark 0x4000 return
		FAMILY saddr SUB FAMILY daddr NET return
		FAMILY saddr NET FAMILY daddr SUB return
		FAMILY saddr != SUB FAMILY daddr NET return
		FAMILY saddr NET FAMILY daddr != GROUPS masquerade fully-random
		FAMILY saddr != NET FAMILY daddr NET masquerade
	}
}
`))
	}
	was := firewall.Owner{Network: four.Network, Overlays: []firewall.Overlay{
		{Network: netip.MustParsePrefix("10.50.0.0/16")}, {Network: netip.MustParsePrefix("fd50::/48")},
	}}
	b.syncFor(daemonOf(four), firewall.IPv4, all(four)) // without the record: the other network may live
	if n := strings.Count(b.ruleset(), "10.50.0.0/16"); n != 8 {
		t.Errorf("of the original's 7 rules there are\n%s", b.ruleset())
	}
	b.syncFor(was, firewall.IPv4, all(four))
	golden := newBed(t)
	golden.sync(firewall.IPv4, all(four))
	equal(t, b.sh("nft -s list table ip flannel-ipv4"), golden.ruleset())
	has(t, b.ruleset(), "fd50:0:0:9::/64")
	b.syncFor(was, firewall.IPv6, nil)
	equal(t, b.ruleset(), golden.ruleset())
}

// TestWatchOverflow: a Watch that cannot keep up signals a change.
func TestWatchOverflow(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, err := b.tables.subscribe(1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 20 {
		b.sync(firewall.IPv4, [][]firewall.Chain{all(four), nil}[i%2])
	}
	ctx, stop := context.WithTimeout(context.Background(), timeout)
	defer stop()
	signals := 0
	// The Syncs themselves are no news; that some of them were lost is.
	b.tables.follow(ctx, c, func() { signals++; stop() })
	if signals == 0 {
		t.Error("no signal")
	}
}

// TestReplacements: however often the rules are replaced, every listing of a chain contains either
// the old or the new ones.
func TestReplacements(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	wishes := [][]firewall.Chain{all(four), all(odd)}
	b.sync(firewall.IPv4, wishes[0])
	lister := &b.open().conn // has a socket of its own
	var done atomic.Bool
	seen := make(chan [2]int) // how often either was listed
	go func() {
		var counts [2]int
		for !done.Load() {
			w, err := lister.list(IPv4)
			if errors.Is(err, errChanged) {
				continue
			}
			which := slices.IndexFunc(wishes, func(want []firewall.Chain) bool {
				return len(newPlan(firewall.Ruleset{Owner: oneDaemon(), Chains: want}, w).changes) == 0
			})
			if err != nil || which < 0 {
				t.Errorf("listed %+v of %+v, %v", w.chains, w.table, err)
				break
			}
			counts[which]++
		}
		seen <- counts
	}()
	for i := range 300 {
		if n := len(b.sync(firewall.IPv4, wishes[(i+1)%2])); n != 2 {
			t.Errorf("replacement %d changed %d things", i, n)
		}
	}
	done.Store(true)
	if n := <-seen; n[0] == 0 || n[1] == 0 {
		t.Errorf("the lister saw only %v", n)
	}
}

// TestOutdated: a transaction for rules that are no longer is refused.
func TestOutdated(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.sync(firewall.IPv4, all(four))
	w, err := b.tables.conn.list(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlan(firewall.Ruleset{Owner: oneDaemon(), Chains: all(odd)}, w)
	b.nft("add table ip somebody")
	before := b.ruleset()
	if err := b.tables.conn.commit(w.generation, p.messages); !errors.Is(err, errChanged) {
		t.Errorf("got %v", err)
	}
	equal(t, b.ruleset(), before)
	b.settled(firewall.IPv4, all(four))
}

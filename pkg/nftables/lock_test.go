package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lab/golden"
	"flanneld/pkg/lab/wait"
)

var (
	vxlanLock = firewall.Lock{Network: four.Network, Port: 8472, Local: netip.MustParseAddr("192.0.2.7"), VNI: 70000}
	udpLock   = firewall.Lock{Network: odd.Network, Port: 8285, Local: netip.MustParseAddr("192.0.2.7"), Bound: true}
)

func addresses4(n int) map[netip.Addr]struct{} {
	all := map[netip.Addr]struct{}{}
	for i := range n {
		all[netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})] = struct{}{}
	}
	return all
}

func (b *bed) lock(l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) []string {
	b.t.Helper()
	changes, err := b.tables.SyncLock(context.Background(), l, peers, prune)
	if err != nil {
		b.t.Fatal(err)
	}
	return changes
}

// lockSettled fails the test if a SyncLock still writes something.
func (b *bed) lockSettled(l firewall.Lock, peers map[netip.Addr]struct{}) {
	b.t.Helper()
	before := b.generation()
	if changes := b.lock(l, peers, true); len(changes) > 0 || b.generation() != before {
		b.t.Errorf("a second SyncLock changed: %q", changes)
	}
}

// lockRuleset returns the output of nft, once that is complete: while the kernel resizes a set that
// has grown, shortly after the write, a list omits some elements and has others twice.
func (b *bed) lockRuleset(peers map[netip.Addr]struct{}) (text string) {
	b.t.Helper()
	wait.For(b.t, timeout, "each peer is listed once", func() error {
		text = b.ruleset()
		listed := slices.DeleteFunc(strings.FieldsFunc(text, func(c rune) bool { return unicode.IsSpace(c) || c == ',' }), func(word string) bool {
			a, err := netip.ParseAddr(word)
			_, ok := peers[a]
			return err != nil || !ok
		})
		slices.Sort(listed)
		if all, distinct := len(listed), len(slices.Compact(listed)); all != len(peers) || distinct != len(peers) {
			return fmt.Errorf("%d elements are listed, %d of them distinct, of %d", all, distinct, len(peers))
		}
		return nil
	})
	return text
}

// TestLocks shows what nft(8) sees of the locks of two networks, and that each is by itself.
func TestLocks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	peers := addresses4(3)
	for _, l := range []firewall.Lock{vxlanLock, udpLock} {
		if changes := b.lock(l, peers, true); len(changes) != 2 {
			t.Errorf("changes: %q", changes)
		}
		b.lockSettled(l, peers)
	}
	golden.Equal(t, "testdata/locks.golden", b.ruleset())
	b.sync(firewall.IPv4, all(four))
	b.lockSettled(vxlanLock, peers)
	if locked, err := b.tables.Locked(udpLock.Network); !locked || err != nil {
		t.Errorf("locked: %v, %v", locked, err)
	}
	for _, removes := range []bool{true, false} {
		if removed, err := b.tables.Unlock(udpLock.Network); removed != removes || err != nil {
			t.Errorf("removed: %v, %v", removed, err)
		}
	}
	b.lockSettled(vxlanLock, peers)
	// Another port, as after a change of the network config, is another rule.
	other := vxlanLock
	other.Port = 4789
	b.lock(other, peers, true)
	has(t, b.ruleset(), "udp dport 4789")
	b.lockSettled(other, peers)
}

// TestLockDamage: whatever others do to a lock, the next SyncLock repairs it.
func TestLockDamage(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	peers := addresses4(3000)
	const table = "ip flannel-lock-10.42.0.0/16"
	b.lock(vxlanLock, peers, true)
	want := b.lockRuleset(peers)
	news := b.watch()
	for _, damage := range []string{
		"delete table " + table,
		"flush table " + table,
		"flush chain " + table + " input",
		"flush set " + table + " peers",
		"delete element " + table + " peers { 198.18.0.1 }",
		"add element " + table + " peers { 203.0.113.9, 203.0.113.10 }",
		"insert rule " + table + " input accept",
		"add rule " + table + " input counter",
		"flush chain " + table + " translated",
		"delete chain " + table + " translated",
		"flush chain " + table + " translated; add rule " + table + " translated udp dport 8472 @th,96,24 70000 ip daddr @peers ip saddr != @peers ct status snat ct original ip saddr != 192.0.2.8 counter drop",
		"add chain " + table + " more",
		"add set " + table + " more { type ipv4_addr; }",
		"add table " + table + " { flags dormant; }",
		"add chain " + table + " input { policy drop; }",
		"delete chain " + table + " input; add chain " + table + " input { type filter hook input priority 0; }",
		"flush chain " + table + " input; add rule " + table + " input udp dport 8472 @th,96,24 70001 ip saddr != @peers counter drop",
		"flush chain " + table + " input; add rule " + table + " input udp dport 8472 @th,96,24 70000 ip saddr @peers counter drop",
		"flush chain " + table + " input; add rule " + table + " input udp dport 8472 @th,96,24 70000 ip saddr != @peers counter accept",
		"delete table " + table + "; add table " + table + "; add set " + table + " peers { type ipv4_addr; flags interval; }",
	} {
		b.nft(strings.ReplaceAll(damage, "; add ", "\nadd "))
		if b.ruleset() == want {
			t.Errorf("%s: no damage", damage)
		}
		signal(t, news, damage)
		b.lock(vxlanLock, peers, true)
		if got := b.lockRuleset(peers); got != want {
			t.Errorf("%s: there is\n%.2000s", damage, got)
		}
		b.lockSettled(vxlanLock, peers)
	}
	b.quiet(news, "our own writing")
	// Before the view of the network is complete, no address is removed.
	b.nft("add element " + table + " peers { 203.0.113.9 }")
	if changes := b.lock(vxlanLock, peers, false); len(changes) > 0 {
		t.Errorf("changes: %q", changes)
	}
	has(t, b.ruleset(), "203.0.113.9")
}

// TestLockFollowsPeers: one that joins or leaves costs as little among thousands.
func TestLockFollowsPeers(t *testing.T) {
	// Not parallel: it compares times.
	b := newBed(t)
	peers := addresses4(20000)
	began := time.Now()
	b.lock(vxlanLock, peers, true)
	made := time.Since(began)
	newcomer, gone := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.18.0.1")
	began = time.Now()
	b.lockSettled(vxlanLock, peers)
	looked := time.Since(began)
	began = time.Now()
	const edits = 20
	for range edits {
		err := errors.Join(b.tables.EditLock(vxlanLock.Network, []netip.Addr{newcomer}, []netip.Addr{gone}),
			b.tables.EditLock(vxlanLock.Network, []netip.Addr{newcomer, gone}, []netip.Addr{newcomer}))
		if err != nil {
			t.Fatal(err)
		}
	}
	edited := time.Since(began) / (2 * edits)
	t.Logf("20,000 peers: made in %v, looked at in %v, one more in %v", made, looked, edited)
	b.lockSettled(vxlanLock, peers)
	if edited > made/4 {
		t.Errorf("one peer takes %v of %v for all", edited, made)
	}
	b.nft("delete table ip flannel-lock-10.42.0.0/16")
	if err := b.tables.EditLock(vxlanLock.Network, []netip.Addr{newcomer}, nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a table: %v", err)
	}
}

// TestLocksAreNoBarriers: no accept is added to a lock, and it is not reported as closing the port.
func TestLocksAreNoBarriers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lock(vxlanLock, addresses4(3), true)
	b.sync(firewall.IPv4, firewall.Rules(firewall.Options{Overlay: four, Forward: true, Tunnel: firewall.Tunnel{Port: 8472}}))
	p := firewall.Packet{Dst: netip.MustParseAddr("192.0.2.7"), Protocol: unix.IPPROTO_UDP, SrcPort: 9, DstPort: 8472, ToHost: true}
	if found, err := b.tables.Barriers(context.Background(), p); len(found) > 0 || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	b.nft("add table ip more\nadd chain ip more in { type filter hook input priority 0; }\nadd rule ip more in udp dport 8472 drop")
	if found, err := b.tables.Barriers(context.Background(), p); len(found) != 1 || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	b.lockSettled(vxlanLock, addresses4(3))
}

// TestOthersOfOursMakeNoNews: writes by another socket of this process are not signalled. A watch
// ends with its context.
func TestOthersOfOursMakeNoNews(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	k := new(Keeper)
	defer k.Close()
	if news, err := k.Watch(ctx); news != nil || err != nil {
		t.Errorf("a watch of what is not open: %v, %v", news, err)
	}
	want := firewall.Ruleset{Owner: oneDaemon(), Chains: all(four)}
	var other *Tables
	var err error
	b.within(func() {
		if _, err = k.Sync(ctx, want); err == nil {
			other, err = k.OpenLock()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if names, err := k.Tables(firewall.IPv4); err != nil || !slices.Equal(names, []string{"flannel-ipv4"}) {
		t.Errorf("tables %q, %v", names, err)
	}
	news, err := k.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.SyncLock(ctx, vxlanLock, addresses4(3), true); err != nil {
		t.Fatal(err)
	}
	b.quiet(news, "the lock")
	stop()
	select {
	case _, open := <-news:
		if open {
			t.Error("a signal at the end")
		}
	case <-time.After(timeout):
		t.Error("the channel is not closed")
	}
}

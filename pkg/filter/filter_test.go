package filter

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netconf"
	"flanneld/pkg/pace"
)

// TestNothingBeforeTheNetworkIsKnown: there is no sync, and the end of the context is noticed.
func TestNothingBeforeTheNetworkIsKnown(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.begin(h.Run)
		h.after(time.Hour)
		if len(h.iptables.begun())+len(h.nft.begun()) > 0 {
			t.Error("looked at")
		}
	})
}

// TestRulesStayAtTheEnd: with any keeper.
func TestRulesStayAtTheEnd(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		ctx, cancel := context.WithCancel(t.Context())
		h.Set([]Input{{Overlay: four}})
		go h.Run(ctx)
		<-h.Tried()
		h.after(time.Second)
		h.set(func() { h.iptables.hangs = true })
		h.after(5 * time.Second)
		cancel()
		h.after(time.Minute)
		h.holds(firewall.Compat, "rules")
		h.holds(firewall.Native, "accepts")
	})
}

// TestDamageIsRepairedAtOnce: after a signal, and otherwise at the next sync.
func TestDamageIsRepairedAtOnce(t *testing.T) {
	for signalled, within := range map[bool]time.Duration{true: 500 * time.Millisecond, false: 5 * time.Second} {
		onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
			h.start()
			h.after(8 * time.Second)
			h.set(func() { clear(h.places) })
			if signalled {
				h.nft.watch <- struct{}{}
			}
			h.after(within)
			h.holds(firewall.Compat, "rules")
			h.holds(firewall.Native, "accepts")
			h.said(1, "repaired packet filter rules")
			if len(h.repairs) != 1 || !strings.HasPrefix(h.repairs[0], "packet filter: ") {
				t.Errorf("repaired %q", h.repairs)
			}
		})
	}
}

// TestNetworkMayChange: with another subnet or tunnel the rules change soon; rules of a previous
// network are removed once, unless they belong to another daemon by now. None starts meanwhile.
func TestNetworkMayChange(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var syncs []int // of the keeper, until the network was reserved, and until it was released
			var h *modelHost
			h = newHost(t, netconf.Unset, func(c *Config) {
				c.Previous = []firewall.Overlay{old, {}}
				c.Vacate = func(networks []netip.Prefix) (vacant []netip.Prefix, release func()) {
					if len(networks) != 1 || networks[0] != old.Network {
						t.Errorf("asked for %v", networks)
					}
					if taken {
						networks = nil
					}
					note := func() { syncs = append(syncs, len(h.iptables.begun())) }
					note()
					return networks, note
				}
			})
			h.start()
			h.set(func() {
				if !slices.Equal(syncs, []int{0, 1}) {
					t.Errorf("reserved and released after %v syncs", syncs)
				}
				if had := h.iptables.owners[0].Overlays; len(had) != map[bool]int{false: 2, true: 1}[taken] {
					t.Errorf("owned at first: %v", had)
				}
				if had := h.iptables.owners[1].Overlays; len(had) != 1 || had[0] != four {
					t.Errorf("owned then: %v", had)
				}
			})
			h.after(10 * time.Second)
			looks := len(h.iptables.begun())
			next := Input{Overlay: four, Probes: &Probes{}}
			h.Set([]Input{next}) // nothing of the rules
			h.after(time.Second)
			next.Tunnel = firewall.Tunnel{Port: 8472}
			h.Set([]Input{next})
			h.after(time.Second)
			next.Subnet = four.Network
			h.Set([]Input{next})
			h.after(time.Second)
			if n := len(h.iptables.begun()) - looks; n != 2 {
				t.Errorf("%d looks for two changes", n)
			}
			h.said(0, "repaired")
			if h.places[firewall.Compat][firewall.IPv4].Chains[1].Rules[0].Port != 8472 {
				t.Error("the rules are not about the tunnel")
			}
		})
	}
}

// TestFamiliesAreSyncedAlike: in the same syncs, each with its accepts in other places.
func TestFamiliesAreSyncedAlike(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.legacy.tables = []string{"filter"}
		h.Set([]Input{{Overlay: four}, {Overlay: six}})
		h.begin(h.Run)
		<-h.Tried()
		h.after(time.Second)
		for place, rulesets := range h.places {
			if len(rulesets) != 2 || rulesets[firewall.IPv6].Owner.Network != six.Network || rulesets[firewall.IPv6].HeldIn != rulesets[firewall.IPv4].HeldIn {
				t.Errorf("place %d: %v", place, rulesets)
			}
		}
		if len(h.places) != 3 {
			t.Errorf("rules in %d places", len(h.places))
		}
		h.set(func() { clear(h.places) })
		h.after(5 * time.Second)
		h.said(1, "repaired packet filter rules")
	})
}

// TestFightIsSlowedDown: a program that keeps undoing rules costs little and is logged once when it
// starts, and once when it stops.
func TestFightIsSlowedDown(t *testing.T) {
	for _, signalled := range []bool{true, false} {
		onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
			h.iptables.traits.Resync = time.Second
			h.start()
			undone := 0
			undo := func() {
				h.mu.Lock()
				defer h.mu.Unlock()
				if r := h.places[firewall.Compat]; len(r) > 0 {
					clear(r)
					undone++
				}
			}
			for range 1200 { // for two minutes
				undo()
				if signalled {
					pace.Wake(h.nft.watch)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if undone > 40 || undone < 20 {
				t.Errorf("repaired %d times", undone)
			}
			h.said(1, "level=ERROR", "another program keeps undoing packet filter rules, backing off", "changes=")
			h.wrong(fightCondition, true)
			h.after(3 * time.Minute)
			h.wrong(fightCondition, false)
			h.said(1, "no longer: another program")
			h.holds(firewall.Compat, "rules")
			undo()
			h.after(5 * time.Second)
			h.holds(firewall.Compat, "rules")
		})
	}
}

// TestSyncsTakeAShareOfTheTime: however fast others change rules that are not ours.
func TestSyncsTakeAShareOfTheTime(t *testing.T) {
	for _, took := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		onHost(t, netconf.Yes, func(t *testing.T, h *modelHost) {
			h.nft.took = took
			h.start()
			h.after(10 * time.Second)
			before := len(h.nft.begun())
			for end := time.Now().Add(time.Minute); time.Now().Before(end); {
				pace.Wake(h.nft.watch)
				time.Sleep(burst / 10)
			}
			looks := len(h.nft.begun()) - before
			if spent := time.Duration(looks) * took; spent > time.Minute/3 || looks > int(time.Minute/burst) {
				t.Errorf("looks that take %v: %d in a minute", took, looks)
			}
			if looks < 15 {
				t.Errorf("looks that take %v: only %d in a minute", took, looks)
			}
		})
	}
}

// TestListingsByProcessesKeepADistance: listings by iptables processes keep a minimum distance,
// however many changes are signalled.
func TestListingsByProcessesKeepADistance(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.start()
		h.after(10 * time.Second)
		h.set(func() { h.iptables.syncs = nil })
		for range 10_000 {
			pace.Wake(h.nft.watch)
			time.Sleep(time.Millisecond)
		}
		for _, d := range h.iptables.intervals() {
			if d < 500*time.Millisecond {
				t.Errorf("one %v after another", d)
			}
		}
	})
}

// TestWatchThatFails: it is a condition, the watch is restarted, and a sync follows because changes
// may have been missed.
func TestWatchThatFails(t *testing.T) {
	onHost(t, netconf.Yes, func(t *testing.T, h *modelHost) {
		h.nft.unseen = unix.EMFILE
		h.legacy.watch = nil // there is nothing to watch
		h.start()
		h.wrong(watchCondition+"nftables", true)
		h.wrong(watchCondition+"iptables", false)
		h.said(1, "cannot watch packet filter rules, checking them periodically", "keeper=nftables")
		h.after(time.Second)
		h.set(func() { h.nft.unseen = nil; clear(h.places) })
		h.after(firstRetry + burst)
		h.wrong(watchCondition+"nftables", false)
		h.holds(firewall.Native, "rules")
		// One that ends is begun again.
		h.set(func() { clear(h.places); close(h.nft.watch); h.nft.watch = make(chan struct{}) })
		h.after(firstRetry + 2*burst)
		h.holds(firewall.Native, "rules")
		h.set(func() { h.legacy.watch = make(chan struct{}) })
		h.after(idle)
		select {
		case h.legacy.watch <- struct{}{}:
		default:
			t.Error("a watch that there was none of is not looked for again")
		}
	})
}

// TestAcceptsInLegacyTables: where the kernel has them, and what prevents them is a condition if
// packets may be dropped.
func TestAcceptsInLegacyTables(t *testing.T) {
	for _, c := range []struct {
		tables  []string
		forward bool
		wrong   bool
	}{
		{[]string{"filter"}, true, true},
		{[]string{"nat"}, true, false},
		{[]string{"raw", "nat"}, true, true},
		{[]string{"filter"}, false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, netconf.Unset, func(cfg *Config) { cfg.Forward = c.forward })
			h.legacy.tables = c.tables
			h.legacy.err = fmt.Errorf("%w: iptables-legacy", notInstalled)
			h.start()
			h.wrong(legacyCondition, c.wrong)
			if c.wrong {
				h.said(1, "failed to add accept rules to it", `command="iptables-legacy -w -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -w -I FORWARD -d 10.42.0.0/16 -j ACCEPT"`)
			}
			h.set(func() { h.legacy.err = nil })
			h.after(31 * time.Second)
			h.wrong(legacyCondition, false)
			if c.forward {
				h.holds(firewall.Legacy, "accepts")
			}
			h.set(func() { h.legacy.err = unix.EIO; clear(h.places) })
			h.after(6 * time.Second)
			h.set(func() { h.legacy.tables = nil })
			h.after(31 * time.Second)
			h.wrong(legacyCondition, false)
			h.set(func() { h.legacy.unread = unix.EMFILE })
			h.after(31 * time.Second)
			h.wrong(unreadCondition, true)
			h.set(func() { h.legacy.unread = nil })
			h.after(31 * time.Second)
			h.wrong(unreadCondition, false)
			h.wrong(syncCondition, false)
		})
	}
}

// TestLegacyVariantIsLocked: its accepts follow as soon as the lock is free.
func TestLegacyVariantIsLocked(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.legacy.tables = []string{"filter"}
		held := true
		h.legacy.err = &firewall.LockedError{Lock: "iptables", Free: func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return !held
		}}
		h.start()
		h.wrong(legacyCondition, true)
		h.after(10 * time.Second)
		n := len(h.legacy.begun())
		h.after(time.Minute)
		if len(h.legacy.begun()) != n {
			t.Error("it is tried while the lock is held")
		}
		h.set(func() { h.legacy.err, held = nil, false })
		h.after(lockPoll)
		h.wrong(legacyCondition, false)
		h.holds(firewall.Legacy, "accepts")
	})
}

// TestNFTablesAcceptsFail: the rules of iptables are right, but the accepts in nftables fail.
func TestNFTablesAcceptsFail(t *testing.T) {
	for _, absent := range []bool{true, false} {
		onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
			h.nft.tables = []string{"nat"}
			h.iptables.traits.Place = firewall.Legacy
			h.nft.err, h.nft.unread = error(unix.EMFILE), unix.EMFILE
			if absent {
				h.nft.err, h.nft.unread = firewall.AbsentError("kernel without nftables"), firewall.AbsentError("kernel without nftables")
			}
			h.start()
			h.wrong(syncCondition, !absent)
			h.holds(firewall.Legacy, "rules")
			h.set(func() { h.nft.err, h.nft.unread = nil, nil })
			h.after(31 * time.Second)
			h.wrong(syncCondition, false)
			h.holds(firewall.Native, "accepts")
		})
	}
}

package filter

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netconf"
)

// TestPreferredKeeperHoldsTheRules: the other one has at most accepts beside them.
func TestPreferredKeeperHoldsTheRules(t *testing.T) {
	for _, c := range []struct {
		choice                 netconf.Choice
		iptables               firewall.Place // of the installed variant; Nowhere: there is none
		native, compat, legacy string
		says                   string
	}{
		{netconf.Unset, firewall.Compat, "accepts", "rules", "nothing", `keeper=iptables reason="it is installed, and EnableNFTables is not set" version="iptables v1.8.9 (nf_tables)"`},
		{netconf.Unset, firewall.Legacy, "accepts", "nothing", "rules", `keeper=iptables`},
		{netconf.Unset, firewall.Nowhere, "rules", "nothing", "nothing", `keeper=nftables reason="iptables is not installed`},
		{netconf.No, firewall.Compat, "accepts", "rules", "nothing", `reason="EnableNFTables is false"`},
		{netconf.Yes, firewall.Compat, "rules", "nothing", "nothing", `keeper=nftables reason="EnableNFTables is true"`},
		{netconf.Yes, firewall.Nowhere, "rules", "nothing", "nothing", `keeper=nftables`},
	} {
		onHost(t, c.choice, func(t *testing.T, h *modelHost) {
			if h.iptables.traits.Place = c.iptables; c.iptables == firewall.Nowhere {
				h.iptables.err = fmt.Errorf("%w: no file", notInstalled)
				h.iptables.traits = firewall.Traits{Name: "iptables"}
			}
			h.start()
			h.holds(firewall.Native, c.native)
			h.holds(firewall.Compat, c.compat)
			h.holds(firewall.Legacy, c.legacy)
			h.after(time.Hour)
			h.said(1, "selected packet filter", c.says)
			h.said(0, "level=WARN")
			h.said(1, "wrote packet filter rules")
			h.said(0, "repaired")
		})
	}
}

// TestFallbackUntilPreferredKeeperWorks: while the preferred keeper is busy, hangs or lacks a
// resource, the other one is used, with a condition; then the preferred one gets its rules again.
func TestFallbackUntilPreferredKeeperWorks(t *testing.T) {
	for name, fails := range map[string]func(*keeper){
		"descriptors": func(k *keeper) { k.err = fmt.Errorf("fork/exec: %w", unix.EMFILE) },
		"permission":  func(k *keeper) { k.err = unix.EPERM },
		"exit status": func(k *keeper) { k.err = fmt.Errorf("iptables-save: exit status 1") },
		"hangs":       func(k *keeper) { k.hangs = true },
	} {
		for _, choice := range []netconf.Choice{netconf.Unset, netconf.Yes} {
			t.Run(fmt.Sprint(name, choice), func(t *testing.T) {
				onHost(t, choice, func(t *testing.T, h *modelHost) {
					preferred, text := h.iptables, "iptables failed, using nftables for packet filter rules meanwhile"
					here, there := firewall.Compat, firewall.Native
					h.nft.tables = []string{"nat"}
					if choice == netconf.Yes {
						preferred, text = h.nft, "nftables failed, using iptables for packet filter rules meanwhile"
						here, there = there, here
					}
					fails(preferred)
					begun := time.Now()
					h.start()
					if took := time.Since(begun); took > 3*time.Second {
						t.Errorf("the first attempt took %v", took)
					}
					h.holds(here, "nothing")
					h.holds(there, "rules")
					h.said(1, "level=WARN", text)
					h.wrong(syncCondition, true)
					h.after(time.Minute)
					h.said(1, text)
					h.set(func() { preferred.err, preferred.hangs = nil, false })
					if name == "hangs" { // the attempt that hangs does not time out by itself
						h.set(func() { h.selection.attempt.cancel() })
					}
					h.after(31 * time.Second)
					h.wrong(syncCondition, false)
					h.said(1, "no longer: "+text)
					h.holds(here, "rules")
					if choice == netconf.Yes {
						h.holds(there, "nothing")
					} else {
						h.holds(there, "accepts")
					}
				})
			})
		}
	}
}

// TestNoKeeperWorks is a condition, and is tried ever more rarely.
func TestNoKeeperWorks(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.iptables.err, h.nft.err = unix.ENOMEM, unix.EPERM
		h.start()
		h.wrong(syncCondition, true)
		h.said(1, "failed to sync packet filter rules", "cannot allocate memory", "operation not permitted")
		h.after(10 * time.Minute)
		every := h.nft.intervals()
		if len(every) < 20 || len(every) > 40 || every[1] > 2*time.Second || every[len(every)-1] != lastRetry {
			t.Errorf("attempts after %v", every)
		}
		h.said(1, "failed to sync packet filter rules")
		h.set(func() { h.iptables.err, h.nft.err = nil, nil })
		h.after(31 * time.Second)
		h.wrong(syncCondition, false)
		h.holds(firewall.Compat, "rules")
	})
}

// TestSlowKeeperIsWaitedFor: a slow but successful keeper stays in use, and gets more time the next
// time.
func TestSlowKeeperIsWaitedFor(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.iptables.took = 2 * time.Second
		h.start()
		h.holds(firewall.Compat, "rules")
		h.set(func() { h.iptables.took = 7 * time.Second })
		h.after(time.Minute)
		h.said(0, "level=WARN")
		// A slower one continues while the fallback is used.
		h.set(func() { h.iptables.took = 20 * time.Second })
		h.after(20 * time.Second)
		h.wrong(syncCondition, true)
		h.holds(firewall.Native, "rules")
		h.after(10 * time.Second)
		h.wrong(syncCondition, false)
		h.holds(firewall.Native, "accepts")
	})
}

// TestLockIsWaitedFor: the rules go where they belong as soon as the lock is free.
func TestLockIsWaitedFor(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.iptables.traits.Place = firewall.Legacy
		h.legacy.tables = []string{"filter"}
		free := make(chan struct{})
		h.iptables.err = fmt.Errorf("%w: try later", &firewall.LockedError{Lock: "iptables", PID: 4711, Name: "sleep", Free: func() bool {
			select {
			case <-free:
				return true
			default:
				return false
			}
		}})
		h.start()
		h.holds(firewall.Native, "rules")
		h.holds(firewall.Legacy, "nothing") // what it had would stay
		h.said(1, "another program holds the lock of iptables: sleep (PID 4711)", `command="ps -fp 4711"`, "using nftables for packet filter rules meanwhile")
		// The legacy variant is the one that cannot write, and its policy may be DROP.
		h.wrong(legacyCondition, true)
		tried := len(h.iptables.begun())
		h.after(time.Minute)
		if n := len(h.iptables.begun()); n != tried {
			t.Errorf("%d attempts while the lock is held", n-tried)
		}
		h.set(func() { h.iptables.err = nil; close(free) })
		h.after(lockPoll + burst)
		h.holds(firewall.Legacy, "rules")
		h.holds(firewall.Native, "accepts")
		h.wrong(syncCondition, false)
		h.wrong(legacyCondition, false)
	})
}

// TestChoiceMayChange: the rules go to their new place first, and then from the old one.
func TestChoiceMayChange(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.nft.tables = []string{"filter", "nat"}
		h.start()
		if h.SetChoice(netconf.Unset) || !h.SetChoice(netconf.Yes) {
			t.Error("what is a change?")
		}
		h.after(time.Second)
		h.holds(firewall.Native, "rules")
		h.holds(firewall.Compat, "nothing")
		if emptied, put := h.compat.begun()[0], h.nft.begun()[1]; emptied.Before(put) {
			t.Error("the old rules went first")
		}
		h.said(1, `keeper=nftables reason="EnableNFTables is true"`)
		h.set(func() { h.iptables.hangs = true })
		h.SetChoice(netconf.No)
		h.after(time.Second)
		h.SetChoice(netconf.Yes) // while the attempt is going on
		h.after(5 * time.Second)
		h.holds(firewall.Native, "rules")
		h.wrong(syncCondition, false)
		h.said(0, "repaired")
	})
}

// TestOldPlaceThatCannotBeCleared is a condition, and is tried again.
func TestOldPlaceThatCannotBeCleared(t *testing.T) {
	onHost(t, netconf.Yes, func(t *testing.T, h *modelHost) {
		h.nft.tables = []string{"raw"}
		h.places[firewall.Compat] = map[firewall.Family]firewall.Ruleset{firewall.IPv4: {Chains: make([]firewall.Chain, 1)}}
		h.compat.err = unix.EMFILE
		h.start()
		h.wrong(removeCondition, true)
		h.said(1, "failed to remove earlier iptables rules, will retry", "too many open files")
		h.set(func() { h.compat.err = nil })
		h.after(31 * time.Second)
		h.wrong(removeCondition, false)
		h.holds(firewall.Compat, "nothing")
		n := len(h.compat.begun())
		h.after(time.Hour)
		if len(h.compat.begun()) != n {
			t.Error("it is cleared again and again")
		}
	})
}

// TestUpgradedToolIsAnotherKeeper: that is logged, and its first changes are no repair.
func TestUpgradedToolIsAnotherKeeper(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.nft.tables = []string{"nat"}
		h.start()
		h.set(func() {
			h.iptables.traits.Place, h.iptables.traits.Version = firewall.Legacy, "iptables v1.8.9 (legacy)"
		})
		h.after(10 * time.Second)
		h.said(1, "keeper=iptables", "(legacy)")
		h.holds(firewall.Legacy, "rules")
		h.holds(firewall.Compat, "nothing")
		h.said(0, "level=WARN")
		// While it is being replaced, it is not known where the rules are: nothing is done beside.
		h.set(func() { h.iptables.traits = firewall.Traits{Name: "iptables"} })
		h.after(10 * time.Second)
		h.holds(firewall.Native, "accepts")
		h.said(2, "keeper=iptables")
	})
}

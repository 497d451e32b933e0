package filter

import (
	"maps"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netconf"
)

// expect checks what came of the syncs since others: r, or that there was nothing to do.
func (s Stats) expect(t *testing.T, r Result, before Stats) {
	t.Helper()
	for _, each := range []Result{Unchanged, Written, Repaired, Failed} {
		if more := s.Syncs[each] - before.Syncs[each]; (more > 0) != (each == r) && each != Unchanged {
			t.Errorf("%d more syncs are %s, want some that are %s", more, each, r)
		}
	}
}

// TestStatsCountSyncs: by result, with the keeper in use.
func TestStatsCountSyncs(t *testing.T) {
	onHost(t, netconf.Unset, func(t *testing.T, h *modelHost) {
		h.start()
		first := h.Stats()
		if first.expect(t, Written, Stats{}); first.Keeper != "iptables" || first.Version != h.iptables.traits.Version {
			t.Errorf("the rules are kept by %s %s", first.Keeper, first.Version)
		}
		h.after(time.Minute)
		second := h.Stats()
		second.expect(t, Unchanged, first)
		h.set(func() { clear(h.places) })
		h.nft.watch <- struct{}{}
		h.after(500 * time.Millisecond)
		third := h.Stats()
		third.expect(t, Repaired, second)
		h.set(func() { h.iptables.err, h.nft.err = unix.EPERM, unix.EPERM })
		h.after(time.Minute)
		fourth := h.Stats()
		fourth.expect(t, Failed, third)
		h.set(func() { h.iptables.err, h.nft.err = unix.EPERM, nil })
		h.after(time.Minute)
		if s := h.Stats(); s.Keeper != "nftables" {
			t.Errorf("the rules are kept by %s", s.Keeper)
		}
		if maps.Equal(h.Stats().Syncs, fourth.Syncs) {
			t.Error("the stats are no copy")
		}
	})
}

// TestStatsCountLock: as those of other rules.
func TestStatsCountLock(t *testing.T) {
	onLockHost(t, true, func(t *testing.T, h *lockHost) {
		h.start(leaseOf("10.42.1.0/24", "192.0.2.1"))
		first := h.Stats()
		first.expect(t, Written, Stats{})
		time.Sleep(idle)
		second := h.Stats()
		second.expect(t, Unchanged, first)
		h.set(func() { clear(h.locks); h.watched <- struct{}{} })
		h.after(burst)
		third := h.Stats()
		third.expect(t, Repaired, second)
		h.set(func() { h.err = unix.EPERM })
		time.Sleep(2 * idle)
		h.Stats().expect(t, Failed, third)
	})
}

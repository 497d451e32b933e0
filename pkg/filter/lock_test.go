package filter

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

// lockHost is a model of a host that has locks.
type lockHost struct {
	bed
	*Lock
	absent  error         // why it cannot be opened
	err     error         // for changes by any program
	unseen  error         // why changes cannot be watched
	took    time.Duration // by a sync, constant
	watched chan struct{}
	locks   map[netip.Prefix]map[netip.Addr]struct{}
	edits   int
	syncs   int
	closed  bool
}

func (h *lockHost) SyncLock(_ context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) (changes []string, err error) {
	time.Sleep(h.took)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.syncs++
	if h.err != nil {
		return nil, h.err
	}
	have, there := h.locks[l.Network]
	if there && maps.Equal(have, peers) {
		return nil, nil
	}
	want := maps.Clone(peers)
	if !prune {
		maps.Copy(want, have)
	}
	h.locks[l.Network] = want
	return []string{fmt.Sprintf("%d peers", len(want))}, nil
}

func (h *lockHost) PlanLock(_ context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, _ bool) ([]firewall.Change, error) {
	return []firewall.Change{{Command: fmt.Sprintf("lock %s with %d peers", l.Network, len(peers))}}, nil
}

func (h *lockHost) PlanUnlock(network netip.Prefix) (changes []firewall.Change, err error) {
	if _, there := h.locks[network]; there {
		changes = []firewall.Change{{Command: fmt.Sprintf("unlock %s", network)}}
	}
	return changes, nil
}

func (h *lockHost) EditLock(network netip.Prefix, add, remove []netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	have, there := h.locks[network]
	if h.err != nil || !there {
		return fmt.Errorf("no lock: %w", unix.ENOENT)
	}
	h.edits++
	for _, a := range add {
		have[a] = struct{}{}
	}
	for _, a := range remove {
		delete(have, a)
	}
	return nil
}

func (h *lockHost) Unlock(network netip.Prefix) (removed bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, removed = h.locks[network]
	if h.err == nil {
		delete(h.locks, network)
	}
	return removed && h.err == nil, h.err
}

func (h *lockHost) Watch(ctx context.Context) (<-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unseen != nil {
		return nil, h.unseen
	}
	return h.watched, nil
}

func (h *lockHost) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	return nil
}

var spec = firewall.Lock{Network: four.Network, Port: 8472, Local: netip.MustParseAddr("192.0.2.7"), VNI: 1}

// onLockHost runs a test in a bubble with a host.
func onLockHost(t *testing.T, wanted bool, test func(*testing.T, *lockHost)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newLockHost(t, wanted)) })
}

func newLockHost(t *testing.T, wanted bool) *lockHost {
	h := &lockHost{bed: newBed(t), watched: make(chan struct{}, 1), locks: map[netip.Prefix]map[netip.Addr]struct{}{}}
	h.Lock = NewLock(LockConfig{
		Wanted: wanted, Network: four.Network, Previous: old.Network, Vacate: allVacant,
		Open: func() (Locker, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h, h.absent
		},
		Table: "ip lock", Repaired: h.repaired, Conditions: h.list, Log: logTo(h.log),
	})
	return h
}

// start runs the lock with some peers until the test ends.
func (h *lockHost) start(peers ...*lease.Lease) {
	h.SetView(lease.View{Peers: peers, Complete: true})
	h.SetTunnel(spec)
	h.begin(h.Run)
	<-h.Tried()
	synctest.Wait()
}

// has fails the test unless the lock contains these addresses, or does not exist.
func (h *lockHost) has(want string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	got := "no lock"
	if have, there := h.locks[four.Network]; there {
		got = fmt.Sprint(slices.SortedFunc(maps.Keys(have), netip.Addr.Compare))
	}
	if got != want {
		h.t.Errorf("the lock has %s, want %s", got, want)
	}
}

func leaseOf(subnet, publicIP string) *lease.Lease {
	return &lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix(subnet)), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(publicIP)}}
}

// TestNewPeersAreAdmitted before anything is sent to them; those that are gone are not, once the
// view is complete.
func TestNewPeersAreAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := leaseOf("10.42.1.0/24", "192.0.2.1"), leaseOf("10.42.2.0/24", "192.0.2.2"), leaseOf("10.42.3.0/24", "192.0.2.3")
		h := newLockHost(t, true)
		h.locks[old.Network] = map[netip.Addr]struct{}{}
		h.start(a)
		h.has("[192.0.2.1]")
		if len(h.locks) != 1 {
			t.Error("the lock of the former network is left")
		}
		h.SetView(lease.View{Peers: []*lease.Lease{a, b}, Complete: true})
		begun := time.Now()
		if h.Admit(); time.Since(begun) != 0 {
			t.Errorf("admitted after %v", time.Since(begun))
		}
		h.has("[192.0.2.1 192.0.2.2]")
		h.SetView(lease.View{Peers: []*lease.Lease{b, c}})
		synctest.Wait()
		h.has("[192.0.2.1 192.0.2.2 192.0.2.3]")
		h.SetView(lease.View{Peers: []*lease.Lease{b}, Complete: true})
		time.Sleep(time.Hour)
		h.has("[192.0.2.2]")
		if h.edits != 3 || strings.Contains(h.log.String(), "level=WARN") {
			t.Errorf("%d edits\n%s", h.edits, h.log)
		}
	})
}

// TestLockIsRepaired: when a change is signalled, and when a peer cannot be added.
func TestLockIsRepaired(t *testing.T) {
	onLockHost(t, true, func(t *testing.T, h *lockHost) {
		h.start(leaseOf("10.42.1.0/24", "192.0.2.1"))
		h.set(func() { clear(h.locks); h.watched <- struct{}{} })
		h.after(burst)
		h.has("[192.0.2.1]")
		h.set(func() { clear(h.locks) })
		h.SetView(lease.View{Peers: []*lease.Lease{leaseOf("10.42.2.0/24", "192.0.2.2")}, Complete: true})
		h.Admit()
		synctest.Wait()
		h.has("[192.0.2.2]")
		h.said(2, "repaired underlay lock")
		if len(h.repairs) != 2 || !strings.HasPrefix(h.repairs[0], "underlay lock: ") {
			t.Errorf("repaired %q", h.repairs)
		}
		h.set(func() { clear(h.locks) })
		moved := spec
		moved.Local = netip.MustParseAddr("192.0.2.17")
		h.SetTunnel(moved)
		synctest.Wait()
		h.has("[192.0.2.2]")
	})
}

// TestLockIsRepairedOnABusyHost: a sync that takes long does not delay the next repair by its
// multiple.
func TestLockIsRepairedOnABusyHost(t *testing.T) {
	onLockHost(t, true, func(t *testing.T, h *lockHost) {
		h.took = 300 * time.Millisecond
		h.start(leaseOf("10.42.1.0/24", "192.0.2.1"))
		for range 2 {
			h.set(func() { clear(h.locks); pace.Wake(h.watched) })
			h.after(lockSyncShare().Max + h.took)
			h.has("[192.0.2.1]")
		}
	})
}

// TestLockFightIsSlowedDown: it is logged once, and ends.
func TestLockFightIsSlowedDown(t *testing.T) {
	onLockHost(t, true, func(t *testing.T, h *lockHost) {
		h.start()
		for range 1200 { // for two minutes
			h.set(func() { clear(h.locks) })
			pace.Wake(h.watched)
			time.Sleep(100 * time.Millisecond)
		}
		looks := 0
		h.set(func() { looks = h.syncs })
		if looks > 40 || looks < 20 {
			t.Errorf("%d looks", looks)
		}
		h.wrong(lockFightCondition, true)
		time.Sleep(3 * time.Minute)
		h.wrong(lockFightCondition, false)
		h.has("[]")
		h.said(2, "keeps undoing the underlay lock, backing off")
	})
}

// TestLockThatCannotBeKept: it is a condition, and nothing waits for it.
func TestLockThatCannotBeKept(t *testing.T) {
	for name, fails := range map[string]func(*lockHost){
		"no nftables": func(h *lockHost) { h.absent = fmt.Errorf("kernel without nftables: %w", unix.EINVAL) },
		"refused":     func(h *lockHost) { h.err = unix.EPERM },
	} {
		t.Run(name, func(t *testing.T) {
			onLockHost(t, true, func(t *testing.T, h *lockHost) {
				fails(h)
				h.start()
				h.wrong(lockCondition, true)
				h.SetView(lease.View{Peers: []*lease.Lease{leaseOf("10.42.9.0/24", "192.0.2.9")}, Complete: true})
				begun := time.Now()
				if h.Admit(); time.Since(begun) > admitWithin {
					t.Errorf("waited %v for the lock", time.Since(begun))
				}
				if command := strings.Contains(h.log.String(), `command="modprobe nf_tables"`); command != (name == "no nftables") {
					t.Errorf("the log says:\n%s", h.log)
				}
				h.set(func() { h.absent, h.err, h.unseen = nil, nil, unix.EMFILE })
				time.Sleep(2 * time.Second)
				h.wrong(lockCondition, false)
				h.has("[192.0.2.9]")
				h.set(func() { h.unseen = nil })
				time.Sleep(idle)
				h.wrong(watchCondition+"lock", false)
				close(h.watched) // it is watched again
				h.set(func() { h.watched = make(chan struct{}) })
				time.Sleep(idle)
				h.wrong(watchCondition+"lock", false)
			})
		})
	}
}

// TestLockWithoutATunnel: an existing lock is removed.
func TestLockWithoutATunnel(t *testing.T) {
	onLockHost(t, true, func(t *testing.T, h *lockHost) {
		h.start()
		h.SetTunnel(firewall.Lock{Network: four.Network})
		synctest.Wait()
		h.has("no lock")
		h.wrong(lockCondition, true)
		away := spec
		away.Local = netip.Addr{} // the uplink is not known
		h.SetTunnel(away)
		time.Sleep(time.Minute)
		h.has("no lock")
		h.SetTunnel(spec)
		synctest.Wait()
		h.has("[]")
		h.wrong(lockCondition, false)
	})
}

// TestLockOfAnEarlierRunIsRemoved once nothing is in a hurry, where none is wanted.
func TestLockOfAnEarlierRunIsRemoved(t *testing.T) {
	for _, without := range []bool{false, true} {
		onLockHost(t, false, func(t *testing.T, h *lockHost) {
			h.locks[four.Network], h.locks[old.Network] = map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
			h.err = unix.ENOBUFS
			if without {
				h.absent = fmt.Errorf("kernel without nftables: %w", unix.EINVAL)
			}
			h.start()
			h.Admit() // waits for nothing
			time.Sleep(time.Minute)
			h.has("[]")
			h.Ready()
			h.wrong(lockCondition, !without)
			h.set(func() { h.err = nil })
			h.after(lastRetry)
			h.wrong(lockCondition, false)
			if said := h.log.Count("removed underlay lock of an earlier run") > 0; said == without || len(h.locks) > 0 == !without || h.closed == without {
				t.Errorf("left: %v, closed: %t\n%s", h.locks, h.closed, h.log)
			}
		})
	}
}

// TestLockEndsBeforeAnythingIsKnown: neither a view nor the tunnel.
func TestLockEndsBeforeAnythingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, viewed := range []bool{false, true} {
			h := newLockHost(t, true)
			if viewed {
				h.SetView(lease.View{})
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			h.Run(ctx)
			cancel()
			begun := time.Now()
			if h.Admit(); time.Since(begun) != admitWithin {
				t.Errorf("waited %v", time.Since(begun))
			}
			h.has("no lock")
		}
		h := newLockHost(t, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		h.Run(ctx)
	})
}

// TestLockCountsAddresses: an address is let in for as long as any lease has it.
func TestLockCountsAddresses(t *testing.T) {
	l := NewLock(LockConfig{})
	a, b, a2 := leaseOf("10.42.1.0/24", "192.0.2.1"), leaseOf("10.42.2.0/24", "192.0.2.2"), leaseOf("10.42.3.0/24", "192.0.2.1")
	for i, step := range []struct {
		peers       []*lease.Lease
		add, remove string
	}{
		{[]*lease.Lease{a, b}, "[192.0.2.1 192.0.2.2]", "[]"},
		{[]*lease.Lease{a, b, a2}, "[]", "[]"},
		{[]*lease.Lease{b, a2}, "[]", "[]"},
		{[]*lease.Lease{b, leaseOf("10.42.3.0/24", "192.0.2.3")}, "[192.0.2.3]", "[192.0.2.1]"},
		{[]*lease.Lease{leaseOf("10.42.2.0/24", "192.0.2.3"), leaseOf("10.42.3.0/24", "192.0.2.2")}, "[]", "[]"},
		{nil, "[]", "[192.0.2.2 192.0.2.3]"},
	} {
		add, remove := l.update(lease.View{Peers: step.peers})
		slices.SortFunc(add, netip.Addr.Compare)
		slices.SortFunc(remove, netip.Addr.Compare)
		if fmt.Sprint(add) != step.add || fmt.Sprint(remove) != step.remove {
			t.Errorf("step %d: added %v, removed %v", i, add, remove)
		}
	}
	if len(l.peers) > 0 {
		t.Errorf("left: %v", l.peers)
	}
}

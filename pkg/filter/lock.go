package filter

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

const (
	lockCondition      = "underlay-lock"
	lockFightCondition = "underlay-lock/fight"
	// admitWithin bounds what a new peer waits for the lock. Else the peer's first packets
	// may be dropped, until the lock has it.
	admitWithin = 100 * time.Millisecond
)

// lockLooks are looks at the lock while somebody keeps changing rules.
func lockLooks() pace.Share { return pace.Share{Share: 50, Least: burst} }

// Locker keeps locks by nftables.
type Locker interface {
	// SyncLock makes the lock of a network what it is to be. Unless it prunes, it leaves
	// addresses that are no peers'.
	SyncLock(ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) (changes []string, err error)
	// EditLock adds peers to a lock, and removes some, without a look at the rest. It fails
	// if the lock is damaged.
	EditLock(network netip.Prefix, add, remove []netip.Addr) error
	// Unlock removes the lock of a network, if there is one.
	Unlock(network netip.Prefix) (removed bool, err error)
	// Watch signals changes by others, until ctx ends.
	Watch(ctx context.Context) (<-chan struct{}, error)
	Close() error
}

// LockConfig configures a Lock.
type LockConfig struct {
	Wanted     bool
	Network    netip.Prefix
	Former     netip.Prefix // of the run before, if that was another one
	Open       func() (Locker, error)
	Taken      func(firewall.Overlay) bool // see Config
	Table      string                      // that shows the lock, for people
	Conditions *condition.List
	Log        *slog.Logger
}

// Lock drops what comes to the tunnel's port from anybody but hosts with a lease, if that
// is wanted, by nftables whoever keeps the other rules. If it is not, Lock removes what an earlier
// run has left of it. Make one with NewLock.
//
// It has a goroutine and a socket of its own. A change of the peers is written by itself;
// whatever somebody else changes leads to a look at all of it.
type Lock struct {
	cfg LockConfig

	spec  atomic.Pointer[lockSpec]
	views chan lease.View // the latest one
	asked chan chan struct{}
	soon  *pace.Alarm   // look at all of it
	known chan struct{} // closed: there is a spec
	tried chan struct{} // closed: after the first attempt
	ready chan struct{} // closed: nothing is in a hurry any more
	begin sync.Once     // closes known

	// What follows belongs to Run's goroutine.

	locker Locker     // nil until it could be opened
	view   lease.View // as it is in peers
	peers  map[netip.Addr]int
	whole  bool // the kernel held all of it at the last look, and what was written since
	kept   bool // it did once, so that changes are repairs
	fight  pace.Fight
	calm   time.Time // no look before, whatever is changed
}

// lockSpec is what is to be locked.
type lockSpec struct {
	lock   firewall.Lock
	tunnel bool // there is something to be locked
}

// NewLock returns a lock that does nothing before Run.
func NewLock(cfg LockConfig) *Lock {
	l := &Lock{
		cfg: cfg, views: make(chan lease.View, 1), asked: make(chan chan struct{}), soon: pace.NewAlarm(),
		known: make(chan struct{}), tried: make(chan struct{}), ready: make(chan struct{}),
		peers: map[netip.Addr]int{}, fight: newFight(),
	}
	if cfg.Former == cfg.Network {
		l.cfg.Former = netip.Prefix{}
	}
	return l
}

// SetView takes a new view of the network. It never blocks, and is one goroutine's to call.
func (l *Lock) SetView(v lease.View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- v
}

// SetTunnel says what is to be locked; tunnel is false if there is nothing. It never blocks.
func (l *Lock) SetTunnel(lock firewall.Lock, tunnel bool) {
	now := lockSpec{lock, tunnel}
	if before := l.spec.Swap(&now); before == nil || *before != now {
		l.soon.Within(0)
	}
	l.begin.Do(func() { close(l.known) })
}

// Ready says that the network is ready, so that what is not in a hurry may be done.
func (l *Lock) Ready() { close(l.ready) }

// Tried returns a channel that is closed after the first attempt to have the lock right.
func (l *Lock) Tried() <-chan struct{} { return l.tried }

// Admit returns when the peers of the view that SetView took last are let in, or after
// admitWithin.
func (l *Lock) Admit() {
	if !l.cfg.Wanted {
		return
	}
	timer := time.NewTimer(admitWithin)
	defer timer.Stop()
	done := make(chan struct{})
	select {
	case l.asked <- done:
	case <-timer.C:
		return
	}
	select {
	case <-done:
	case <-timer.C:
	}
}

// Run keeps the lock until ctx ends, from when a view and the tunnel are known.
func (l *Lock) Run(ctx context.Context) {
	defer func() {
		if l.locker != nil {
			l.locker.Close()
		}
	}()
	if !l.cfg.Wanted {
		close(l.tried)
		l.remove(ctx)
		return
	}
	select {
	case <-ctx.Done():
		return
	case v := <-l.views:
		l.take(v)
	}
	select {
	case <-ctx.Done():
		return
	case <-l.known:
	}
	signs := l.watch(ctx, nil)
	l.soon.Within(l.look(ctx))
	close(l.tried)
	l.follow(ctx, signs)
}

// follow has the lock follow whatever changes, until ctx ends.
func (l *Lock) follow(ctx context.Context, signs <-chan struct{}) {
	var cost time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-l.views:
			l.edit(v)
		case done := <-l.asked:
			select {
			case v := <-l.views:
				l.edit(v)
			default:
			}
			close(done)
		case _, open := <-signs:
			if !open {
				signs = nil
			}
			l.soon.Within(max(lockLooks().Rest(cost), time.Until(l.calm)))
		case <-l.soon.C:
			l.soon.Rang()
			signs = l.watch(ctx, signs)
			begun := time.Now()
			next := l.look(ctx)
			cost = time.Since(begun)
			l.soon.Within(next)
		}
	}
}

// watch watches for changes from now on, unless it does already.
func (l *Lock) watch(ctx context.Context, signs <-chan struct{}) <-chan struct{} {
	const id = watchCondition + "lock"
	if signs != nil || l.open() != nil { // look says why
		return signs
	}
	signs, err := l.locker.Watch(ctx)
	if err != nil {
		l.cfg.Conditions.Set(condition.Condition{ID: id, Text: "changes of the underlay lock by others are seen late, for they cannot be watched", Fields: []any{"err", err}})
		return nil
	}
	l.cfg.Conditions.End(id)
	return signs
}

// take notes who the peers are, and returns the addresses that came and went. Several leases
// may have one.
func (l *Lock) take(v lease.View) (add, remove []netip.Addr) {
	more := map[netip.Addr]int{}
	for was, is := range v.Since(l.view) {
		if is != nil {
			more[is.PublicIP]++
		}
		if was != nil {
			more[was.PublicIP]--
		}
	}
	for a, n := range more {
		before := l.peers[a]
		switch now := before + n; {
		case !a.Is4():
		case now == 0:
			delete(l.peers, a)
			if before > 0 {
				remove = append(remove, a)
			}
		default:
			l.peers[a] = now
			if before == 0 {
				add = append(add, a)
			}
		}
	}
	l.view = v
	return add, remove
}

// edit writes a change of the peers.
func (l *Lock) edit(v lease.View) {
	add, remove := l.take(v)
	if !v.Complete {
		remove = nil
	}
	if !l.whole || len(add)+len(remove) == 0 {
		return // a look is due anyway
	}
	if err := l.locker.EditLock(l.cfg.Network, add, remove); err != nil {
		l.whole = false
		l.soon.Within(0)
	}
}

// look makes all of it right, and returns the time until the next look.
func (l *Lock) look(ctx context.Context) time.Duration {
	spec := *l.spec.Load()
	if spec.tunnel && !spec.lock.Local.IsValid() {
		return firstRetry // the uplink is not known now, which others say
	}
	var changes []string
	err := l.open()
	switch {
	case err != nil:
	case spec.tunnel:
		want := make(map[netip.Addr]struct{}, len(l.peers))
		for a := range maps.Keys(l.peers) {
			want[a] = struct{}{}
		}
		changes, err = l.locker.SyncLock(ctx, spec.lock, want, l.view.Complete)
	default:
		_, err = l.locker.Unlock(l.cfg.Network)
	}
	if err == nil {
		err = l.removeFormer()
	}
	if ctx.Err() != nil {
		return idle
	}
	l.whole = err == nil && spec.tunnel
	if err != nil {
		l.cfg.Conditions.Set(lockFailure("the underlay lock cannot be kept: the tunnel takes what anybody sends to it", err))
		return firstRetry
	}
	if !spec.tunnel {
		l.cfg.Conditions.Set(condition.Condition{ID: lockCondition, Text: "the underlay lock has no effect: this backend has no tunnel that others send to"})
		return idle
	}
	l.cfg.Conditions.End(lockCondition)
	return l.report(spec.lock, changes)
}

// report says what was changed, and slows down where somebody keeps undoing it.
func (l *Lock) report(spec firewall.Lock, changes []string) time.Duration {
	repair := l.kept && len(changes) > 0
	if !l.kept {
		l.cfg.Log.Info("locked the underlay", "lock", spec, "peers", len(l.peers), "command", "nft list table "+l.cfg.Table)
	} else if repair {
		l.cfg.Log.Info("repaired the underlay lock", "changes", strings.Join(changes, "; "))
	}
	l.kept = true
	now := time.Now()
	if repair {
		if pause := l.fight.Repaired(now); pause > 0 {
			l.cfg.Conditions.Begin(condition.Condition{
				ID: lockFightCondition, Severe: true, Text: "something else on this host keeps undoing the underlay lock; slowing down",
				Fields: []any{"changed", changes},
			})
			l.calm = now.Add(pause)
			return pause
		}
	}
	if !l.fight.On(now) {
		l.cfg.Conditions.End(lockFightCondition)
	}
	return idle
}

// open opens the locker, unless it is open.
func (l *Lock) open() error {
	if l.locker != nil {
		return nil
	}
	locker, err := l.cfg.Open()
	if err == nil {
		l.locker = locker
	}
	return err
}

// remove removes what a run has left that had a lock. It is not in a hurry.
func (l *Lock) remove(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-l.ready:
	}
	for {
		err := l.open()
		if withoutNFTables(err) {
			return // nor is there a lock
		}
		removed := false
		if err == nil {
			removed, err = l.locker.Unlock(l.cfg.Network)
		}
		if err == nil {
			err = l.removeFormer()
		}
		if removed {
			l.cfg.Log.Info("removed the underlay lock of an earlier run")
		}
		if err == nil {
			l.cfg.Conditions.End(lockCondition)
			return
		}
		l.cfg.Conditions.Set(lockFailure("the underlay lock of an earlier run cannot be removed, if there is one: new peers are not let in", err))
		if pace.Sleep(ctx, lastRetry) != nil {
			return
		}
	}
}

// removeFormer removes the lock of the network that this host was in before, unless
// another daemon serves that now.
func (l *Lock) removeFormer() error {
	if l.cfg.Former.IsValid() && !l.cfg.Taken(firewall.Overlay{Network: l.cfg.Former}) {
		if _, err := l.locker.Unlock(l.cfg.Former); err != nil {
			return err
		}
	}
	l.cfg.Former = netip.Prefix{}
	return nil
}

func lockFailure(text string, err error) condition.Condition {
	c := condition.Condition{ID: lockCondition, Text: text, Fields: []any{"err", err}}
	if withoutNFTables(err) {
		c.Command = "modprobe nf_tables"
	}
	return c
}

// withoutNFTables reports whether an error says that the kernel has no nftables, or lacks a part
// of it.
func withoutNFTables(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

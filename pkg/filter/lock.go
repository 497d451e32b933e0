package filter

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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

// lockSyncShare are looks at the lock while somebody keeps changing rules.
func lockSyncShare() pace.Share { return pace.Share{Share: 50, Least: burst} }

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
	Previous   netip.Prefix // of the run before, if that was another one
	Open       func() (Locker, error)
	InUse      func(firewall.Overlay) bool // see Config
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

	spec      atomic.Pointer[lockSpec]
	views     chan lease.View // the latest one
	admits    chan chan struct{}
	syncAlarm *pace.Alarm   // look at all of it
	known     chan struct{} // closed: there is a spec
	tried     chan struct{} // closed: after the first attempt
	ready     chan struct{} // closed: nothing is in a hurry any more
	begin     sync.Once     // closes known
	stats     stats

	// What follows belongs to Run's goroutine.

	locker      Locker     // nil until it could be opened
	view        lease.View // as it is in peers
	peers       map[netip.Addr]int
	intact      bool // the kernel held all of it at the last look, and what was written since
	synced      bool // it did once, so that changes are repairs
	fight       pace.Fight
	pausedUntil time.Time // no look before, whatever is changed
}

// lockSpec is what is to be locked.
type lockSpec struct {
	lock   firewall.Lock
	tunnel bool // there is something to be locked
}

// NewLock returns a lock that does nothing before Run.
func NewLock(cfg LockConfig) *Lock {
	l := &Lock{
		cfg: cfg, views: make(chan lease.View, 1), admits: make(chan chan struct{}), syncAlarm: pace.NewAlarm(),
		known: make(chan struct{}), tried: make(chan struct{}), ready: make(chan struct{}),
		peers: map[netip.Addr]int{}, fight: newFight(),
	}
	if cfg.Previous == cfg.Network {
		l.cfg.Previous = netip.Prefix{}
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
	if before := l.spec.Swap(&now); before != nil && *before != now {
		l.syncAlarm.Within(0)
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
	case l.admits <- done:
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
		l.removeStale(ctx)
		return
	}
	select {
	case <-ctx.Done():
		return
	case v := <-l.views:
		l.update(v)
	}
	select {
	case <-ctx.Done():
		return
	case <-l.known:
	}
	signs := l.watch(ctx, nil)
	l.syncAlarm.Within(l.sync(ctx))
	close(l.tried)
	l.loop(ctx, signs)
}

// loop has the lock follow whatever changes, until ctx ends.
func (l *Lock) loop(ctx context.Context, signs <-chan struct{}) {
	var cost time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-l.views:
			l.editPeers(v)
		case done := <-l.admits:
			select {
			case v := <-l.views:
				l.editPeers(v)
			default:
			}
			close(done)
		case _, open := <-signs:
			if !open {
				signs = nil
			}
			l.syncAlarm.Within(max(lockSyncShare().Rest(cost), time.Until(l.pausedUntil)))
		case <-l.syncAlarm.C:
			l.syncAlarm.Rang()
			signs = l.watch(ctx, signs)
			begun := time.Now()
			next := l.sync(ctx)
			cost = time.Since(begun)
			l.syncAlarm.Within(next)
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
		l.cfg.Conditions.Set(condition.Condition{ID: id, Text: "cannot watch the underlay lock, checking it periodically", Fields: []any{"err", err}})
		return nil
	}
	l.cfg.Conditions.End(id)
	return signs
}

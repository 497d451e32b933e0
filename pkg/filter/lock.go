package filter

import (
	"context"
	"log/slog"
	"net/netip"
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
	// admitWithin limits the time that a new peer waits for the lock. After that, its first packets
	// may be dropped until the lock admits it.
	admitWithin = 100 * time.Millisecond
)

// lockSyncShare limits the share of time spent on syncing the lock while rules change constantly.
func lockSyncShare() pace.Share { return pace.Share{OneIn: 50, Min: burst, Max: time.Second} }

// Locker writes locks to nftables.
type Locker interface {
	// SyncLock makes the lock of a network match l and peers. Unless prune is set, it leaves other
	// addresses in the lock.
	SyncLock(ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) (changes []string, err error)
	// EditLock adds peers to a lock and removes others, without reading the lock. It fails if the
	// lock is damaged.
	EditLock(network netip.Prefix, add, remove []netip.Addr) error
	// Unlock removes the lock of a network, if there is one.
	Unlock(network netip.Prefix) (removed bool, err error)
	// PlanLock and PlanUnlock return what SyncLock and Unlock would change, and change nothing.
	PlanLock(ctx context.Context, l firewall.Lock, peers map[netip.Addr]struct{}, prune bool) ([]firewall.Change, error)
	PlanUnlock(network netip.Prefix) ([]firewall.Change, error)
	// Watch signals changes by other programs until ctx ends. The channel is nil with an error.
	Watch(ctx context.Context) (<-chan struct{}, error)
	Close() error
}

// LockConfig configures a Lock.
type LockConfig struct {
	Wanted     bool
	Network    netip.Prefix
	Previous   netip.Prefix // network of the previous run, if it was another one
	Open       func() (Locker, error)
	Vacate     Vacate
	Table      string // nftables' name of the table that holds the lock, for the log
	Repaired   OnRepair
	Conditions *condition.List
	Log        *slog.Logger
}

// Lock drops packets to the tunnel port from hosts without a lease, if wanted. It always uses
// nftables, regardless of the keeper of the other rules. If it is not wanted, Lock removes a lock
// that an earlier run left. Make one with NewLock.
//
// It has its own goroutine and socket. A change of peers is written without reading the lock; a
// change by another program leads to a full sync.
type Lock struct {
	cfg      LockConfig
	previous netip.Prefix // cfg.Previous of New

	spec      atomic.Pointer[firewall.Lock] // as of the last SetTunnel; nil before the first
	views     chan lease.View               // the latest one
	admits    chan chan struct{}
	syncAlarm *pace.Alarm   // rings when a full sync is due, the first time when spec is set
	tried     chan struct{} // closed after the first attempt
	ready     chan struct{} // closed when the daemon is ready
	stats     stats

	// The following fields belong to Run's goroutine.

	locker      Locker     // nil until it is opened
	view        lease.View // that peers was computed from
	peers       map[netip.Addr]int
	intact      bool // the lock was complete at the last sync, and all later edits succeeded
	synced      bool // the lock was complete once, so later changes are repairs
	fight       fight
	pausedUntil time.Time // no sync before this time
}

// NewLock returns a Lock that does nothing before Run.
func NewLock(cfg LockConfig) *Lock {
	return &Lock{
		cfg: cfg, previous: cfg.Previous, views: make(chan lease.View, 1), admits: make(chan chan struct{}), syncAlarm: pace.NewAlarm(),
		tried: make(chan struct{}), ready: make(chan struct{}), peers: map[netip.Addr]int{},
		fight: newFight(cfg.Conditions, lockFightCondition, "another program keeps undoing the underlay lock, backing off"),
	}
}

// SetView sets the view of the network. It never blocks, and is for one goroutine.
func (l *Lock) SetView(v lease.View) {
	pace.SendLatest(l.views, v)
}

// SetTunnel sets the wanted lock, after the first SetView. Its port is 0 if there is no tunnel. It
// never blocks.
func (l *Lock) SetTunnel(now firewall.Lock) {
	if before := l.spec.Swap(&now); before == nil || *before != now {
		l.syncAlarm.SetWithin(0)
	}
}

// Ready reports that the network is ready, so that a stale lock may be removed.
func (l *Lock) Ready() { close(l.ready) }

// Tried returns a channel that is closed after the first attempt to sync the lock.
func (l *Lock) Tried() <-chan struct{} { return l.tried }

// Admit returns when the lock admits the peers of the latest view, or after admitWithin.
func (l *Lock) Admit() {
	if !l.cfg.Wanted {
		return
	}
	late, done := time.After(admitWithin), make(chan struct{})
	select {
	case l.admits <- done:
	case <-late:
		return
	}
	select {
	case <-done:
	case <-late:
	}
}

// Run keeps the lock in sync until ctx ends, from the first SetTunnel on.
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
	var signals <-chan struct{}
	var admits <-chan chan struct{} // nil before the first sync
	var cost time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-l.views:
			l.editPeers(v)
		case done := <-admits:
			l.editPending()
			close(done)
		case _, open := <-signals:
			if !open {
				signals = nil
			}
			l.syncAlarm.SetWithin(max(lockSyncShare().Rest(cost), time.Until(l.pausedUntil)))
		case <-l.syncAlarm.C:
			l.syncAlarm.Received()
			l.editPending()
			signals = l.watch(ctx, signals)
			begun := time.Now()
			l.syncAlarm.SetWithin(l.sync(ctx))
			cost = time.Since(begun)
			if admits == nil { // the first sync, whose cost is that of no other
				admits, cost = l.admits, 0
				close(l.tried)
			}
		}
	}
}

// editPending writes the change of a view that was not received yet.
func (l *Lock) editPending() {
	select {
	case v := <-l.views:
		l.editPeers(v)
	default:
	}
}

// watch starts watching for changes, unless signals shows that it does already.
func (l *Lock) watch(ctx context.Context, signals <-chan struct{}) <-chan struct{} {
	const id = watchCondition + "lock"
	if signals != nil || l.open() != nil { // sync reports why
		return signals
	}
	signals, err := l.locker.Watch(ctx)
	l.cfg.Conditions.SetError(condition.Condition{ID: id, Severity: condition.Notice, Text: "cannot watch the underlay lock, checking it periodically"}, err)
	return signals
}

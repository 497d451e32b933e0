package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
)

const (
	lockCondition      = "underlay-lock"
	lockFightCondition = "underlay-lock/fight"
	// lockShare bounds what looks cost while somebody keeps changing rules: one part in so
	// many of a processor.
	lockShare = 50
	// admitWithin bounds what a new peer waits for the lock. Else the peer's first packets
	// may be dropped, until the lock has it.
	admitWithin = 100 * time.Millisecond
)

// lock drops what comes to the tunnel's port from anybody but hosts with a lease, if that
// is wanted, by a table of nftables whoever keeps the other rules; and removes that table if it
// is not.
//
// It has a goroutine and a socket of its own. A change of the peers is written by itself;
// whatever somebody else changes leads to a look at all of it.
type lock struct {
	wanted     bool
	network    netip.Prefix
	former     netip.Prefix                 // of the run before, if that was another one
	spec       func() (firewall.Lock, bool) // false: there is no tunnel
	open       func() (*nftables.Tables, error)
	conditions *condition.List
	log        *slog.Logger

	views chan lease.View // the latest one
	asked chan chan struct{}
	soon  *alarm        // look at all of it
	ready chan struct{} // closed: nothing is in a hurry any more
	port  atomic.Uint32 // of the socket in the kernel

	nft    *nftables.Tables // nil until it could be opened
	view   lease.View       // as it is in peers
	peers  map[netip.Addr]int
	whole  bool // the kernel held all of it at the last look, and what was written since
	kept   bool // it did once, so that changes are repairs
	fights *rate.Limiter
	calm   time.Time // no look before, whatever is changed
}

func newLock(d *daemon) *lock {
	l := &lock{
		wanted: d.options.Rules.Lock, network: d.net.Network, conditions: d.conditions, log: d.log,
		open: nftables.New, spec: d.lockSpec,
		views: make(chan lease.View, 1), asked: make(chan chan struct{}), soon: newAlarm(), ready: make(chan struct{}),
		peers: map[netip.Addr]int{}, fights: rate.NewLimiter(rate.Every(ruleFightPause), ruleFights),
	}
	if d.former.Network != l.network {
		l.former = d.former.Network
	}
	l.follow(*d.view.Load())
	return l
}

// lockSpec is what is to be locked, as things are.
func (d *daemon) lockSpec() (firewall.Lock, bool) {
	link, ok := d.tunnelLink(d.facts.last())
	return firewall.Lock{Network: d.net.Network, Port: uint16(link.Port), Local: link.Local, Bound: bindsPort(link), VNI: uint32(link.VNI)}, ok
}

// follow takes a new view. It never blocks, and is one goroutine's to call.
func (l *lock) follow(v lease.View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- v
}

// admit returns when the peers of the view that follow took last are let in, or after
// admitWithin.
func (l *lock) admit() {
	if !l.wanted {
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

// trigger asks for a look at all of it soon.
func (l *lock) trigger() { l.soon.within(ruleBurst) }

// ours reports whether the lock's socket has a port.
func (l *lock) ours(port uint32) bool { return port != 0 && port == l.port.Load() }

// run keeps the lock until ctx ends, and calls tried after the first attempt.
func (l *lock) run(ctx context.Context, tried func()) {
	defer func() {
		if l.nft != nil {
			l.nft.Close()
		}
	}()
	if !l.wanted {
		tried()
		l.remove(ctx)
		return
	}
	l.take(<-l.views)
	signs := l.watch(ctx, nil)
	l.soon.within(l.look(ctx))
	tried()
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
			l.soon.within(max(ruleBurst, lockShare*cost, time.Until(l.calm)))
		case <-l.soon.C:
			l.soon.rang()
			signs = l.watch(ctx, signs)
			begun := time.Now()
			next := l.look(ctx)
			cost = time.Since(begun)
			l.soon.within(next)
		}
	}
}

// watch is told of changes from now on, unless it is already.
func (l *lock) watch(ctx context.Context, signs <-chan struct{}) <-chan struct{} {
	const id = signsCondition + "lock"
	if signs != nil || l.dial() != nil { // look says why
		return signs
	}
	signs, err := l.nft.Watch(ctx)
	if err != nil {
		l.conditions.Set(condition.Condition{ID: id, Text: "changes of the underlay lock by others are seen late, for they cannot be watched", Fields: []any{"err", err}})
		return nil
	}
	l.conditions.End(id)
	return signs
}

// take notes who the peers are, and returns the addresses that came and went. Several leases
// may have one.
func (l *lock) take(v lease.View) (add, remove []netip.Addr) {
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
func (l *lock) edit(v lease.View) {
	add, remove := l.take(v)
	if !v.Complete {
		remove = nil
	}
	if !l.whole || len(add)+len(remove) == 0 {
		return // a look is due anyway
	}
	if err := l.nft.EditLock(l.network, add, remove); err != nil {
		l.whole = false
		l.soon.within(0)
	}
}

// look makes all of it right, and returns the time until the next look.
func (l *lock) look(ctx context.Context) time.Duration {
	spec, ok := l.spec()
	if ok && !spec.Local.IsValid() {
		return ruleRetry // the uplink is not known now, which others say
	}
	var changes []string
	err := l.dial()
	switch {
	case err != nil:
	case ok:
		want := make(map[netip.Addr]struct{}, len(l.peers))
		for a := range maps.Keys(l.peers) {
			want[a] = struct{}{}
		}
		changes, err = l.nft.SyncLock(ctx, spec, want, l.view.Complete)
	default:
		_, err = l.nft.Unlock(l.network)
	}
	if err == nil {
		err = l.removeFormer()
	}
	if ctx.Err() != nil {
		return ruleResync
	}
	l.whole = err == nil && ok
	if err != nil {
		l.conditions.Set(lockFailure("the underlay lock cannot be kept: the tunnel takes what anybody sends to it", err))
		return ruleRetry
	}
	if !ok {
		l.conditions.Set(condition.Condition{ID: lockCondition, Text: "the underlay lock has no effect: this backend has no tunnel that others send to"})
		return ruleResync
	}
	l.conditions.End(lockCondition)
	return l.report(spec, changes)
}

// report says what was changed, and slows down where somebody keeps undoing it.
func (l *lock) report(spec firewall.Lock, changes []string) time.Duration {
	repair := l.kept && len(changes) > 0
	if !l.kept {
		l.log.Info("locked the underlay", "lock", spec, "peers", len(l.peers), "command", "nft list table "+nftables.LockTable(l.network))
	} else if repair {
		l.log.Info("repaired the underlay lock", "changes", strings.Join(changes, "; "))
	}
	l.kept = true
	if !repair {
		return ruleResync
	}
	if pause := l.fights.Reserve().Delay(); pause > 0 {
		l.conditions.Set(condition.Condition{
			ID: lockFightCondition, Severe: true, Text: "something else on this host keeps undoing the underlay lock; slowing down",
			Fields: []any{"changed", changes},
		})
		l.calm = time.Now().Add(pause)
		return pause
	}
	l.conditions.End(lockFightCondition)
	return ruleResync
}

// dial opens the socket, unless it is open.
func (l *lock) dial() (err error) {
	if l.nft != nil {
		return nil
	}
	nft, err := l.open()
	if err != nil {
		return err
	}
	l.nft = nft
	l.port.Store(nft.Port())
	return nil
}

// remove removes what a run has left that had a lock. It is not in a hurry.
func (l *lock) remove(ctx context.Context) {
	wait := l.ready
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait:
		case <-l.soon.C:
			l.soon.rang()
		}
		wait = nil
		err := l.dial()
		if withoutNFTables(err) {
			return // nor is there a table
		}
		removed := false
		if err == nil {
			removed, err = l.nft.Unlock(l.network)
		}
		if err == nil {
			err = l.removeFormer()
		}
		if removed {
			l.log.Info("removed the underlay lock of an earlier run")
		}
		if err == nil {
			l.conditions.End(lockCondition)
			return
		}
		l.conditions.Set(lockFailure("the underlay lock of an earlier run cannot be removed, if there is one: new peers are not let in", err))
		l.soon.within(ruleRetryMost)
	}
}

// removeFormer removes the lock of the network that this host was in before, unless
// another daemon serves that now.
func (l *lock) removeFormer() error {
	if l.former.IsValid() && !taken(firewall.Overlay{Network: l.former}) {
		if _, err := l.nft.Unlock(l.former); err != nil {
			return err
		}
	}
	l.former = netip.Prefix{}
	return nil
}

func lockFailure(text string, err error) condition.Condition {
	c := condition.Condition{ID: lockCondition, Text: text, Fields: []any{"err", err}}
	if withoutNFTables(err) {
		c.Command = "modprobe nf_tables"
	}
	return c
}

// withoutNFTables reports whether an error says that the kernel has no nftables.
func withoutNFTables(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

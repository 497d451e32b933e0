package filter

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

// update sets the peers and returns the addresses that were added and removed. Several leases may
// have the same address.
func (l *Lock) update(v lease.View) (add, remove []netip.Addr) {
	more := map[netip.Addr]int{}
	for was, is := range v.ChangesSince(l.view) {
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

// editPeers writes a change of the peers to the lock.
func (l *Lock) editPeers(v lease.View) {
	add, remove := l.update(v)
	if !v.Complete {
		remove = nil
	}
	if !l.intact || len(add)+len(remove) == 0 {
		return // a full sync is due anyway
	}
	if err := l.locker.EditLock(l.cfg.Network, add, remove); err != nil {
		l.intact = false
		l.syncAlarm.SetWithin(0)
	}
}

// sync makes the whole lock match, and returns the time until the next sync.
func (l *Lock) sync(ctx context.Context) time.Duration {
	spec := *l.spec.Load()
	tunnel := spec.Port != 0
	if tunnel && !spec.Local.IsValid() {
		return firstRetry // the uplink is unknown, which is reported elsewhere
	}
	var changes []string
	err := l.open()
	switch {
	case err != nil:
	case tunnel:
		want := make(map[netip.Addr]struct{}, len(l.peers))
		for a := range l.peers {
			want[a] = struct{}{}
		}
		changes, err = l.locker.SyncLock(ctx, spec, want, l.view.Complete)
	default:
		_, err = l.locker.Unlock(l.cfg.Network)
	}
	if err == nil {
		err = l.removePrevious()
	}
	if ctx.Err() != nil {
		return idle
	}
	l.intact = err == nil && tunnel
	if err != nil {
		l.stats.count(firewall.Traits{}, nil, false, err)
		l.setFailure("failed to sync underlay lock, the tunnel accepts packets from any host", err)
		return firstRetry
	}
	if !tunnel {
		l.cfg.Conditions.Set(condition.Condition{ID: lockCondition, Severity: condition.Notice, Text: "underlay lock has no effect, the backend has no tunnel port"})
		return idle
	}
	l.cfg.Conditions.End(lockCondition)
	return l.report(spec, changes)
}

// report logs changes, and backs off while another program keeps undoing them. It returns the time
// until the next sync.
func (l *Lock) report(spec firewall.Lock, changes []string) time.Duration {
	repair := l.synced && len(changes) > 0
	l.stats.count(firewall.Traits{}, changes, repair, nil)
	if !l.synced {
		l.cfg.Log.Info("enabled underlay lock", "lock", spec, "peers", len(l.peers), "command", "nft list table "+l.cfg.Table)
	} else if repair {
		l.cfg.Log.Info("repaired underlay lock", "changes", strings.Join(changes, "; "))
		l.cfg.Repaired(countChanges("underlay lock", changes), changes[0])
	}
	l.synced = true
	pause := l.fight.synced(repair, changes)
	if pause == 0 {
		return idle
	}
	l.pausedUntil = time.Now().Add(pause)
	return pause
}

// open opens the locker if it is not open yet.
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

// removeStale removes the lock of an earlier run, once the daemon is ready.
func (l *Lock) removeStale(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-l.ready:
	}
	for {
		err := l.open()
		if withoutNFTables(err) {
			return // there can be no lock
		}
		removed := false
		if err == nil {
			removed, err = l.locker.Unlock(l.cfg.Network)
		}
		if err == nil {
			err = l.removePrevious()
		}
		if removed {
			l.cfg.Log.Info("removed underlay lock of an earlier run")
		}
		l.setFailure("failed to remove underlay lock of an earlier run, it may drop packets of new peers", err)
		if err == nil || pace.Sleep(ctx, lastRetry) != nil {
			return
		}
	}
}

// removePrevious removes the lock of the previous network, unless another daemon serves that now.
func (l *Lock) removePrevious() error {
	if p := l.cfg.Previous; p.IsValid() && p != l.cfg.Network {
		vacant, release := l.cfg.Vacate([]netip.Prefix{p})
		defer release()
		for _, p := range vacant {
			if _, err := l.locker.Unlock(p); err != nil {
				return err
			}
		}
	}
	l.cfg.Previous = netip.Prefix{}
	return nil
}

// setFailure sets or ends the condition that the lock is not as wanted.
func (l *Lock) setFailure(text string, err error) {
	c := condition.Condition{ID: lockCondition, Text: text}
	if withoutNFTables(err) {
		c.Command = "modprobe nf_tables"
	}
	l.cfg.Conditions.SetError(c, err)
}

// withoutNFTables reports whether an error means that the kernel lacks nftables or a part of it.
func withoutNFTables(err error) bool {
	return pace.IsAny(err, unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT)
}

package subnet

import (
	"context"
	"errors"
	"time"

	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

// The network is followed by one call at a time. The next one starts when the result of the last
// was handled, or by a timer.

const (
	// Bounds of the wait between attempts during an outage; see limitPauses for the longest ones.
	firstRetry, lastRetry = time.Second, 5 * time.Second
	// Each event or lease costs 1, plus watchCost or listCost per call: a request in etcd's v2 API,
	// or whatever a listing restarts, such as the stream of a v3 watch. The budget grows by
	// budgetRate per second, which takes a few per cent of a CPU, up to budgetBurst, which suffices
	// for thousands of hosts that join within seconds.
	watchCost, listCost, budgetRate, budgetBurst = 20, 200, 2000, 40_000
)

// follow runs a call that follows the network.
func (f *follower) follow(do func() (then func())) {
	f.limitPauses()
	f.callSince = time.Now()
	f.call(func() func() {
		then := do()
		return func() {
			f.callSince = time.Time{}
			then()
		}
	})
}

// watch starts one Watch after a wait.
func (f *follower) watch(ctx context.Context, wait time.Duration) {
	index := f.index
	f.follow(func() func() {
		_ = pace.Sleep(ctx, wait) // the Watch returns an error if ctx ends
		events, next, err := f.Registry.Watch(ctx, index)
		return func() { f.watchDone(ctx, events, next, err) }
	})
}

// watchDone handles the result of a Watch.
func (f *follower) watchDone(ctx context.Context, events []registry.Event, next uint64, err error) {
	if err == nil {
		f.stats.Answered = time.Now()
	}
	switch {
	case ctx.Err() != nil:
	case err == nil && len(events) == 0:
		// A registry that was wiped between two watches is silent too, so check the own lease. A
		// Watch that returns immediately needs pacing.
		f.index = next
		if wait := f.watchPace.Next(time.Now()); wait > 0 {
			f.retryTimer.Reset(wait)
		} else {
			f.reconnect(ctx)
		}
	case err == nil:
		f.stats.Event = f.stats.Answered
		for _, ev := range events {
			f.apply(ev)
		}
		wait := f.spend(watchCost + len(events))
		gotOn := next > f.index
		if gotOn {
			f.index, f.listed = next, false
		}
		switch {
		case f.relist:
			f.retryTimer.Reset(f.relistDelay())
		case gotOn:
			f.watchOrList(ctx, len(events), wait)
		default: // no progress: the events were already known
			f.watch(ctx, max(wait, f.watchPace.Next(time.Now())))
		}
	case errors.Is(err, registry.ErrHistoryLost):
		f.Log.Info("listing all leases again", "err", err)
		why := HistoryLost
		if errors.Is(err, registry.ErrRevisionRollback) {
			why, f.rolledBack = RolledBack, true
		}
		f.relistFor(why)
		f.retryTimer.Reset(f.relistDelay())
	default:
		f.retryLater(err)
	}
}

// watchOrList starts the next watch, after the wait required by the budget, when a watch has
// returned n events. If such waits have taken as long as a listing would, it lists all leases
// instead. A watch in etcd's v2 API returns one event, so in a burst of changes the host would fall
// behind until it loses the history. A watch that returns several events has
// gathered what came while it waited.
func (f *follower) watchOrList(ctx context.Context, n int, wait time.Duration) {
	if n == 1 && wait > 0 {
		f.budgetWait += wait
	} else {
		f.budgetWait = wait
	}
	if f.budgetWait <= time.Second*time.Duration(listCost+len(f.leases))/budgetRate {
		f.watch(ctx, wait)
		return
	}
	f.Log.Debug("listing all leases again, they change faster than they are watched", "leases", len(f.leases))
	f.relistFor(Behind)
	f.retryTimer.Reset(f.relistDelay())
}

// spend takes a cost from the budget and returns how long to wait until the next request.
func (f *follower) spend(cost int) time.Duration {
	return f.budget.ReserveN(time.Now(), min(cost, budgetBurst)).Delay()
}

// relistDelay returns the wait before a listing. It spreads the listings of hosts that lost their
// history by the same event, over a few seconds for ten thousand leases, and backs off if a listing
// makes no progress.
func (f *follower) relistDelay() time.Duration {
	f.budgetWait = 0
	spread := f.spend(listCost+len(f.leases)) + randomBetween(0, time.Millisecond+time.Duration(len(f.leases))*200*time.Microsecond)
	if !f.listed {
		return spread
	}
	now := time.Now()
	wait := f.listPace.Delay(now)
	wait = randomBetween(wait/2, wait+1)
	f.listPace.Turn(now.Add(wait))
	return wait + spread
}

// limitPauses sets the longest pauses between attempts to follow the network. After an outage,
// changes are learned that much later. In a network of n hosts, all of which wait for the same etcd,
// attempts cost it in proportion to n, and listings to n squared. So the pauses of a small network
// are at most about two seconds, and those of larger ones longer.
func (f *follower) limitPauses() {
	longest := 2*time.Second + time.Duration(len(f.leases))*10*time.Millisecond
	f.retryPace.Max = min(longest, lastRetry)
	f.watchPace.Max = min(longest, lastRetry)
	f.listPace.Max = min(longest, 2*lastRetry)
}

// reconnect continues watching. After an outage our own lease indicates whether the registry is
// still the same: if the lease has changed, all leases are listed again.
func (f *follower) reconnect(ctx context.Context) {
	if f.relist {
		f.list(ctx)
		return
	}
	own := f.own.Subnets
	f.follow(func() func() {
		ev, err := f.Registry.Get(ctx, own)
		return func() {
			switch {
			case ctx.Err() != nil:
			case err != nil:
				f.retryLater(err)
			case f.relist || ev.Invalid != nil || ev.Deleted || ev.Lease.Subnets != f.own.Subnets || ev.Lease.Revision != f.own.Revision:
				f.relistFor(OwnLease)
				f.list(ctx)
			default:
				f.resume(ctx)
			}
		}
	})
}

// list replaces all known leases by a listing and continues watching from there.
func (f *follower) list(ctx context.Context) {
	f.follow(func() func() {
		listing, err := f.Registry.List(ctx)
		return func() {
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				f.retryLater(err)
				return
			}
			f.relist, f.listed = false, true
			f.stats.Relists[f.relistCause]++
			f.load(listing)
			f.nextStep.forceCheck()
			f.nextStep.wiped = f.nextStep.wiped || f.away.active()
			f.resume(ctx)
		}
	})
}

// resume starts the next watch and schedules a step for the own lease.
func (f *follower) resume(ctx context.Context) {
	f.away.end()
	f.stats.Answered = time.Now()
	f.watch(ctx, 0)
	if f.stepSince.IsZero() {
		f.stepTimer.Reset(f.readDelay())
	}
}

// retryLater schedules a retry for a registry that does not answer.
func (f *follower) retryLater(err error) {
	f.away.begin(err)
	now := time.Now()
	f.retryPace.Turn(now)
	wait := f.retryPace.Delay(now)
	f.retryTimer.Reset(randomBetween(wait/2, wait))
}

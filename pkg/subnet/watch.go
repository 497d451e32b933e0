package subnet

import (
	"context"
	"errors"
	"time"

	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

// How the network is followed: by one call after the other, each of which begins when the result
// of the one before was taken, or by a timer.

const (
	// Bounds of the wait between attempts while the registry is away.
	firstRetry, lastRetry = time.Second, 5 * time.Second
	// What a watch or a listing brings costs one an event or lease, and watchCost or listCost
	// beside: a request of etcd's v2 API, or what begins anew with a listing, such as the
	// stream of a v3 watch. Each second there is budgetRate, a few per cent of a processor, and
	// budgetBurst at once, as thousands of hosts cost that join within seconds.
	watchCost, listCost, budgetRate, budgetBurst = 20, 200, 2000, 40_000
)

// follow makes a call that follows the network.
func (f *follower) follow(do func() (then func())) {
	f.callSince = time.Now()
	f.call(func() func() {
		then := do()
		return func() {
			f.callSince = time.Time{}
			then()
		}
	})
}

// watch begins one Watch after a wait.
func (f *follower) watch(ctx context.Context, wait time.Duration) {
	index := f.index
	f.follow(func() func() {
		_ = pace.Sleep(ctx, wait) // of its end the Watch tells
		events, next, err := f.Registry.Watch(ctx, index)
		return func() { f.watchDone(ctx, events, next, err) }
	})
}

// watchDone takes the result of a Watch.
func (f *follower) watchDone(ctx context.Context, events []registry.Event, next uint64, err error) {
	if err == nil {
		f.stats.Answered = time.Now()
	}
	switch {
	case ctx.Err() != nil:
	case err == nil && len(events) == 0:
		// A silence may be that of a store which was wiped while nobody listened. One that is
		// over at once is no silence.
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
		default: // what is there already
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

// watchOrList watches again, after the wait that the budget requires, when a watch has returned n
// events; or lists all leases, if such waits have taken as long as a listing would. A watch of
// etcd's v2 API returns one event: in a storm of changes the host would be further and further
// behind until it loses the history. A watch that returns more has caught up.
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

// spend takes a cost from the budget, and returns how long to wait until the next request.
func (f *follower) spend(cost int) time.Duration {
	return f.budget.ReserveN(time.Now(), min(cost, budgetBurst)).Delay()
}

// relistDelay spreads the listings of hosts that lost their history by the
// same event, a few seconds for ten thousand; and paces them if one does not help.
func (f *follower) relistDelay() time.Duration {
	f.budgetWait = 0
	spread := f.spend(listCost+len(f.leases)) + randomBetween(0, time.Millisecond+time.Duration(len(f.leases))*200*time.Microsecond)
	if !f.listed {
		return spread
	}
	if wait := f.listPace.Next(time.Now()); wait > 0 {
		spread += randomBetween(wait/2, wait)
	}
	return spread
}

// reconnect goes on watching. After an outage our own lease is the witness
// that this still is the registry we knew: if it is not as we left it, nothing
// else may be, and all is listed again.
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

// list takes a listing in place of everything known, and goes on watching from there.
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

// resume watches again, and has the own lease looked after.
func (f *follower) resume(ctx context.Context) {
	f.away.end()
	f.stats.Answered = time.Now()
	f.watch(ctx, 0)
	if f.stepSince.IsZero() {
		f.stepTimer.Reset(f.readDelay())
	}
}

// retryLater waits for a registry that does not answer.
func (f *follower) retryLater(err error) {
	if now := time.Now(); now.Sub(f.failedAt) > 2*lastRetry { // else it answers, and does not help
		f.retryWait = firstRetry
	}
	f.failedAt = time.Now()
	f.away.begin(err)
	f.retryTimer.Reset(randomBetween(f.retryWait/2, f.retryWait))
	f.retryWait = min(f.retryWait*2, lastRetry)
}

package subnet

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

const (
	// gather is how long the first change waits for others of the same moment,
	// such as the rest of what etcd has to tell.
	gather = time.Millisecond
	// settle is the least time between two Views: in a storm of changes, each of
	// which costs a copy of the list of peers, they are gathered for so long.
	settle = 25 * time.Millisecond
	// grace is how long a lease that was deleted stays in force: a host that is
	// there makes its own again in less, and one that leaves says so before (Release).
	grace = time.Second
	// Bounds of the wait between attempts while the registry is away.
	firstRetry, lastRetry = time.Second, 5 * time.Second
	// What a watch or a listing brings costs one an event or lease, and watchCost or listCost
	// beside: a request of etcd's v2 API, or what begins anew with a listing, such as the
	// stream of a v3 watch. Each second there is budgetRate, a few per cent of a processor, and
	// budgetBurst at once, as thousands of hosts cost that join within seconds.
	watchCost, listCost, budgetRate, budgetBurst = 20, 200, 2000, 40_000
	// The own lease may be looked at so often at once, and then once in looksEvery: others
	// write our key seldom, unless it is to harm.
	looksBurst, looksEvery = 16, 2 * time.Second
	// ghostTime is how long peers are believed in that a wiped registry does not
	// know: longer than any of them needs to notice.
	ghostTime = 2 * time.Minute
)

// Follow keeps the own lease and emits a View at the start and whenever a
// lease changed in something that matters; renewals don't. A change after a quiet
// time is told at once, more of them at intervals. It returns when ctx ends. own
// and listing are what Acquire returned.
//
// Fail-static: while the registry is away nothing is emitted. The own lease is
// renewed Margin before it expires; put back when it was deleted, expired or
// overwritten; and given up for a new subnet, in a View with another Own, only when its
// key was deleted and made anew with another host's public IP, which in etcd's v2 API
// every unconditional write does, or when this host took it up from a former state to
// which another host has set it back.
//
// emit is called from Follow's own goroutine and should not block.
func Follow(ctx context.Context, o Options, own lease.Lease, listing registry.Listing, emit func(lease.View)) {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{
		Options:  o,
		emit:     emit,
		own:      own,
		attrs:    own.Attrs,
		claim:    lease.Claim{Subnet: own.Subnet, Held: own.Attrs, Next: own.Attrs, Revision: own.Revision},
		wrote:    time.Now(),
		known:    true,
		leases:   map[netip.Prefix]*lease.Lease{},
		ghosts:   map[netip.Prefix]bool{},
		fading:   map[netip.Prefix]time.Time{},
		away:     outage{log: o.Log},
		watched:  make(chan watchResult, 1),
		budget:   rate.NewLimiter(budgetRate, budgetBurst),
		turns:    pace.Pace{First: 100 * time.Millisecond, Most: lastRetry},
		relists:  pace.Pace{First: firstRetry, Most: 2 * lastRetry},
		looks:    rate.NewLimiter(rate.Every(looksEvery), looksBurst),
		retry:    stopped(),
		tend:     stopped(),
		settle:   stopped(),
		fade:     stopped(),
		exorcise: stopped(),
		invalid:  condition.NewGroup(o.Log, slog.LevelWarn, "skipped invalid entries in the registry", "no longer skipped invalid entries in the registry"),
		gathered: stopped(),
	}
	defer f.watches.Wait()
	defer cancel()
	for _, was := range listing.Leases {
		if was.Subnet == own.Subnet {
			f.claim.Former = o.former(was, own.Attrs)
		}
	}
	f.load(listing)
	f.publish()
	f.say()
	f.report()
	f.schedule()
	f.watch(ctx, 0)
	f.run(ctx)
}

// follower is the state of Follow; all of it belongs to one goroutine. Only
// the blocking Watch runs in another.
type follower struct {
	Options
	emit func(lease.View)

	leases   map[netip.Prefix]*lease.Lease // the registry's, ours included; last good values, never changed in place
	ghosts   map[netip.Prefix]bool         // of these, the ones a wiped registry has forgotten
	fading   map[netip.Prefix]time.Time    // of these, the ones that were deleted, and until when they stay in force
	fades    []fading                      // the same in order of time; those that came back meanwhile too
	bad      badEntries
	invalid  *condition.Group // the same, by key, for the log
	gathered *time.Timer      // log the rest of them
	index    uint64           // watch from here
	relist   bool             // the index is worth nothing
	turned   bool             // the registry was wiped or restored since all was listed last

	own     lease.Lease
	attrs   lease.Attrs   // that own is to have
	claim   lease.Claim   // what our key may say, for all that we wrote
	known   bool          // own is what the registry holds, as far as we heard
	other   bool          // the registry was wiped or restored since own was written: its revisions say nothing of own
	wrote   time.Time     // when own was last written or found
	fights  fight         // with somebody who changes our key
	doubled time.Time     // when it was last reported that somebody writes it as his own
	tries   int           // conflicts in a row
	moving  *acquisition  // of another subnet, because this one was lost; nil: it was not
	moves   int           // subnets that were lost to other hosts
	failed  int           // writes without an answer in a row; the first was said
	wait    time.Duration // between attempts, while away
	gone    time.Time     // when it was lost last

	away     outage
	watched  chan watchResult
	watches  sync.WaitGroup
	budget   *rate.Limiter  // of watches that got on, and of listings
	held     time.Duration  // how long the budget has held up watches in a row that brought one event
	turns    pace.Pace      // of those that did not get on
	relists  pace.Pace      // because history was lost, although all was listed just before
	listed   bool           // no watch has got on since all was listed
	looks    *rate.Limiter  // at the own lease
	retry    *time.Timer    // try the registry again
	tend     *time.Timer    // look after the own lease
	fade     *time.Timer    // drop what was deleted
	exorcise *time.Timer    // drop the ghosts
	settle   *time.Timer    // publish
	settled  bool           // nothing to publish
	settles  time.Time      // when to publish, if not settled
	dirty    []netip.Prefix // whose leases may say something else than in last
	last     lease.View     // as emitted
	emitted  time.Time      // when
	status   Status         // as reported
}

type watchResult struct {
	events []registry.Event
	index  uint64
	err    error
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (f *follower) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-f.watched:
			f.heard(ctx, r)
		case <-f.retry.C:
			f.reconnect(ctx)
		case <-f.tend.C:
			f.looks.AllowN(time.Now(), 1)
			f.tendOwn(ctx)
		case t := <-f.Terms:
			f.attrs, f.PublicIP, f.Pool, f.TTL = t.Attrs, t.Attrs.PublicIP, t.Pool, t.TTL
			f.tendSoon()
		case <-f.settle.C:
			f.publish()
		case <-f.fade.C:
			f.dropFaded()
		case <-f.exorcise.C:
			f.dropGhosts()
		case <-f.gathered.C:
		}
		f.say()
		f.report()
	}
}

// watch begins one Watch after a wait; its result comes by f.watched.
func (f *follower) watch(ctx context.Context, wait time.Duration) {
	index := f.index
	f.watches.Go(func() {
		if wait > 0 {
			_ = pause(ctx, wait) // the Watch tells of its end
		}
		events, next, err := f.Registry.Watch(ctx, index)
		f.watched <- watchResult{events, next, err}
	})
}

// heard takes the result of a Watch.
func (f *follower) heard(ctx context.Context, r watchResult) {
	switch {
	case ctx.Err() != nil:
	case r.err == nil && len(r.events) == 0:
		// A silence may be that of a store which was wiped while nobody listened. One that is
		// over at once is no silence.
		f.index = r.index
		if wait := f.turns.Next(time.Now()); wait > 0 {
			f.retry.Reset(wait)
		} else {
			f.reconnect(ctx)
		}
	case r.err == nil:
		for _, ev := range r.events {
			f.apply(ev)
		}
		wait := f.spend(watchCost + len(r.events))
		if r.index <= f.index { // what is there already
			f.watch(ctx, max(wait, f.turns.Next(time.Now())))
			return
		}
		f.index, f.listed = r.index, false
		f.watchOrList(ctx, len(r.events), wait)
	case errors.Is(r.err, registry.ErrHistoryLost):
		f.Log.Info("listing all leases again", "err", r.err)
		f.relist = true
		f.turned = f.turned || errors.Is(r.err, registry.ErrTurnedBack)
		f.retry.Reset(f.relistDelay())
	default:
		f.lost(r.err)
	}
}

// watchOrList watches again, after the wait that the budget requires, when a watch has returned n
// events; or lists all leases, if such waits have taken as long as a listing would. A watch of
// etcd's v2 API returns one event: in a storm of changes the host would be further and further
// behind until it loses the history. A watch that returns more has caught up.
func (f *follower) watchOrList(ctx context.Context, n int, wait time.Duration) {
	if n == 1 && wait > 0 {
		f.held += wait
	} else {
		f.held = wait
	}
	if f.held <= time.Second*time.Duration(listCost+len(f.leases))/budgetRate {
		f.watch(ctx, wait)
		return
	}
	f.Log.Debug("listing all leases again: they change faster than they are watched", "leases", len(f.leases))
	f.relist = true
	f.retry.Reset(f.relistDelay())
}

// spend takes a cost from the budget and returns how long the next request has to wait.
func (f *follower) spend(cost int) time.Duration {
	return f.budget.ReserveN(time.Now(), min(cost, budgetBurst)).Delay()
}

// relistDelay takes a listing from the budget and returns how long it has to wait. It spreads the
// listings of hosts that lost their history by the same event, a few seconds for ten thousand, and
// paces them if one does not help.
func (f *follower) relistDelay() time.Duration {
	f.held = 0
	delay := f.spend(listCost+len(f.leases)) + between(0, time.Millisecond+time.Duration(len(f.leases))*200*time.Microsecond)
	if !f.listed {
		return delay
	}
	if wait := f.relists.Next(time.Now()); wait > 0 {
		delay += between(wait/2, wait)
	}
	return delay
}

// lost waits for a registry that does not answer.
func (f *follower) lost(err error) {
	if now := time.Now(); now.Sub(f.gone) > 2*lastRetry { // else it answers, and does not help
		f.wait = firstRetry
	}
	f.gone = time.Now()
	f.away.begin(err)
	f.retry.Reset(between(f.wait/2, f.wait))
	f.wait = min(f.wait*2, lastRetry)
}

// reconnect goes on watching. After an outage our own lease is the witness
// that this still is the registry we knew: if it is not as we left it, nothing
// else may be, and all is listed again.
func (f *follower) reconnect(ctx context.Context) {
	if !f.relist {
		ev, err := f.Registry.Get(ctx, f.own.Subnet)
		if err != nil {
			f.lostUnless(ctx, err)
			return
		}
		if ev.Bad != nil || ev.Deleted || ev.Lease.Revision != f.own.Revision {
			f.relist = true
		}
	}
	if f.relist {
		listing, err := f.Registry.List(ctx)
		if err != nil {
			f.lostUnless(ctx, err)
			return
		}
		f.relist, f.listed = false, true
		f.load(listing)
		f.known = false
		if f.away.active() {
			f.fights = fight{} // an etcd that was wiped took our key, and everybody's: that was no contest
		}
	}
	f.away.end()
	f.watch(ctx, 0)
	f.tendSoon()
}

// tendSoon has the own lease looked after, as soon as may be.
func (f *follower) tendSoon() { f.tend.Reset(f.lookDelay()) }

// lookDelay returns how long to wait until the own lease may be looked at again. It is rounded up:
// a look that begins too early would take nothing from the budget.
func (f *follower) lookDelay() time.Duration {
	missing := 1 - f.looks.TokensAt(time.Now())
	return time.Duration(math.Ceil(max(0, missing) * float64(looksEvery)))
}

func (f *follower) lostUnless(ctx context.Context, err error) {
	if ctx.Err() == nil {
		f.lost(err)
	}
}

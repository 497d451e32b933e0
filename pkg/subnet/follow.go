package subnet

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

const (
	// settle is how long changes are gathered before they become one View.
	settle = 25 * time.Millisecond
	// grace is how long a lease that is gone stays in force: a host that is
	// there makes its own again in less.
	grace = time.Second
	// Bounds of the wait between attempts while the registry is away.
	firstRetry, lastRetry = time.Second, 5 * time.Second
	// ghostTime is how long peers are believed in that a wiped registry does not
	// know: longer than any of them needs to notice.
	ghostTime = 2 * time.Minute
)

// Follow keeps the own lease and emits a View at the start and whenever a
// lease changed in something that matters; renewals don't. It returns when
// ctx ends. own and listing are what Acquire returned.
//
// Fail-static: while the registry is away nothing is emitted. The own lease is
// renewed Margin before it expires; put back when it was deleted, expired or
// overwritten with other data; and given up for a new subnet, in a View with
// another Own, only when it has another host's public IP.
//
// emit is called from Follow's own goroutine and should not block.
func Follow(ctx context.Context, o Options, own lease.Lease, listing registry.Listing, emit func(lease.View)) {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{
		Options:  o,
		emit:     emit,
		own:      own,
		attrs:    own.Attrs,
		wrote:    time.Now(),
		known:    true,
		leases:   map[netip.Prefix]lease.Lease{},
		ghosts:   map[netip.Prefix]bool{},
		bad:      map[string]registry.Bad{},
		away:     outage{log: o.Log},
		watched:  make(chan watchResult, 1),
		retry:    stopped(),
		tend:     stopped(),
		settle:   stopped(),
		exorcise: stopped(),
	}
	defer f.watches.Wait()
	defer cancel()
	f.load(listing)
	f.publish()
	f.report()
	f.schedule()
	f.watch(ctx)
	f.run(ctx)
}

// follower is the state of Follow; all of it belongs to one goroutine. Only
// the blocking Watch runs in another.
type follower struct {
	Options
	emit func(lease.View)

	leases map[netip.Prefix]lease.Lease // the registry's, ours included; last good values
	ghosts map[netip.Prefix]bool        // of these, the ones a wiped registry has forgotten
	bad    map[string]registry.Bad      // by key
	index  uint64                       // watch from here
	relist bool                         // the index is worth nothing
	turned bool                         // the registry was wiped or restored since all was listed last
	listed time.Time                    // when all was listed last

	own    lease.Lease
	attrs  lease.Attrs   // that own is to have
	known  bool          // own is what the registry holds, as far as we heard
	wrote  time.Time     // when own was last written or found
	fights fight         // with somebody who changes our key
	tries  int           // conflicts in a row
	failed bool          // the last write failed, and that was said
	wait   time.Duration // between attempts, while away

	away     outage
	watched  chan watchResult
	watches  sync.WaitGroup
	retry    *time.Timer // try the registry again
	tend     *time.Timer // look after the own lease
	settle   *time.Timer // publish
	exorcise *time.Timer // drop the ghosts
	settled  bool        // nothing to publish
	settles  time.Time   // when to publish, if not settled
	last     lease.View  // as emitted
	status   Status      // as reported
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
			f.tendOwn(ctx)
		case t := <-f.Terms:
			f.attrs, f.PublicIP, f.Pool, f.TTL = t.Attrs, t.Attrs.PublicIP, t.Pool, t.TTL
			f.tend.Reset(0)
		case <-f.settle.C:
			f.publish()
		case <-f.exorcise.C:
			f.dropGhosts()
		}
		f.report()
	}
}

// watch begins one Watch; its result comes by f.watched.
func (f *follower) watch(ctx context.Context) {
	index := f.index
	f.watches.Go(func() {
		events, next, err := f.Registry.Watch(ctx, index)
		f.watched <- watchResult{events, next, err}
	})
}

// heard takes the result of a Watch.
func (f *follower) heard(ctx context.Context, r watchResult) {
	switch {
	case ctx.Err() != nil:
	case r.err == nil && len(r.events) == 0:
		// A silence may be that of a store which was wiped while nobody listened.
		f.index = r.index
		f.reconnect(ctx)
	case r.err == nil:
		for _, ev := range r.events {
			f.apply(ev)
		}
		f.index = r.index
		f.watch(ctx)
	case errors.Is(r.err, registry.ErrHistoryLost):
		f.Log.Info("listing all leases again", "err", r.err)
		f.relist = true
		f.turned = f.turned || errors.Is(r.err, registry.ErrTurnedBack)
		f.retry.Reset(f.relistDelay())
	default:
		f.lost(r.err)
	}
}

// relistDelay spreads the listings of hosts that lost their history by the
// same event, a few seconds for ten thousand; and paces them if one does not help.
func (f *follower) relistDelay() time.Duration {
	spread := between(0, time.Millisecond+time.Duration(len(f.leases))*200*time.Microsecond)
	if time.Since(f.listed) < lastRetry {
		spread += between(firstRetry/2, firstRetry)
	}
	return spread
}

// lost waits for a registry that does not answer.
func (f *follower) lost(err error) {
	if !f.away.active() {
		f.wait = firstRetry
	}
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
		f.relist = false
		f.listed = time.Now()
		f.load(listing)
		f.known = false
		if f.away.active() {
			f.fights = fight{} // an etcd that was wiped took our key, and everybody's: that was no contest
		}
	}
	f.away.end()
	f.watch(ctx)
	f.tend.Reset(0)
}

func (f *follower) lostUnless(ctx context.Context, err error) {
	if ctx.Err() == nil {
		f.lost(err)
	}
}

// load takes a listing in place of everything known.
func (f *follower) load(listing registry.Listing) {
	f.turned = f.turned || listing.Index < f.index
	f.index = listing.Index
	leases := make(map[netip.Prefix]lease.Lease, len(listing.Leases))
	for _, l := range listing.Leases {
		leases[l.Subnet] = l
	}
	before := f.bad
	f.bad = make(map[string]registry.Bad, len(listing.Bad))
	for _, b := range listing.Bad {
		f.complain(before[b.Key], b)
		old, was := f.leases[b.Subnet]
		if _, is := leases[b.Subnet]; was && !is {
			leases[b.Subnet] = old // what the key said last stays in force
		}
	}
	f.haunt(leases)
	f.leases = leases
	f.changed()
}

// haunt keeps peers that a listing should have. One without our own lease, or
// with it as it once was, is from a registry that was wiped or restored, and so
// is one of a lower index: it has forgotten others as well, who are there all the
// same and will make their leases again, as we do.
func (f *follower) haunt(leases map[netip.Prefix]lease.Lease) {
	ours, ok := leases[f.own.Subnet]
	forgot := f.turned || !ok || ours.Revision < f.own.Revision
	f.turned = false
	for subnet, l := range f.leases {
		if _, listed := leases[subnet]; listed || subnet == f.own.Subnet {
			delete(f.ghosts, subnet)
		} else if forgot || f.ghosts[subnet] {
			leases[subnet] = l
			f.ghosts[subnet] = true
		}
	}
	if forgot {
		f.exorcise.Reset(ghostTime)
	}
}

// dropGhosts forgets who has not come back.
func (f *follower) dropGhosts() {
	for subnet := range f.ghosts {
		delete(f.leases, subnet)
	}
	clear(f.ghosts)
	f.changed()
}

// apply takes one event.
func (f *follower) apply(ev registry.Event) {
	subnet, revision := ev.Lease.Subnet, ev.Lease.Revision
	delete(f.ghosts, subnet)
	switch {
	case ev.Bad != nil && ev.Deleted:
		delete(f.bad, ev.Bad.Key)
		return
	case ev.Bad != nil:
		f.complain(f.bad[ev.Bad.Key], *ev.Bad)
		subnet, revision = ev.Bad.Subnet, ev.Bad.Revision
	case ev.Deleted:
		f.forgive(subnet)
		delete(f.leases, subnet)
		f.publishIn(grace)
	default:
		f.forgive(subnet)
		// Neither our own nor one that never left the View is a reason for an
		// early one, in which others would be missing.
		if subnet != f.own.Subnet && !f.leases[subnet].SameAs(ev.Lease) && !f.emitted(ev.Lease) {
			f.changed()
		}
		f.leases[subnet] = ev.Lease
	}
	if subnet == f.own.Subnet && revision > f.own.Revision {
		// Events only say where to look.
		f.known = false
		f.tend.Reset(0)
	}
}

// complain keeps a bad entry, and names it if that was not done before.
func (f *follower) complain(before, b registry.Bad) {
	if before.Err == nil || before.Err.Error() != b.Err.Error() {
		f.Log.Warn("ignoring bad entry in the registry", "key", lease.Clip(b.Key), "err", b.Err)
	}
	f.bad[b.Key] = b
}

// forgive is for a key that is no bad entry any more.
func (f *follower) forgive(subnet netip.Prefix) {
	maps.DeleteFunc(f.bad, func(_ string, b registry.Bad) bool { return b.Subnet == subnet })
}

// changed has a View emitted soon.
func (f *follower) changed() { f.publishIn(settle) }

// publishIn has a View emitted after d, or before if that was asked for.
func (f *follower) publishIn(d time.Duration) {
	if at := time.Now().Add(d); f.settled || at.Before(f.settles) {
		f.settled, f.settles = false, at
		f.settle.Reset(d)
	}
}

// emitted tells whether the last View has this lease of a peer.
func (f *follower) emitted(l lease.Lease) bool {
	i, ok := slices.BinarySearchFunc(f.last.Peers, l.Subnet, func(p lease.Lease, s netip.Prefix) int {
		return lease.ComparePrefix(p.Subnet, s)
	})
	return ok && f.last.Peers[i].SameAs(l)
}

// publish emits what is known, unless it is what was emitted last.
func (f *follower) publish() {
	f.settle.Stop()
	f.settled = true
	v := lease.NewView(f.own, slices.Collect(maps.Values(f.leases)), true)
	if f.last.Complete && v.Own.SameAs(f.last.Own) && slices.EqualFunc(v.Peers, f.last.Peers, lease.Lease.SameAs) {
		return
	}
	f.last = v
	f.emit(v)
}

func (f *follower) report() {
	s := Status{Own: f.own, Leases: len(f.leases), Bad: len(f.bad), AwaySince: f.away.since}
	if f.Report != nil && s != f.status {
		f.status = s
		f.Report(s)
	}
}

package subnet

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

// longCall is how long a call, or a step of several, may be under way before it counts as one
// that may never return; see Options.Alive. A Watch that hears nothing takes 45 s.
const longCall = time.Minute

// Follow leases a subnet, keeps that lease, and emits a View as soon as there is one and whenever
// a lease changed in something that matters; renewals don't. A change after a quiet time is told
// at once, more of them at intervals. It returns when ctx ends, with its error, or, as long as
// there never was a lease, with one of Attrs and Avoid.
//
// While no subnet is free, or the registry is away, it goes on trying: see Options.Conditions.
//
// Fail-static: while the registry is away nothing is emitted. The own lease is
// renewed Margin before it expires; put back when it was deleted, expired or
// overwritten; and given up for a new subnet, in a View with another Own, only when its
// key was deleted and made anew with another host's public IP, which in etcd's v2 API
// every unconditional write does, or when this host took it up from a former state to
// which another host has set it back. Until there is another subnet to be had, views
// still have the lost one as Own, and the peers as they are.
//
// emit is called from Follow's own goroutine and must not block.
func Follow(ctx context.Context, o Options, emit func(lease.View)) error {
	ctx, cancel := context.WithCancel(ctx)
	f := newFollower(o, emit)
	defer f.calls.Wait()
	defer cancel()
	if o.Previous.IsValid() && !o.Pool.Fits(o.Previous) {
		o.Log.Warn("previous subnet does not fit the network config, ignoring it", "subnet", o.Previous, "network", o.Pool.Network)
	}
	f.step(ctx)
	return f.run(ctx)
}

func newFollower(o Options, emit func(lease.View)) *follower {
	return &follower{
		Options:      o,
		emit:         emit,
		leases:       map[lease.Subnets]*lease.Lease{},
		staleLeases:  map[lease.Subnets]bool{},
		graceEnds:    map[lease.Subnets]time.Time{},
		mine:         &ownLease{Options: o, acquiring: newAcquisition(o), repairs: newRepairs()},
		invalidKeys:  map[string]bool{},
		away:         outage{log: o.Log},
		inputs:       make(chan func(), 2),
		budget:       rate.NewLimiter(budgetRate, budgetBurst),
		watchPace:    pace.Pace{Initial: 100 * time.Millisecond, Max: lastRetry},
		listPace:     pace.Pace{Initial: firstRetry, Max: 2 * lastRetry},
		ownReads:     rate.NewLimiter(rate.Every(readEvery), readBurst),
		acquirePace:  pace.Pace{Initial: 100 * time.Millisecond, Max: time.Second},
		retryTimer:   stopped(),
		stepTimer:    stopped(),
		publishTimer: stopped(),
		graceTimer:   stopped(),
		staleTimer:   stopped(),
		invalid:      condition.NewGroup(o.Log, slog.LevelWarn, "skipped invalid entries in the registry", "no longer skipping invalid entries in the registry"),
		invalidTimer: stopped(),
	}
}

// follower is the state of Follow; all of it belongs to one goroutine, but for what is said to
// belong to a step. It does two things side by side, and a state of each has one thing that ends
// it, a call under way or a timer:
//
//	following (watch.go), once there was a lease:
//	    watching --> checking, after a silence --> watching
//	    watching, checking --> listing, when history was lost --> watching
//	    watching, checking, listing --> away, without an answer --> checking or listing
//	the own lease (own.go, steps.go):
//	    acquiring --> held --> a step, when due or in doubt --> held
//	    held --> acquiring, when another host has it
type follower struct {
	Options // as given: the terms that hold now are those of mine
	emit    func(lease.View)

	// What is known of the leases (leases.go).
	leases       map[lease.Subnets]*lease.Lease // the registry's, ours included; last good values, never changed in place
	staleLeases  map[lease.Subnets]bool         // of these, the ones a wiped registry has forgotten
	graceEnds    map[lease.Subnets]time.Time    // of these, the ones that were deleted, and until when they stay in force
	deletions    []deletion                     // the same in order of time; those that came back meanwhile too
	invalidKeys  map[string]bool                // keys of entries that are no leases
	moreInvalid  int                            // at least so many beside those in bad, as of the last listing
	invalid      *condition.Group               // the same, by key, for the log
	invalidTimer *time.Timer                    // log the rest of them
	graceTimer   *time.Timer                    // drop what was deleted
	staleTimer   *time.Timer                    // drop the stale leases

	// Following (watch.go).
	index           uint64        // watch from here
	relist          bool          // the index is worth nothing
	relistCause     Cause         // why
	rolledBack      bool          // the registry was wiped or restored since all was listed last
	maybeRolledBack bool          // the same may be, for something happened to the own key that was not heard
	away            outage        // before there is a lease, of the steps
	retryWait       time.Duration // between attempts, while away
	failedAt        time.Time     // when it was lost last
	callSince       time.Time     // when the call that is under way began; zero: none is
	retryTimer      *time.Timer   // try the registry again
	budget          *rate.Limiter // of watches that got on, and of listings
	budgetWait      time.Duration // how long the budget has held up watches in a row that brought one event
	watchPace       pace.Pace     // of watches that did not get on
	listPace        pace.Pace     // of listings that did not help
	listed          bool          // no watch has got on since all was listed

	// The own lease (steps.go).
	own         lease.Lease   // as of the last step; zero: there never was one
	lost        bool          // another host has it, as of the last step
	mine        *ownLease     // belongs to the step, while one is under way
	stepSince   time.Time     // when the step that is under way began; zero: none is
	nextStep    stepInput     // for the next step
	stepTimer   *time.Timer   // begin a step
	conflictRun int           // conflicts in a row
	failures    int           // steps without an answer in a row; the first was said
	ownReads    *rate.Limiter // of steps that look at the own lease
	acquirePace pace.Pace     // of those that acquire one, because of new terms
	fatal       error         // end with it

	// Views (publish.go).
	publishTimer *time.Timer     // publish
	published    bool            // nothing to publish
	publishDue   time.Time       // when to publish, if not settled
	dirty        []lease.Subnets // whose leases may say something else than in last
	last         lease.View      // as emitted
	emitted      time.Time       // when
	stats        Stats           // what was counted so far
	reported     Stats           // as reported

	inputs chan func() // results of calls: what to do with them
	calls  sync.WaitGroup
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// call makes a call in a goroutine of its own. What it returns is done in Follow's, as an input.
// There are at most as many under way as inputs has room for, so none of them waits.
func (f *follower) call(do func() (then func())) { f.calls.Go(func() { f.inputs <- do() }) }

func (f *follower) run(ctx context.Context) error {
	for f.fatal == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case then := <-f.inputs:
			then()
		case <-f.retryTimer.C:
			f.reconnect(ctx)
		case <-f.stepTimer.C:
			f.step(ctx)
		case t := <-f.Terms:
			f.nextStep.terms = &t
			f.stepSoon()
		case <-f.publishTimer.C:
			f.publish()
		case <-f.graceTimer.C:
			f.expireDeleted()
		case <-f.staleTimer.C:
			f.expireStale()
		case <-f.invalidTimer.C:
		}
		f.logInvalid()
		f.report()
		f.heartbeat()
	}
	return f.fatal
}

// begin follows the network, from the listing on from which the first subnet was chosen.
func (f *follower) begin(ctx context.Context, listing registry.Listing) {
	f.away.end()
	f.stats.Answered = time.Now()
	f.load(listing)
	f.publish()
	f.watch(ctx, 0)
}

// begun reports whether the network is followed: there is, or was, a lease.
func (f *follower) begun() bool { return f.own != (lease.Lease{}) }

// heartbeat says that all is well, unless a call takes suspiciously long.
func (f *follower) heartbeat() {
	for _, since := range []time.Time{f.callSince, f.stepSince} {
		if !since.IsZero() && time.Since(since) > longCall {
			return
		}
	}
	if f.Heartbeat != nil {
		f.Heartbeat()
	}
}

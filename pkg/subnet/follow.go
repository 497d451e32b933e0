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

// longCall is how long a call or a step may take before it counts as hung; see Options.Heartbeat. A
// Watch without events takes 45 s.
const longCall = time.Minute

// Follow leases a subnet, maintains that lease, and emits a View as soon as it has one and whenever
// a lease changes, except for renewals. A change after a quiet period is emitted at once, further
// ones at intervals. It returns the error of ctx when that ends or, if there was no lease yet, an
// error of Attrs or Avoid.
//
// While no subnet is free or the registry is unreachable, it keeps trying: see Options.Conditions.
//
// Fail-static: nothing is emitted while the registry is unreachable. The own lease is renewed
// Margin before it expires. It is restored if it was deleted, expired or was overwritten. It is
// given up for a new subnet, in a View with another Own, in two cases only: its key was recreated
// with another host's public IP, which in etcd's v2 API every unconditional write does; or this
// host reused a lease and another host has restored the previous value. Until another subnet is
// available, views still have the lost one as Own and the peers as they are.
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
		retryPace:    pace.Pace{Initial: firstRetry}, // Max: see limitPauses
		watchPace:    pace.Pace{Initial: 100 * time.Millisecond},
		listPace:     pace.Pace{Initial: firstRetry},
		ownReads:     rate.NewLimiter(rate.Every(readEvery), readBurst),
		failed:       pace.Backoff{Initial: firstRetry, Max: renewFloor},
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

// follower is the state of Follow. It belongs to one goroutine, except for what belongs to a step.
// It runs two state machines side by side. Each state has one thing that ends it, a pending call or
// a timer:
//
//	following (watch.go), once there was a lease:
//	    watching --> checking, after a silence --> watching
//	    watching, checking --> listing, when history was lost --> watching
//	    watching, checking, listing --> away, without an answer --> checking or listing
//	the own lease (own.go, steps.go):
//	    acquiring --> held --> a step, when due or in doubt --> held
//	    held --> acquiring, when another host has it
type follower struct {
	Options // initial options; mine has the current terms
	emit    func(lease.View)

	// All known leases (leases.go).
	leases       map[lease.Subnets]*lease.Lease // of the registry, including ours; last valid values, never modified in place
	staleLeases  map[lease.Subnets]bool         // those that a wiped registry no longer has
	graceEnds    map[lease.Subnets]time.Time    // those that were deleted, and when their grace period ends
	deletions    []deletion                     // the same in order of time, including those that were recreated since
	invalidKeys  map[string]bool                // keys of invalid entries
	moreInvalid  int                            // minimum number of further invalid entries, as of the last listing
	invalid      *condition.Group               // invalid entries by key, for the log
	invalidTimer *time.Timer                    // logs deferred invalid entries
	graceTimer   *time.Timer                    // removes deleted leases
	staleTimer   *time.Timer                    // removes stale leases

	// Following (watch.go).
	index           uint64        // index to watch from
	relist          bool          // the index is unusable, list again
	relistCause     Cause         // why
	rolledBack      bool          // the registry was wiped or restored since the last listing
	maybeRolledBack bool          // it may have been, because the own key changed without an event
	away            outage        // before there is a lease, outages seen by steps
	retryPace       pace.Pace     // for attempts during an outage, or to a registry that answers but fails repeatedly
	callSince       time.Time     // start of the pending call; zero if there is none
	retryTimer      *time.Timer   // tries the registry again
	budget          *rate.Limiter // for watches that made progress and for listings
	budgetWait      time.Duration // total delay by the budget of consecutive watches with one event each
	watchPace       pace.Pace     // for watches without progress
	listPace        pace.Pace     // for consecutive listings without progress
	listed          bool          // no watch has made progress since the last listing

	// The own lease (steps.go).
	own         lease.Lease   // as of the last step; zero if there was none yet
	lost        bool          // another host has the subnet, as of the last step
	mine        *ownLease     // belongs to the pending step, if there is one
	stepSince   time.Time     // start of the pending step; zero if there is none
	nextStep    stepInput     // input of the next step
	stepTimer   *time.Timer   // starts a step
	conflictRun int           // number of consecutive conflicts
	failed      pace.Backoff  // for consecutive steps without an answer; the first is logged
	ownReads    *rate.Limiter // limits steps that read the own lease
	acquirePace pace.Pace     // for steps that acquire a lease because of new terms
	fatal       error         // error to return

	// Views (publish.go).
	publishTimer *time.Timer     // publishes a view
	published    bool            // there is nothing to publish
	publishDue   time.Time       // when to publish, unless published
	dirty        []lease.Subnets // subnets whose leases may differ from those in last
	received     time.Time       // when the first event since last was received that changes a lease; zero if there was none
	last         lease.View      // last emitted view
	emitted      time.Time       // when
	stats        Stats           // current counts
	reported     Stats           // last reported

	inputs chan func() // handlers of the results of calls
	calls  sync.WaitGroup
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// call runs do in a new goroutine. The returned function is an input, so it runs in Follow's
// goroutine. There are no more pending calls than inputs has room for, so none of them blocks.
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

// begin starts following the network from the listing that the first subnet was chosen from.
func (f *follower) begin(ctx context.Context, listing registry.Listing) {
	f.away.end()
	f.stats.Answered = time.Now()
	f.load(listing)
	f.publish()
	f.watch(ctx, 0)
}

// begun reports whether the network is being followed, that is, whether there was a lease.
func (f *follower) begun() bool { return f.own != (lease.Lease{}) }

// heartbeat calls Options.Heartbeat, unless a pending call takes too long.
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

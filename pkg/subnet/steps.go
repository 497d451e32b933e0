package subnet

import (
	"context"
	"errors"
	"math"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// When the own lease is looked after: by one step after the other, each begun by a timer that is
// set when the one before has ended.

const (
	// conflictPause bounds the wait after the n-th conflict in a row: n times this. With
	// fewConflicts, many hosts are there at once; with more, something is wrong, and the wait
	// grows faster, up to mostConflictPause.
	conflictPause    = 20 * time.Millisecond
	fewConflicts     = 20
	maxConflictPause = 10 * time.Second
	manyConflicts    = 10 // that many in a row are said
	// startRetry bounds the wait between attempts for the first lease, fullRetry is the least
	// while no subnet is free.
	startRetry = time.Second
	fullRetry  = 5 * time.Second
	// The own lease may be looked at looksBurst times at once, and then once in looksEvery:
	// others write our key seldom, unless it is to harm.
	readBurst, readEvery = 16, 2 * time.Second
)

// stepInput is what the follower has to tell to the next step.
type stepInput struct {
	terms *Terms
	// heard is the revision of what was written last to the own key, if that may not be what a
	// step knows of; 0: nothing was.
	keyRevision uint64
	keyTouched  bool // the registry told something of the own key, whatever revision that has
	restored    bool // the registry was wiped or restored, so its revisions say nothing of the lease
	wiped       bool // an etcd that was away has lost our key, and everybody's: that was no contest
}

// forceCheck has the own key looked at, whatever its revision.
func (n *stepInput) forceCheck() { n.keyRevision, n.keyTouched = math.MaxUint64, true }

// step begins a step for the own lease, unless one is under way. While the registry is away,
// there is none: resume comes back here.
func (f *follower) step(ctx context.Context) {
	now := time.Now()
	if !f.stepSince.IsZero() || f.begun() && f.away.active() {
		return
	}
	f.stepSince = now
	if f.begun() {
		f.ownReads.AllowN(now, 1)
	}
	if f.acquiring() {
		f.acquirePace.Turn(now)
	}
	told := f.nextStep
	f.nextStep = stepInput{}
	f.call(func() func() {
		err := f.mine.step(ctx, told)
		return func() { f.stepDone(ctx, err) }
	})
}

// acquiring reports whether there is no lease, as of the last step.
func (f *follower) acquiring() bool { return f.lost || !f.begun() }

// stepDone takes over what a step has come to, and sets the time of the next.
func (f *follower) stepDone(ctx context.Context, err error) {
	f.stepSince = time.Time{}
	was := f.own
	f.own, f.lost = f.mine.lease, f.mine.acquiring != nil && f.mine.had()
	f.stats.Moves, f.stats.Conflicts = f.mine.moves, f.mine.conflicts
	switch {
	case ctx.Err() != nil:
		return
	case !f.begun() && !answered(err): // else following it tells
		f.away.begin(err)
	case !f.begun():
		f.away.end()
	case was == lease.Lease{}:
		f.begin(ctx, f.mine.listing)
		f.mine.listing = registry.Listing{}
	case f.own.Subnets != was.Subnets:
		f.moved(was.Subnets)
	case !f.own.SameAs(was):
		f.changed()
	}
	if f.mine.missedEvent { // and as the step has left it, the key is no witness any more: see reconnect
		f.relistFor(OwnLease)
		f.maybeRolledBack = true
	}
	if f.nextStep.keyRevision <= f.own.Revision { // our own write
		f.nextStep.keyRevision = 0
	}
	if !f.acquiring() {
		f.Conditions.End(NoSubnet)
	}
	if err == nil {
		f.conflictRun, f.failures = 0, 0
		f.schedule()
	} else {
		f.stepTimer.Reset(f.retryDelay(err))
	}
	f.stepSoon()
}

// moved is for other subnets than before.
func (f *follower) moved(from lease.Subnets) {
	// The watch never stopped, so the listing is not needed. Who has the subnets now is known,
	// perhaps by what came after what the step has seen. Of events of the new ones it is not known
	// whether there were any.
	if !f.nextStep.keyTouched && f.mine.newOwner.Subnets == from {
		f.applyLease(f.mine.newOwner)
	}
	f.nextStep.forceCheck()
	f.changed()
}

// stepSoon has the next step begin soon, if there is something to tell it.
func (f *follower) stepSoon() {
	switch now := time.Now(); {
	case !f.stepSince.IsZero(): // its end comes back here
	case f.nextStep.terms != nil && f.acquiring():
		f.stepTimer.Reset(f.acquirePace.Delay(now))
	case f.nextStep.terms != nil, f.nextStep.keyRevision > 0:
		f.stepTimer.Reset(f.readDelay())
	}
}

// readDelay returns how long to wait until the own lease may be looked at again. It is rounded up,
// lest a look begin before there is something for it to take.
func (f *follower) readDelay() time.Duration {
	missing := 1 - f.ownReads.TokensAt(time.Now())
	return time.Duration(math.Ceil(max(0, missing) * float64(readEvery)))
}

// schedule sets the time of the step that follows one that succeeded.
func (f *follower) schedule() {
	soon := f.readDelay()
	switch {
	case !f.mine.verified: // and somebody keeps changing it
		f.stepTimer.Reset(max(f.mine.repairs.Delay(time.Now()), soon))
	case f.own.Reservation():
		f.stepTimer.Stop()
	default:
		f.stepTimer.Reset(max(time.Until(f.mine.due()), soon))
	}
}

// retryDelay returns the time until the step that follows one that failed, and says why it did.
func (f *follower) retryDelay(err error) time.Duration {
	var full *exhaustedError
	var ofHost *hostError
	switch {
	case errors.Is(err, registry.ErrConflict):
		return f.conflictDelay(err)
	case errors.As(err, &full):
		f.conflictRun = 0
		f.Conditions.Set(condition.Condition{
			ID: NoSubnet, Severe: true, Text: "cannot lease a subnet, waiting for a free one", Fields: []any{"err", full},
		})
		return randomBetween(fullRetry, 2*fullRetry)
	case errors.Is(err, registry.ErrDenied): // whoever opened the registry says so
		if f.acquiring() {
			f.Log.Debug("registry denies leasing a subnet, will retry", "err", err)
		} else {
			f.Log.Debug("registry denies writing the lease, will retry", "subnet", f.own.Subnets, "expires", f.own.Expires, "err", err)
		}
		return randomBetween(lastRetry/2, lastRetry)
	case errors.As(err, &ofHost):
		if !f.begun() && !errors.Is(err, ErrTryAgain) {
			f.fatal = ofHost.err
		}
		return randomBetween(startRetry/2, startRetry)
	case !f.begun():
		return randomBetween(startRetry/2, startRetry)
	}
	if f.failures++; f.failures == 1 {
		msg := "failed to renew lease, will retry"
		if f.lost {
			msg = "failed to lease another subnet, will retry"
		}
		f.Log.Warn(msg, "subnet", f.own.Subnets, "expires", f.own.Expires, "err", err)
	}
	delay := lastRetry // the lease is lost, or misleads peers
	if !f.lost && f.own.Attrs == f.mine.attrs {
		delay = min(max(time.Until(f.own.Expires)/8, lastRetry), renewFloor)
	}
	delay = min(delay, firstRetry<<min(f.failures-1, 6))
	return randomBetween(delay/2, delay)
}

// answered reports whether the registry answered, although a step failed.
func answered(err error) bool {
	var full *exhaustedError
	var ofHost *hostError
	return errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrDenied) || errors.As(err, &full) || errors.As(err, &ofHost)
}

func (f *follower) conflictDelay(err error) time.Duration {
	f.conflictRun++
	if f.acquiring() && f.conflictRun == manyConflicts {
		f.mine.acquiring.logOnce(f.Log.Warn, "conflicts with other hosts, still trying to lease a subnet", "attempt", f.conflictRun, "err", err)
	}
	most := time.Duration(min(f.conflictRun, fewConflicts)) * conflictPause
	for range min(f.conflictRun-fewConflicts, 20) {
		most += most / 2
	}
	delay := randomBetween(0, min(most, maxConflictPause))
	if f.begun() {
		delay = max(delay, f.readDelay())
	}
	return delay
}

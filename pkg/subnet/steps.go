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

// Steps maintain the own lease. They run one at a time. When one ends, it sets the timer for the
// next.

const (
	// conflictPause is the maximum wait after one conflict. It grows linearly for up to
	// fewConflicts consecutive conflicts, when many hosts start at once. More indicate a problem,
	// and the wait grows exponentially up to maxConflictPause.
	conflictPause    = 20 * time.Millisecond
	fewConflicts     = 20
	maxConflictPause = 10 * time.Second
	manyConflicts    = 10 // number of consecutive conflicts that is logged
	// startRetry is the maximum wait between attempts for the first lease. fullRetry is the minimum
	// while no subnet is free.
	startRetry = time.Second
	fullRetry  = 5 * time.Second
	// The own lease may be read readBurst times at once, and then once per readEvery. Other
	// programs rarely write our key, unless they are malicious.
	readBurst, readEvery = 16, 2 * time.Second
)

// stepInput is the input of the next step from the follower.
type stepInput struct {
	terms *Terms
	// keyRevision is the revision of the last write of the own key, if a step may not know of it,
	// or 0.
	keyRevision uint64
	keyTouched  bool // there was an event for the own key, of any revision
	restored    bool // the registry was wiped or restored, so revisions cannot be compared
	wiped       bool // etcd lost all keys during an outage, so a missing key is not a conflict
}

// forceCheck requests a read of the own key regardless of its revision.
func (n *stepInput) forceCheck() { n.keyRevision, n.keyTouched = math.MaxUint64, true }

// step starts a step for the own lease, unless one is pending. There are none during an outage of
// the registry. When that ends, resume schedules the next.
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

// stepDone handles the result of a step and schedules the next.
func (f *follower) stepDone(ctx context.Context, err error) {
	f.stepSince = time.Time{}
	was := f.own
	f.own, f.lost = f.mine.lease, f.mine.acquiring != nil && f.mine.had()
	f.stats.Moves, f.stats.Conflicts = f.mine.moves, f.mine.conflicts
	switch {
	case ctx.Err() != nil:
		return
	case !f.begun() && !answered(err): // later outages are detected by watches
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
	if f.mine.missedEvent { // after the repair, reconnect can no longer detect the change
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
		f.conflictRun = 0
		f.failed.Reset()
		f.schedule()
	} else {
		f.stepTimer.Reset(f.retryDelay(err))
	}
	f.stepSoon()
}

// moved handles a change of the own subnets.
func (f *follower) moved(from lease.Subnets) {
	// The watch was not interrupted, so no listing is needed. The new owner of the old subnets is
	// known from the step, unless there were later events. Events for the new subnets may have been
	// missed.
	if !f.nextStep.keyTouched && f.mine.newOwner.Subnets == from {
		f.applyLease(f.mine.newOwner)
	}
	f.nextStep.forceCheck()
	f.changed()
}

// stepSoon schedules the next step soon if there is input for it.
func (f *follower) stepSoon() {
	switch now := time.Now(); {
	case !f.stepSince.IsZero(): // stepDone calls stepSoon again
	case f.nextStep.terms != nil && f.acquiring():
		f.stepTimer.Reset(f.acquirePace.Delay(now))
	case f.nextStep.terms != nil, f.nextStep.keyRevision > 0:
		f.stepTimer.Reset(f.readDelay())
	}
}

// readDelay returns how long to wait until the own lease may be read again. It is rounded up, so
// that a read does not start before a token is available.
func (f *follower) readDelay() time.Duration {
	missing := 1 - f.ownReads.TokensAt(time.Now())
	return time.Duration(math.Ceil(max(0, missing) * float64(readEvery)))
}

// schedule schedules the next step after one that succeeded.
func (f *follower) schedule() {
	soon := f.readDelay()
	switch {
	case !f.mine.verified: // another program keeps changing it
		f.stepTimer.Reset(max(f.mine.repairs.Delay(time.Now()), soon))
	case f.own.Reservation():
		f.stepTimer.Stop()
	default:
		f.stepTimer.Reset(max(time.Until(f.mine.due()), soon))
	}
}

// retryDelay returns the time until the next step after one that failed, and logs the failure.
func (f *follower) retryDelay(err error) time.Duration {
	var full *exhaustedError
	var ofHost hostError
	switch {
	case errors.Is(err, registry.ErrConflict):
		return f.conflictDelay(err)
	case errors.As(err, &full):
		f.conflictRun = 0
		f.Conditions.Set(condition.Condition{
			ID: NoSubnet, Severity: condition.Severe, Text: "cannot lease a subnet, waiting for a free one", Fields: []any{"err", full},
		})
		return randomBetween(fullRetry, 2*fullRetry)
	case errors.Is(err, registry.ErrDenied): // reported by the code that opened the registry
		f.Log.Debug("registry denies writing the lease, will retry", "err", err)
		return randomBetween(lastRetry/2, lastRetry)
	case errors.As(err, &ofHost):
		if !f.begun() && !errors.Is(err, ErrTryAgain) {
			f.fatal = ofHost.error
		}
		return randomBetween(startRetry/2, startRetry)
	case !f.begun():
		return randomBetween(startRetry/2, startRetry)
	}
	backoff := f.failed.Failed()
	if backoff == firstRetry {
		msg := "failed to renew lease, will retry"
		if f.lost {
			msg = "failed to lease another subnet, will retry"
		}
		f.Log.Warn(msg, "subnet", f.own.Subnets, "expires", f.own.Expires, "err", err)
	}
	delay := lastRetry // the lease is lost or has outdated attributes
	if !f.lost && f.own.Attrs == f.mine.attrs {
		delay = min(max(time.Until(f.own.Expires)/8, lastRetry), renewFloor)
	}
	delay = min(delay, backoff)
	return randomBetween(delay/2, delay)
}

// answered reports whether a failed step got an answer from the registry.
func answered(err error) bool {
	var full *exhaustedError
	var ofHost hostError
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

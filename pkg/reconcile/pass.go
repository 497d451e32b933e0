package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

const (
	// maxRounds limits the readings within a pass. Two suffice on a healthy kernel: one that leads
	// to changes, and one that finds none.
	maxRounds = 4
	// chunkSize is the number of operations per batch. There may be tens of thousands, and progress
	// is reported in between.
	chunkSize = 1024
)

// Missing is an object that this host itself needs and that could not be created.
type Missing struct {
	Op     dataplane.Op
	Err    error  // error of the last attempt; nil if there was none
	Reason string // why there was no attempt
}

// Same reports whether two are of the same attempt.
func (m Missing) Same(o Missing) bool {
	return m.Err == o.Err && m.Reason == o.Reason && m.Op.Object() == o.Op.Object()
}

// Pass brings the kernel up to date once and reports whether the objects that this host itself
// needs exist: its link, its address, and the routes and tunnel entries that do not belong to a
// peer. Failures of single peers do not count; they are retried later. Passes must not overlap:
// Settle and Run are for one goroutine.
//
// When ctx ends, a pass ends before its next batch of operations, and counts as aborted.
//
// If only peers have changed, and no other program has touched the kernel since it was read, only
// the changed part of that reading is compared. Everything else requires a new reading; when there
// were too many recently, changed peers do not wait for it.
func (l *Loop) Pass(ctx context.Context) bool {
	defer func() { l.passEnded = time.Now() }()
	l.cfg.Heartbeat()
	facts, view, ok := l.latest()
	if !ok {
		return false
	}
	if l.retry.Swap(false) {
		l.backoffs.retry()
	}
	done := l.newPass(facts, view)
	stale := l.stale.Load()
	if stale && l.budget.Rest(time.Now()) > 0 {
		if done.change.IsEmpty() {
			return l.baseReady
		}
		stale = false
	}
	if !stale && l.partial(done.change) {
		l.passPart(ctx, view, &done)
	} else if !l.passWhole(ctx, facts, view, &done) {
		return l.abort(&done, Unread)
	}
	done.fighting = l.backoffs.fighting(time.Now()) || l.budget.Over()
	if ctx.Err() != nil {
		l.report.applications(done)
		return l.abort(&done, Incomplete)
	}
	l.aborted = false
	if left := len(done.failed)+done.deferred > 0; left || !done.partial {
		l.deferred = left && (done.hadDeferred || !done.change.IsEmpty()) // what is left of a repair is one, too
	}
	if !done.partial {
		l.cfg.Missing(rootCauses(done.missing))
	}
	if len(done.conflicts) > 0 || !done.partial {
		l.blocked.Store(len(done.conflicts) > 0)
	}
	l.count(&done, done.result())
	l.publish(&done, facts, view)
	l.propagated()
	l.report.pass(done)
	l.baseReady = !done.baseMissing
	return l.baseReady
}

// abort ends a pass that was not completed.
func (l *Loop) abort(p *pass, r Result) (ready bool) {
	l.aborted, l.baseReady = true, false
	l.count(p, r)
	return false
}

// latest returns the latest facts and view. It reports false, and sets a condition, if they are not
// sufficient for a pass.
func (l *Loop) latest() (host.Facts, lease.View, bool) {
	l.input.Lock()
	facts, view, err := l.input.facts, l.input.view, l.input.err
	l.received, l.input.received = earlier(l.received, l.input.received), time.Time{}
	l.input.Unlock()
	if err == nil && facts != nil && view != nil {
		return *facts, *view, true
	}
	l.backoffs.failed(time.Now(), inputObject, err)
	if err != nil && !errors.As(err, &condition.Reported{}) {
		l.report.unread("reading the state of this host", err)
	}
	return host.Facts{}, lease.View{}, false
}

// newPass updates the plan, and returns a pass that has done nothing yet.
func (l *Loop) newPass(f host.Facts, v lease.View) pass {
	now := time.Now()
	p := pass{begun: now, change: l.plan.Update(f, v), trigger: OnRetry, hadDeferred: l.deferred}
	switch {
	case !p.change.IsEmpty():
		p.trigger = OnChange
	case now.Sub(l.readAt) >= resync:
		p.trigger = OnResync
	}
	l.own = v.Own.Subnets.V4()
	p.change.All = p.change.All || l.aborted
	l.report.skipped(l.plan.Skipped())
	l.cfg.Skipped(l.plan.Skipped())
	l.cfg.Rivals(l.plan.ClaimConflicts())
	return p
}

// partial reports whether a partial pass suffices for a change.
func (l *Loop) partial(c backend.Change) bool {
	want := l.plan.Want()
	if c.All || l.needsWhole || want.UseNextHops(l.reading) != l.scope.NextHops || want.UseSpread(l.reading) != l.scope.Spread {
		return false
	}
	for k := range c.Now.Routes {
		if k.Link != "" && !l.scope.OwnsLink(k.Link) && !slices.Contains(l.scope.Underlay, k.Link) {
			return false
		}
	}
	return true
}

func (l *Loop) passPart(ctx context.Context, v lease.View, done *pass) {
	c := done.change
	delta := dataplane.Diff(c.Now, l.reading.Part(c.Was, c.Now), l.scope, v.Complete)
	done.partial, done.conflicts = true, delta.Conflicts
	l.apply(ctx, delta, done)
	l.needsWhole = len(done.failed)+len(delta.Conflicts) > 0
}

// passWhole reads the kernel, applies the difference, and reads again. It reports whether the
// kernel could be read.
func (l *Loop) passWhole(ctx context.Context, f host.Facts, v lease.View, done *pass) bool {
	want := l.plan.Want()
	l.scope = want.ScopeOf([]netip.Prefix{l.cfg.Network}, f.Uplink)
	l.needsWhole = true
	l.stale.Store(false) // later events are for the next pass
	if done.eventAt = time.Duration(l.firstEvent.Swap(0)); done.eventAt > 0 && done.trigger != OnChange {
		done.trigger = OnEvent
	}
	for round := range maxRounds {
		l.budget.Begin()
		l.reading = dataplane.State{} // release it, because states are large
		have := dataplane.NewState()
		if err := l.cfg.Driver.Snapshot(l.scope, &have); err != nil {
			l.backoffs.failed(time.Now(), inputObject, err)
			l.report.unread("reading the kernel", err)
			return false
		}
		l.backoffs.reset(inputObject)
		l.reading, l.readAt = have, time.Now()
		var delta *dataplane.Delta
		delta, l.scope = dataplane.Compare(want, have, l.scope, v.Complete)
		delta.Conflicts = append(delta.Conflicts, l.plan.UnsafeRoutes()...)
		done.conflicts = delta.Conflicts
		l.readCost = l.budget.Spend(time.Now())
		l.budget.Begin()
		done.doubtful = round == 0
		again := l.apply(ctx, delta, done)
		if ctx.Err() != nil {
			return true
		}
		if done.change.IsEmpty() {
			l.budget.Spend(time.Now())
		}
		if again && done.change.IsEmpty() && l.budget.Rest(time.Now()) > 0 {
			l.stale.Store(true) // later, because another program keeps making changes
			break
		}
		if !again {
			// Without this host's own objects, those of peers cannot be added.
			l.needsWhole = done.baseMissing
			break
		}
	}
	done.conflicts = slices.DeleteFunc(done.conflicts, func(c dataplane.Conflict) bool { return c.Op.Basic(l.own) })
	done.failed = slices.DeleteFunc(done.failed, func(f failure) bool { return f.op.Basic(l.own) || onMissingLink(done.missing, f.op) })
	return true
}

// pass is the result of a pass, for the report.
type pass struct {
	begun            time.Time
	trigger          Trigger
	eventAt          time.Duration  // time of the first event since the last reading, since the loop was created; 0 if there was none
	change           backend.Change // of the wanted state
	partial          bool           // only changed peers were compared
	hadDeferred      bool           // the previous pass has deferred operations
	applied          tally
	repaired         tally // the part of applied that restored objects
	refused          tally
	doubtful         bool // the reading may be outdated: failures count only after another reading and attempt
	doubtfulFailures int  // such failures in this round
	failed           []failure
	fighting         bool // another program keeps undoing an object, or so many that repairs take too long
	deferred         int  // number of paused operations
	conflicts        []dataplane.Conflict
	baseMissing      bool // an object that this host itself needs is missing
	missing          []Missing
	drift            map[dataplane.Kind]int // number of objects that are not as wanted
	lacking          []lacking              // those of them that are wanted
}

type failure struct {
	op    dataplane.Op
	err   error
	first bool // first failure in a row
}

// apply executes the operations that are due until ctx ends, and reports whether another reading is
// worthwhile.
func (l *Loop) apply(ctx context.Context, delta *dataplane.Delta, done *pass) (again bool) {
	now := time.Now()
	done.deferred, done.doubtfulFailures, done.baseMissing, done.missing, done.drift = 0, 0, false, nil, map[dataplane.Kind]int{}
	done.lacking = nil
	for _, c := range delta.Conflicts {
		if l.lacks(done, c.Op, c.Reason, nil) {
			done.missing = append(done.missing, Missing{Op: c.Op, Reason: c.Reason})
		}
	}
	total, before := delta.Len(), done.applied.n
	due := make([]dataplane.Op, 0, min(chunkSize, total))
	for op := range delta.Ops() {
		if l.backoffs.paused(now, op) {
			done.deferred++
			if err := l.backoffs.failure(op); l.lacks(done, op, pausedReason, err) && err != nil {
				done.missing = append(done.missing, Missing{Op: op, Err: err})
			}
		} else if due = append(due, op); len(due) == chunkSize {
			l.execute(ctx, due, done)
			if due = due[:0]; ctx.Err() != nil {
				break
			}
			l.report.progress(done.applied.n-before, total)
		}
	}
	l.execute(ctx, due, done)
	return done.applied.n > before || done.doubtfulFailures > 0
}

// execute executes a batch of operations, unless ctx has ended, and records the results.
func (l *Loop) execute(ctx context.Context, due []dataplane.Op, done *pass) {
	if len(due) == 0 || ctx.Err() != nil {
		return
	}
	l.cfg.Heartbeat()
	l.cfg.BeforeApply()
	now := time.Now()
	for i, err := range l.cfg.Driver.Apply(due) {
		op := due[i]
		if err != nil {
			done.refused.add(op)
			own := l.lacks(done, op, "", err)
			if done.doubtful && l.backoffs.failure(op) == nil {
				done.doubtfulFailures++
				continue
			}
			if own {
				done.missing = append(done.missing, Missing{Op: op, Err: err})
			}
			first := l.backoffs.failed(now, op.Object(), err)
			done.failed = append(done.failed, failure{op, err, first})
			continue
		}
		if done.partial { // a whole pass with changes is followed by another reading
			l.reading.Update(op)
		}
		// An object that was wanted before must have been changed by another program.
		repair := op.Kind != dataplane.KindNextHop && !done.change.About(op)
		l.backoffs.succeeded(now, op, repair)
		if done.applied.add(op); repair {
			done.repaired.add(op)
		}
		l.report.debug("applied operation", op)
	}
}

// lacks records an object that is not as wanted because of an error or else for a reason, and
// reports whether this host itself needs it.
func (l *Loop) lacks(done *pass, op dataplane.Op, reason string, err error) (basic bool) {
	if op.Verb != dataplane.Del {
		done.lacking = append(done.lacking, lacking{op, reason, err})
	}
	basic = op.Basic(l.own)
	done.drift[op.Kind]++
	done.baseMissing = done.baseMissing || basic
	return basic
}

// onMissingLink reports whether an operation's link is missing.
func onMissingLink(missing []Missing, op dataplane.Op) bool {
	return slices.ContainsFunc(missing, func(m Missing) bool {
		return m.Op.Kind == dataplane.KindLink && m.Op.Device() == op.Device()
	})
}

// rootCauses returns copies of the missing objects, except those that are missing only because
// their link is.
func rootCauses(missing []Missing) (all []Missing) {
	for _, m := range missing {
		if m.Op.Kind == dataplane.KindLink || !onMissingLink(missing, m.Op) {
			m.Op = m.Op.Clone()
			all = append(all, m)
		}
	}
	return all
}

// Package reconcile runs the one path by which the kernel becomes right: read
// what is wanted, read what is there, apply the difference, look again.
//
// It does not know what is wanted, nor how the kernel is read or written; it
// knows when to look, how often to try, and what to say about it. Invariant:
// every change comes from a reading of both sides, never from an event; nothing
// is deleted before the view of the network is complete.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
)

// Config of a Loop.
type Config struct {
	Driver  driver.Driver // of what is made right
	Backend backend.Backend
	Network netip.Prefix
	// Before, if set, is called before operations are carried out, of which there may be many. New
	// peers may be among them.
	Before func()
	// Rivals, if set, is told in each pass which peers are left out for having the MAC
	// of this host.
	Rivals func([]lease.Lease)
	// Missing is called after each whole pass with what this host needs for itself and
	// lacks, without what is missing only because its link is. It must not block. The log
	// then says nothing of these; nil: it does.
	Missing func([]Missing)
	// Alive, if set, is called when the loop is at work: at least once a minute, and between
	// parts of much work.
	Alive      func()
	Conditions *condition.List
	Log        *slog.Logger
}

// Missing is an object that this host needs for itself and that could not be put.
type Missing struct {
	Op     dataplane.Op
	Err    error  // why the last attempt failed; nil: there was none
	Reason string // why there was none
}

// Same reports whether two tell of the same attempt.
func (m Missing) Same(o Missing) bool {
	return m.Err == o.Err && m.Reason == o.Reason && m.Op.Object() == o.Op.Object()
}

const (
	// debounce lets a burst of events end before the kernel is read, and is the least
	// time between passes.
	debounce = 20 * time.Millisecond
	// lull is how long nothing must have come for a burst to have ended.
	lull = 5 * time.Millisecond
	// resync is the safety net under lost events.
	resync = time.Minute
	// rounds bounds the look-again within a pass. Two suffice on a healthy
	// kernel: one that changes, one that finds nothing.
	rounds = 4
	// chunk is how many operations are carried out at a time, of which there may be tens of
	// thousands: in between, progress is noted.
	chunk = 1024
)

// Loop reconciles. Make one with New.
type Loop struct {
	cfg   Config
	wake  chan struct{}
	input struct { // the latest
		sync.Mutex
		facts host.Facts
		err   error       // why there are no facts
		view  *lease.View // nil: there was none yet
	}

	// The following is of the goroutine that makes passes, but for what is atomic.
	stale  atomic.Bool // what is known of the kernel may be wrong
	retry  atomic.Bool // what failed may work now
	plan   *backend.Plan
	holds  *holds
	report *report
	budget pace.Budget // of whole passes
	made   time.Time
	heard  atomic.Int64  // when the kernel was last said to be changed, since made, in nanoseconds
	cost   time.Duration // of looking, the last time
	ended  time.Time     // when the last pass did

	undone  bool             // the last pass did not get through: everything counts as newly wanted
	left    bool             // the last one left something for later
	ok      bool             // what this host needs for itself stands
	scope   dataplane.Scope  // of the last reading
	reading dataplane.State  // what the kernel held then, and what was done to it since
	read    time.Time        // when it was read
	whole   bool             // the reading is of no use for a part
	own     netip.Prefix     // this host's subnet
	refused map[string]error // own objects that failed the last time, and why
}

// wholePasses bounds what they cost when somebody keeps changing the kernel, with enough at once
// for any accident.
func wholePasses() pace.Budget {
	return pace.Budget{Clock: pace.ProcessTime, Share: 40, Burst: 2 * time.Second, Most: resync}
}

// New makes a Loop that has done nothing yet, and does nothing before it has facts and a view.
func New(cfg Config) *Loop {
	if cfg.Alive == nil {
		cfg.Alive = func() {}
	}
	l := &Loop{
		cfg: cfg, wake: make(chan struct{}, 1), plan: backend.NewPlan(cfg.Backend, cfg.Network),
		holds: newHolds(), report: newReport(cfg.Log, cfg.Conditions), budget: wholePasses(), made: time.Now(), undone: true, whole: true,
		refused: map[string]error{},
	}
	l.input.err = condition.Reported{Err: errors.New("the state of this host is not known yet")}
	return l
}

// SetFacts says what is true of this host now, or why that is not known, which leaves the kernel as
// it is. It never blocks, as all that says something to the loop; what is said several times
// between two passes counts once.
func (l *Loop) SetFacts(f host.Facts, err error) {
	l.input.Lock()
	l.input.facts, l.input.err = f, err
	l.input.Unlock()
	l.trigger()
}

// SetView says which hosts there are now.
func (l *Loop) SetView(v lease.View) {
	l.input.Lock()
	l.input.view = &v
	l.input.Unlock()
	l.trigger()
}

// trigger asks for a pass soon.
func (l *Loop) trigger() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Reread asks for a pass that reads the kernel anew, because somebody may have
// changed it.
func (l *Loop) Reread() {
	l.heard.Store(int64(time.Since(l.made)))
	l.stale.Store(true)
	l.trigger()
}

// Retry is Reread that tries again what has failed, because the reason may be gone:
// the uplink is back. It is not for what our own attempts cause, or they would follow
// one another without a pause.
func (l *Loop) Retry() {
	l.retry.Store(true)
	l.Reread()
}

// Settle makes passes until what this host needs for itself stands.
func (l *Loop) Settle(ctx context.Context) error {
	for !l.Pass() {
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Run makes passes until ctx ends: when something was said to the loop, when something that
// failed is due again, and once a minute.
func (l *Loop) Run(ctx context.Context) {
	for l.wait(ctx) == nil {
		l.Pass()
	}
}

// wait blocks until there is a reason for a pass, and it is time for one.
func (l *Loop) wait(ctx context.Context) error {
	now := time.Now()
	idle := min(resync-now.Sub(l.read), l.holds.next(now))
	if l.stale.Load() {
		idle = max(l.budget.Rest(now), l.holds.left(now, inputObject))
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	report := time.NewTimer(l.report.later(now))
	defer report.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-report.C:
			l.report.flush()
			report.Reset(l.report.later(time.Now())) // the rest of it, if there is any
			continue
		case <-timer.C:
			l.stale.Store(true)
		case <-l.wake:
		}
		return l.calm(ctx)
	}
}

// calm blocks until no more is to be expected: of what is wanted all is known at once,
// of what is damaged more may follow. What is read meanwhile must be read again, so
// the end is awaited for as long as that would take.
func (l *Loop) calm(ctx context.Context) error {
	at := l.ended.Add(debounce)
	if l.stale.Load() {
		at = time.Now().Add(debounce)
	}
	for last := time.Now().Add(2 * l.cost); ; {
		if err := pace.Sleep(ctx, time.Until(at)); err != nil {
			return err
		}
		at = l.made.Add(time.Duration(l.heard.Load()) + lull)
		if !l.stale.Load() || at.After(last) || time.Until(at) <= 0 {
			l.drain()
			return nil
		}
	}
}

func (l *Loop) drain() {
	select {
	case <-l.wake:
	default:
	}
}

// Pass brings the kernel up to date once and tells whether what this host needs
// for itself stands: its link, its address, and the routes and tunnel entries that no
// peer is the reason for. Failures with single peers do not count; they are tried
// again later. Passes must not overlap: Settle and Run are for one goroutine.
//
// Where only peers have changed, and nobody else has touched the kernel since it
// was read, their part of that reading is compared with their part of what is
// wanted. Everything else takes a new reading; when there were too many lately, the
// peers that changed do not wait for it.
func (l *Loop) Pass() bool {
	defer func() { l.ended = time.Now() }()
	l.cfg.Alive()
	l.input.Lock()
	facts, view, err := l.input.facts, l.input.view, l.input.err
	l.input.Unlock()
	if err != nil || view == nil {
		l.holds.broke(time.Now(), inputObject)
		if err != nil && !errors.As(err, &condition.Reported{}) {
			l.report.broken("reading the state of this host", err)
		}
		return false
	}
	if l.retry.Swap(false) {
		l.holds.retry()
	}
	l.own = view.Own.Subnet
	change := l.plan.Update(facts, *view)
	change.All = change.All || l.undone
	l.report.skipped(l.plan.Skipped())
	if l.cfg.Rivals != nil {
		l.cfg.Rivals(l.plan.Rivals())
	}
	done := pass{change: change, left: l.left}
	stale := l.stale.Load()
	if stale && l.budget.Rest(time.Now()) > 0 {
		if change.Nothing() {
			return l.ok
		}
		stale = false
	}
	if !stale && l.partial(change) {
		l.passPart(*view, &done)
	} else if !l.passWhole(facts, *view, &done) {
		l.undone, l.ok = true, false
		return false
	}
	l.undone = false
	if left := len(done.failed)+done.held > 0; left || !done.part {
		l.left = left && (done.left || !change.Nothing()) // what is left of a repair is one, too
	}
	if !done.part && l.cfg.Missing != nil {
		l.cfg.Missing(causes(done.missing))
	}
	done.fighting = l.holds.fighting(time.Now()) || l.budget.Over()
	l.report.pass(done)
	l.ok = !done.own
	return l.ok
}

// partial tells whether the last reading will do for a change.
func (l *Loop) partial(c backend.Change) bool {
	want := l.plan.Want()
	if c.All || l.whole || want.NextHopsPay(l.reading) != l.scope.NextHops || want.SpreadPays(l.reading) != l.scope.Spread {
		return false
	}
	for k := range c.Now.Routes {
		if k.Link != "" && !l.scope.OwnsLink(k.Link) && !slices.Contains(l.scope.Carriers, k.Link) {
			return false
		}
	}
	return true
}

func (l *Loop) passPart(v lease.View, done *pass) {
	c := done.change
	delta := dataplane.Diff(c.Now, l.reading.Part(c.Was, c.Now), l.scope, v.Complete)
	done.part, done.conflicts = true, delta.Conflicts
	l.apply(delta, done)
	l.whole = len(done.failed)+len(delta.Conflicts) > 0
}

// passWhole reads the kernel, puts right what differs, and looks again. It tells
// whether the kernel could be read.
func (l *Loop) passWhole(f host.Facts, v lease.View, done *pass) bool {
	want := l.plan.Want()
	l.scope = want.ScopeOf(l.cfg.Network, f.Uplink)
	l.whole = true
	l.stale.Store(false) // what happens from here on is for the next pass
	for round := range rounds {
		l.budget.Begin()
		l.reading = dataplane.State{} // not two at a time: they are large
		have := dataplane.NewState()
		if err := l.cfg.Driver.Snapshot(l.scope, &have); err != nil {
			l.holds.broke(time.Now(), inputObject)
			l.report.broken("reading the kernel", err)
			return false
		}
		l.holds.clear(inputObject)
		l.reading, l.read = have, time.Now()
		l.scope.NextHops, l.scope.Spread = want.NextHopsPay(have), want.SpreadPays(have)
		delta := dataplane.Diff(want, have, l.scope, v.Complete)
		delta.Conflicts = append(delta.Conflicts, l.plan.Refused()...)
		done.conflicts = delta.Conflicts
		l.cost = l.budget.Spend(time.Now())
		l.budget.Begin()
		done.doubt = round == 0
		again := l.apply(delta, done)
		if done.change.Nothing() {
			l.budget.Spend(time.Now())
		}
		if again && done.change.Nothing() && l.budget.Rest(time.Now()) > 0 {
			l.stale.Store(true) // later: somebody is at it, too
			break
		}
		if !again {
			// What this host lacks for itself, others' things do not go on top of.
			l.whole = done.own
			break
		}
	}
	maps.DeleteFunc(l.refused, func(object string, _ error) bool {
		return !slices.ContainsFunc(done.missing, func(m Missing) bool { return m.Op.Object() == object })
	})
	if l.cfg.Missing != nil {
		done.conflicts = slices.DeleteFunc(slices.Clone(done.conflicts), func(c dataplane.Conflict) bool { return c.Op.Basic(l.own) })
		done.failed = slices.DeleteFunc(done.failed, func(f failure) bool { return f.op.Basic(l.own) || lacksLink(done.missing, f.op) })
	}
	return true
}

// pass is what a pass did, for the report.
type pass struct {
	change    backend.Change // of what is wanted
	part      bool           // only what has changed was looked at
	left      bool           // the pass before left something for this one
	applied   tally
	doubt     bool // the reading may be overtaken: what fails is read and tried again before it counts
	doubted   int  // what failed so in this round
	failed    []failure
	fighting  bool // somebody undoes an object again and again, or so much that it takes too long
	held      int  // left for later: failed or fought over lately
	conflicts []dataplane.Conflict
	own       bool // something of this host's own is missing
	missing   []Missing
}

type failure struct {
	op    dataplane.Op
	err   error
	first bool // it did not fail the time before
}

// apply carries out the operations that are due, and tells whether it is worth
// looking again.
func (l *Loop) apply(delta *dataplane.Delta, done *pass) (again bool) {
	now := time.Now()
	done.held, done.doubted, done.own, done.missing = 0, 0, false, nil
	for _, c := range delta.Conflicts {
		if c.Op.Basic(l.own) {
			done.own = true
			done.missing = append(done.missing, Missing{Op: c.Op, Reason: c.Reason})
		}
	}
	total, before := delta.Len(), done.applied.n
	due := make([]dataplane.Op, 0, min(chunk, total))
	for op := range delta.Ops() {
		if l.holds.held(now, op) {
			done.held++
			if op.Basic(l.own) {
				done.own = true
				if err := l.refused[op.Object()]; err != nil {
					done.missing = append(done.missing, Missing{Op: op, Err: err})
				}
			}
		} else if due = append(due, op); len(due) == chunk {
			l.carryOut(due, done)
			due = due[:0]
			l.report.progress(done.applied.n-before, total)
		}
	}
	l.carryOut(due, done)
	return done.applied.n > before || done.doubted > 0
}

// carryOut has a chunk of operations done and notes what became of them.
func (l *Loop) carryOut(due []dataplane.Op, done *pass) {
	if len(due) == 0 {
		return
	}
	l.cfg.Alive()
	if l.cfg.Before != nil {
		l.cfg.Before()
	}
	now := time.Now()
	for i, err := range l.cfg.Driver.Apply(due) {
		op := due[i]
		if err != nil {
			own := op.Basic(l.own)
			done.own = done.own || own
			if done.doubt && !l.holds.failing(op) {
				done.doubted++
				continue
			}
			if own {
				l.refused[op.Object()] = err
				done.missing = append(done.missing, Missing{Op: op, Err: err})
			}
			first := l.holds.broke(now, op.Object())
			done.failed = append(done.failed, failure{op, err, first})
			continue
		}
		if done.part { // after a whole pass that changed something comes another reading
			l.reading.Note(op)
		}
		// What is wanted as before, and was not so, somebody has undone.
		l.holds.did(now, op, op.Kind != dataplane.KindNextHop && !done.change.About(op))
		done.applied.add(op)
		l.report.applied(op)
	}
}

// lacksLink reports whether an operation is on a link that is missing.
func lacksLink(missing []Missing, op dataplane.Op) bool {
	return slices.ContainsFunc(missing, func(m Missing) bool {
		return m.Op.Kind == dataplane.KindLink && m.Op.Device() == op.Device()
	})
}

// causes leaves out what is missing because its link is.
func causes(missing []Missing) []Missing {
	return slices.DeleteFunc(slices.Clone(missing), func(m Missing) bool { return m.Op.Kind != dataplane.KindLink && lacksLink(missing, m.Op) })
}

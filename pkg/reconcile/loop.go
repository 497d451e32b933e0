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
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Kernel is what is made right: the real one, or a model of it.
type Kernel interface {
	// Snapshot reads what lies in scope.
	Snapshot(dataplane.Scope) (dataplane.State, error)
	// Apply carries out the operations in order, as far as possible, and gives
	// one result for each.
	Apply([]dataplane.Op) []error
}

// Input is all that the wanted state follows from.
type Input struct {
	Facts host.Facts
	View  lease.View
}

// Config of a Loop.
type Config struct {
	Kernel  Kernel
	Backend backend.Backend
	Network netip.Prefix
	// Input gives the latest input. An error leaves the kernel as it is.
	Input func() (Input, error)
	Log   *slog.Logger
}

const (
	// debounce lets a burst of events end before the kernel is read.
	debounce = 20 * time.Millisecond
	// resync is the safety net under lost events.
	resync = time.Minute
	// rounds bounds the look-again within a pass. Two suffice on a healthy
	// kernel: one that changes, one that finds nothing.
	rounds = 4
	// chunk is how many operations are carried out at a time: an operation takes
	// half a kilobyte, and there may be tens of thousands.
	chunk = 1024
)

// Loop reconciles. Make one with New.
type Loop struct {
	cfg     Config
	wake    chan struct{}
	retry   atomic.Bool // what failed may work now
	holds   *holds
	report  *report
	settled dataplane.State // wanted state of the last pass that left nothing undone
}

// New makes a Loop that has done nothing yet.
func New(cfg Config) *Loop {
	return &Loop{cfg: cfg, wake: make(chan struct{}, 1), holds: newHolds(), report: newReport(cfg.Log)}
}

// Trigger asks for a pass soon. It never blocks; many calls make one pass.
func (l *Loop) Trigger() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Retry asks for a pass soon that tries again what has failed, because the reason
// may be gone: the uplink is back. It is not for what our own attempts cause, or they
// would follow one another without a pause.
func (l *Loop) Retry() {
	l.retry.Store(true)
	l.Trigger()
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

// Run makes passes until ctx ends: on Trigger, when something that failed is
// due again, and once a minute.
func (l *Loop) Run(ctx context.Context) {
	for l.wait(ctx) == nil {
		l.Pass()
	}
}

// wait blocks until there is a reason for a pass.
func (l *Loop) wait(ctx context.Context) error {
	timer := time.NewTimer(min(resync, l.holds.next(time.Now())))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	case <-l.wake:
	}
	burst := time.NewTimer(debounce)
	defer burst.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-burst.C:
	}
	l.drain()
	return nil
}

func (l *Loop) drain() {
	select {
	case <-l.wake:
	default:
	}
}

// Pass brings the kernel up to date once and tells whether what this host needs
// for itself stands: its link and its address. Failures with single peers do not
// count; they are tried again later. Passes must not overlap: Settle and Run are
// for one goroutine.
func (l *Loop) Pass() (ok bool) {
	in, err := l.cfg.Input()
	if err != nil {
		l.holds.broke(time.Now(), inputObject)
		l.report.broken("reading the state of this host", err)
		return false
	}
	if l.retry.Swap(false) {
		l.holds.retry()
	}
	want, skipped := l.cfg.Backend.Desired(in.Facts, in.View)
	l.report.skipped(skipped)
	scope := want.ScopeOf(l.cfg.Network)
	done := pass{wanted: !want.Equal(l.settled)}
	for range rounds {
		have, err := l.cfg.Kernel.Snapshot(scope)
		if err != nil {
			l.holds.broke(time.Now(), inputObject)
			l.report.broken("reading the kernel", err)
			return false
		}
		l.holds.clear(inputObject)
		scope.NextHops = want.NextHopsPay(have)
		delta := dataplane.Diff(want, have, scope, in.View.Complete)
		done.conflicts = delta.Conflicts
		if !l.apply(delta, &done) {
			break
		}
	}
	if len(done.failed)+done.held == 0 {
		l.settled = want
	}
	l.report.pass(done)
	return !done.own
}

// pass is what a pass did, for the report.
type pass struct {
	wanted    bool // the wanted state differs from that of the pass before
	applied   tally
	failed    []failure
	fights    []dataplane.Op // undone by somebody else again and again
	held      int            // left for later: failed or fought over lately
	conflicts []dataplane.Conflict
	own       bool // something of this host's own is missing
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
	done.held, done.own = 0, false
	for _, c := range delta.Conflicts {
		done.own = done.own || ownObject(c.Op)
	}
	total, before := delta.Len(), done.applied.n
	due := make([]dataplane.Op, 0, min(chunk, total))
	for op := range delta.Ops() {
		if l.holds.held(now, op) {
			done.held++
			done.own = done.own || ownObject(op)
		} else if due = append(due, op); len(due) == chunk {
			l.carryOut(due, done)
			due = due[:0]
			l.report.progress(done.applied.n-before, total)
		}
	}
	l.carryOut(due, done)
	return done.applied.n > before
}

// carryOut has a chunk of operations done and notes what became of them.
func (l *Loop) carryOut(due []dataplane.Op, done *pass) {
	if len(due) == 0 {
		return
	}
	now := time.Now()
	for i, err := range l.cfg.Kernel.Apply(due) {
		op := due[i]
		if err != nil {
			first := l.holds.broke(now, op.Object())
			done.failed = append(done.failed, failure{op, err, first})
			done.own = done.own || ownObject(op)
			continue
		}
		// What was as it is wanted, and is so no more, somebody has undone.
		if l.holds.did(now, op, l.settled.Has(op)) {
			done.fights = append(done.fights, op)
		}
		done.applied.add(op)
		l.report.applied(op)
	}
}

// ownObject tells whether an operation is about this host itself, without
// which no peer can be reached.
func ownObject(op dataplane.Op) bool {
	return op.Verb != dataplane.Del && (op.Kind == dataplane.KindLink || op.Kind == dataplane.KindAddr)
}

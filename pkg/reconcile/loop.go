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
	"net/netip"
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
	BeforeApply func()
	// Rivals, if set, is told in each pass which peers are left out for having the MAC
	// of this host.
	Rivals func([]lease.Lease)
	// Missing is called after each whole pass with what this host needs for itself and
	// lacks, without what is missing only because its link is. It must not block. The log
	// then says nothing of these; nil: it does.
	Missing func([]Missing)
	// Alive, if set, is called when the loop is at work: at least once a minute, and between
	// parts of much work.
	Heartbeat  func()
	Conditions *condition.List
	Log        *slog.Logger
}

const (
	// debounce lets a burst of events end before the kernel is read, and is the least
	// time between passes.
	debounce = 20 * time.Millisecond
	// quietTime is how long nothing must have come for a burst to have ended.
	quietTime = 5 * time.Millisecond
	// resync is the safety net under lost events.
	resync = time.Minute
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
	stale      atomic.Bool // what is known of the kernel may be wrong
	retry      atomic.Bool // what failed may work now
	plan       *backend.Plan
	backoffs   *backoffs
	report     *report
	budget     pace.Budget // of whole passes
	created    time.Time
	lastEvent  atomic.Int64  // when the kernel was last said to be changed, since made, in nanoseconds
	firstEvent atomic.Int64  // when it was first, since the last reading; 0: it was not
	readCost   time.Duration // of looking, the last time
	passEnded  time.Time     // when the last pass did

	aborted    bool             // the last pass did not get through: everything counts as newly wanted
	deferred   bool             // the last one left something for later
	baseReady  bool             // what this host needs for itself stands
	scope      dataplane.Scope  // of the last reading
	reading    dataplane.State  // what the kernel held then, and what was done to it since
	readAt     time.Time        // when it was read
	needsWhole bool             // the reading is of no use for a part
	own        netip.Prefix     // this host's IPv4 subnet
	baseErrs   map[string]error // own objects that failed the last time, and why

	stats stats
}

// wholePassBudget bounds what they cost when somebody keeps changing the kernel, with enough at once
// for any accident.
func wholePassBudget() pace.Budget {
	return pace.Budget{Clock: pace.ProcessTime, OneIn: 40, Burst: 2 * time.Second, Max: resync}
}

// New makes a Loop that has done nothing yet, and does nothing before it has facts and a view.
func New(cfg Config) *Loop {
	if cfg.Heartbeat == nil {
		cfg.Heartbeat = func() {}
	}
	l := &Loop{
		cfg: cfg, wake: make(chan struct{}, 1), plan: backend.NewPlan(cfg.Backend, cfg.Network),
		backoffs: newBackoffs(), report: newReport(cfg.Log, cfg.Conditions), budget: wholePassBudget(), created: time.Now(), aborted: true, needsWhole: true,
		baseErrs: map[string]error{}, stats: newStats(),
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
	now := int64(time.Since(l.created))
	l.lastEvent.Store(now)
	l.firstEvent.CompareAndSwap(0, max(now, 1))
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
	for !l.Pass(ctx) {
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
		l.Pass(ctx)
	}
}

// wait blocks until there is a reason for a pass, and it is time for one.
func (l *Loop) wait(ctx context.Context) error {
	now := time.Now()
	idle := min(resync-now.Sub(l.readAt), l.backoffs.next(now))
	if l.stale.Load() {
		idle = max(l.budget.Rest(now), l.backoffs.remaining(now, inputObject))
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	report := time.NewTimer(l.report.untilDue(now))
	defer report.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-report.C:
			l.report.flush()
			report.Reset(l.report.untilDue(time.Now())) // the rest of it, if there is any
			continue
		case <-timer.C:
			l.stale.Store(true)
		case <-l.wake:
		}
		return l.waitForQuiet(ctx)
	}
}

// waitForQuiet waits until a burst of triggers has ended. A change of what is wanted is known as a whole.
// Damage may go on, and what is read meanwhile has to be read again, so calm waits for its end, for
// up to twice the time that a reading takes.
func (l *Loop) waitForQuiet(ctx context.Context) error {
	at := l.passEnded.Add(debounce)
	if l.stale.Load() {
		at = time.Now().Add(debounce)
	}
	for last := time.Now().Add(2 * l.readCost); ; {
		if err := pace.Sleep(ctx, time.Until(at)); err != nil {
			return err
		}
		at = l.created.Add(time.Duration(l.lastEvent.Load()) + quietTime)
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

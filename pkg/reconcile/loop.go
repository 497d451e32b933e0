// Package reconcile brings the kernel to the wanted state: it computes the wanted state, reads the
// present one, applies the difference, and reads again.
//
// It does not define what is wanted, nor how the kernel is read or written; it decides when to
// read, how often to retry, and what to report. Invariant: every change follows from a comparison
// of both sides, never from an event; nothing is deleted before the view of the network is
// complete.
package reconcile

import (
	"context"
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

// Config configures a Loop.
type Config struct {
	Driver  driver.Driver
	Backend backend.Backend
	Network netip.Prefix
	// BeforeApply is called before a batch of operations, which may add new peers.
	BeforeApply func()
	// Rivals is called in each pass with the peers that are skipped because they have this host's
	// MAC.
	Rivals func([]lease.Lease)
	// Skipped is called in each pass with the peers that are skipped. It must not block, nor modify
	// the slice.
	Skipped func([]backend.Skipped)
	// Missing is called after each whole pass with the objects that this host itself needs and that
	// are missing, except those that are missing only because their link is. It must not block.
	// These objects are not logged here.
	Missing func([]Missing)
	// Repaired is called after each pass that has repaired what another program had changed: with
	// the numbers of operations by kind, as in the log, and the command of the first one. It must
	// not block.
	Repaired func(what, example string)
	// Heartbeat is called while the loop makes progress: at least once a minute, and between batches
	// of operations.
	Heartbeat  func()
	Conditions *condition.List
	Log        *slog.Logger
}

const (
	// debounce is the delay after an event, so that a burst of events can end, and the minimum time
	// between passes.
	debounce = 20 * time.Millisecond
	// quietTime is the time without an event after which a burst counts as ended.
	quietTime = 5 * time.Millisecond
	// resync is the time between two readings, in case that an event is lost.
	resync = time.Minute
)

// Loop reconciles the kernel. Make one with New.
type Loop struct {
	cfg   Config
	wake  chan struct{}
	input struct { // the latest values
		sync.Mutex
		facts *host.Facts // nil before the first
		err   error       // why there are none
		view  *lease.View // nil before the first
		// received is when the first event was received that view and the views before it show, and
		// that no pass has begun with; zero if there is none.
		received time.Time
	}

	// The following fields belong to the goroutine that makes passes, except atomic ones.
	stale      atomic.Bool // the last reading may be outdated
	retry      atomic.Bool // failed operations may succeed now
	blocked    atomic.Bool // operations are blocked by objects of others
	plan       *backend.Plan
	backoffs   *backoffs
	report     *report
	budget     pace.Budget // of processor time for whole passes
	created    time.Time
	lastEvent  atomic.Int64  // time of the last event, in nanoseconds since created
	firstEvent atomic.Int64  // time of the first event since the last reading; 0 if there was none
	readCost   time.Duration // duration of the last reading and comparison
	passEnded  time.Time     // end of the last pass

	aborted    bool            // the last pass was not completed: everything counts as newly wanted
	deferred   bool            // the last pass has deferred operations
	baseReady  bool            // the objects that this host itself needs exist
	scope      dataplane.Scope // of the last reading
	reading    dataplane.State // the last reading, with the operations since
	readAt     time.Time       // time of the last reading
	needsWhole bool            // the reading cannot be used for a partial pass
	own        netip.Prefix    // this host's IPv4 subnet
	received   time.Time       // when the first event was received that no completed pass has handled; zero if there is none

	stats stats

	snapshot atomic.Pointer[Snapshot] // of the last completed pass
	changes  changes                  // of the peers' leases
}

// New returns a Loop. It makes no changes before it has facts and a view.
func New(cfg Config) *Loop {
	return &Loop{
		cfg: cfg, wake: make(chan struct{}, 1), plan: backend.NewPlan(cfg.Backend, cfg.Network),
		backoffs: newBackoffs(), report: newReport(cfg.Log, cfg.Conditions), created: time.Now(), aborted: true, needsWhole: true,
		// For a fight with another program, with a burst that suffices for any single incident.
		budget: pace.Budget{Clock: pace.ProcessTime, OneIn: 40, Burst: 2 * time.Second, Max: resync},
		stats:  newStats(),
	}
}

// SetFacts sets the facts about this host, or why they are unknown, in which case the kernel is
// left as it is. Like all methods that set or trigger something, it never blocks, and only the last
// of several calls between two passes counts.
func (l *Loop) SetFacts(f host.Facts, err error) {
	l.input.Lock()
	l.input.facts, l.input.err = &f, err
	l.input.Unlock()
	l.trigger()
}

// SetView sets the view of the network.
func (l *Loop) SetView(v lease.View) {
	l.input.Lock()
	l.input.view, l.input.received = &v, earlier(l.input.received, v.Received)
	l.input.Unlock()
	l.changes.update(v, time.Now())
	l.trigger()
}

// earlier returns the earlier of two times, of which zero means none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// trigger requests a pass.
func (l *Loop) trigger() {
	pace.Wake(l.wake)
}

// Reread requests a pass that reads the kernel, because another program may have changed it.
func (l *Loop) Reread() {
	now := int64(time.Since(l.created))
	l.lastEvent.Store(now)
	l.firstEvent.CompareAndSwap(0, max(now, 1))
	l.stale.Store(true)
	l.trigger()
}

// Retry is Reread that also retries failed operations, because the reason may be gone, for example
// if the uplink is up again. It must not be used for events that failed attempts themselves cause,
// or they would follow one another without a pause.
func (l *Loop) Retry() {
	l.retry.Store(true)
	l.Reread()
}

// Unblock is Reread if operations are blocked by objects of other programs, such as an address, which
// may be gone.
func (l *Loop) Unblock() {
	if l.blocked.Load() {
		l.Reread()
	}
}

// Settle makes passes until the objects that this host itself needs exist.
func (l *Loop) Settle(ctx context.Context) error {
	for !l.Pass(ctx) {
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Run makes passes until ctx ends: when an input has changed, when a failed operation is due again,
// and once a minute.
func (l *Loop) Run(ctx context.Context) {
	for l.wait(ctx) == nil {
		l.Pass(ctx)
	}
}

// wait waits until there is a reason for a pass and it is due.
func (l *Loop) wait(ctx context.Context) error {
	now := time.Now()
	idle := min(resync-now.Sub(l.readAt), l.backoffs.next(now))
	if l.stale.Load() {
		idle = max(l.budget.Rest(now), l.backoffs.remaining(now, inputObject))
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.report.due.C:
			l.report.due.Received()
			l.report.flush()
			continue
		case <-timer.C:
			l.stale.Store(true)
		case <-l.wake:
		}
		return l.waitForQuiet(ctx)
	}
}

// waitForQuiet waits until a burst of triggers has ended. A change of the wanted state arrives as a
// whole. Changes by other programs may continue, and a reading during them must be repeated, so it
// waits for their end, up to twice the duration of a reading.
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
			select {
			case <-l.wake:
			default:
			}
			return nil
		}
	}
}

// Package filter decides when packet filter rules are looked at, and by which tool they are kept.
//
// One keeper is preferred. For as long as it cannot keep the rules another one stands in for it,
// with a condition. What the preferred one held stays meanwhile, for it may be all that there is;
// once it can again, it gets its rules first, and then the stand-in's go. A keeper that is busy,
// hangs or lacks something fails; it is absent only if it says so.
//
// An accept helps only in the place where it stands, so accepts are kept beside the rules where
// others may drop the network's packets. What cannot be helped there is a condition.
//
// Invariants: an address family is a value here, never a case of its own. Nothing waits for a
// command that hangs but its own goroutine. However often others change rules, looks take a share
// of the time only. At the end the rules stay.
package filter

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/netconf"
	"flanneld/pkg/pace"
)

// Options say what is wanted of the packet filter.
type Options struct {
	Masquerade bool          // what leaves the network gets this host's address
	KeepPorts  bool          // do not ask for random source ports with it
	Forward    bool          // let the network's traffic through whatever others do
	Lock       bool          // only hosts with a lease may send to the tunnel's port
	Resync     time.Duration // between two looks at iptables, which does not tell of all changes
}

// Config of a Filter.
type Config struct {
	Options
	Keepers  Keepers
	Choice   netconf.Choice     // whether nftables are preferred
	Previous []firewall.Overlay // that this host had, as it noted itself
	// Taken reports whether another daemon of this host serves the network of a former
	// overlay by now, whose rules are that one's then.
	InUse      func(firewall.Overlay) bool
	Firewalld  func(context.Context) (Firewalld, error) // connects to it
	Conditions *condition.List
	Log        *slog.Logger
}

// Keepers are all those that may hold rules on this host.
type Keepers struct {
	IPTables firewall.Keeper // as it is installed, of either variant
	Compat   firewall.Keeper // the variant of iptables that writes nftables
	Legacy   Inspecting      // the one that has tables of its own
	NFTables Inspecting
}

// Inspecting is a keeper that also reads what others have where its own rules are.
type Inspecting interface {
	firewall.Keeper
	firewall.Inspector
}

// Input is what the wanted rules of one address family follow from.
type Input struct {
	firewall.Overlay
	Tunnel firewall.Tunnel
	Probes *Probes // nil: not known now; then nothing is asked
}

// Probes are packets whose fate is asked for.
type Probes struct {
	Tunnel *firewall.Packet  // from any peer to the tunnel's port; nil if there is none
	Peers  []netip.Addr      // that send such packets; the first MostPeers count
	Inner  []firewall.Packet // between containers of this host and of another one
}

const (
	// idle is the time between two looks while nothing happens, unless a keeper wants more.
	idle = time.Minute
	// burst lets a reload by somebody else end before the rules are read.
	burst = 50 * time.Millisecond
	// lockPoll is the time between two looks at a lock that somebody holds.
	lockPoll = 250 * time.Millisecond

	// Attempts that fail are firstRetry apart at first, then up to lastRetry.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// syncShare are the time that looks take while somebody changes rules all the time.
func syncShare() pace.Share { return pace.Share{Share: 10, Most: 2 * time.Second} }

// newFight returns what is no fight yet over rules.
func newFight() pace.Fight {
	return pace.Fight{Limits: &pace.Limits{Burst: 10, Leak: 5 * time.Second, Pause: 5 * time.Second}}
}

// IDs of conditions.
const (
	syncCondition  = "packet-filter"
	fightCondition = "packet-filter/fight"
)

// Filter keeps the packet filter as a network needs it. Make one with New. Set, SetChoice and
// Tried are for any goroutine, and never block.
type Filter struct {
	cfg   Config
	trust *trust

	input  atomic.Pointer[[]Input] // one a family; nil: not known yet
	choice atomic.Int32            // a netconf.Choice
	wake   chan struct{}
	known  chan struct{} // closed with the first input
	tried  chan struct{} // closed after the first look
	begin  sync.Once     // closes known
	stats  stats

	// What follows belongs to Run's goroutine.

	now       []Input            // at the present look
	sets      []firewall.Ruleset // that follow from it
	overlays  []firewall.Overlay // that this host has or had
	selection selection          // of the rules
	secondary secondary          // them
	written   bool               // they were right once, so that changes are repairs
	retry     pace.Backoff
	fight     pace.Fight
	syncedAt  time.Time
	minPause  time.Duration // from then to a look that others cause
}

// New returns a filter that keeps nothing before Run.
func New(cfg Config) *Filter {
	f := &Filter{
		cfg: cfg, wake: make(chan struct{}, 1), known: make(chan struct{}), tried: make(chan struct{}),
		retry: pace.Backoff{First: firstRetry, Most: lastRetry}, fight: newFight(),
	}
	f.trust = newTrust(cfg, f.trigger)
	f.choice.Store(int32(cfg.Choice))
	for _, o := range cfg.Previous {
		if o.Network.IsValid() && o.Subnet.IsValid() {
			f.overlays = append(f.overlays, o)
		}
	}
	return f
}

// Set says what the rules follow from now on, one Input a family and at least one. They are looked
// at soon if they are to be others.
func (f *Filter) Set(in []Input) {
	before := f.input.Swap(&in)
	f.begin.Do(func() { close(f.known) })
	if before != nil && !sameRules(*before, in) {
		f.trigger()
	}
}

// sameRules reports whether two inputs lead to the same rules.
func sameRules(a, b []Input) bool {
	return slices.EqualFunc(a, b, func(a, b Input) bool { return a.Overlay == b.Overlay && reflect.DeepEqual(a.Tunnel, b.Tunnel) })
}

// SetChoice changes who keeps the rules, and reports whether that is a change.
func (f *Filter) SetChoice(c netconf.Choice) bool {
	if f.choice.Swap(int32(c)) == int32(c) {
		return false
	}
	f.trigger()
	return true
}

// Tried returns a channel that is closed after the first attempt to have the rules right.
func (f *Filter) Tried() <-chan struct{} { return f.tried }

// trigger asks for a look soon.
func (f *Filter) trigger() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run keeps the rules from the first Set until ctx ends.
func (f *Filter) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { f.trust.run(ctx) })
	select {
	case <-ctx.Done():
		return
	case <-f.known:
	}
	f.syncAndReport(ctx)
	close(f.tried)
	for ctx.Err() == nil {
		f.runWithKeeper(ctx)
	}
}

// runWithKeeper keeps the rules until somebody else holds them.
func (f *Filter) runWithKeeper(ctx context.Context) {
	watching, cancel := context.WithCancel(ctx) // an attempt goes on after it
	defer cancel()
	signs, who := f.watch(watching), f.selection.active
	pause := time.Duration(0) // for what was changed since the last look
	for f.selection.active == who {
		f.wait(ctx, pause, signs)
		if ctx.Err() != nil {
			return
		}
		begun := time.Now()
		calm, fights := f.syncAndReport(ctx)
		pause = min(calm, f.inspect(ctx))
		if f.minPause = syncShare().Rest(time.Since(begun)); fights {
			pause, f.minPause = calm, calm
		}
	}
}

// wait waits until a look is due: after a pause, when somebody has changed rules, when an
// attempt has ended or the lock that it needs is free.
func (f *Filter) wait(ctx context.Context, pause time.Duration, signs <-chan struct{}) {
	due := time.Now().Add(pause)
	var ended <-chan struct{}
	if f.selection.attempt != nil {
		ended = f.selection.attempt.done
	}
	for {
		pause = max(time.Until(due), 0)
		if f.selection.locked != nil {
			pause = min(pause, lockPoll)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
			if f.selection.locked != nil && time.Now().Before(due) && !f.selection.locked.Free() {
				continue
			}
		case <-f.wake:
			f.settle(ctx, 0, signs)
		case <-ended:
		case <-signs:
			f.settle(ctx, burst, signs)
		}
		timer.Stop()
		return
	}
}

// settle waits until a burst of changes is over, no look that takes processes follows another at
// once, and looks take a share of the time only.
func (f *Filter) settle(ctx context.Context, wait time.Duration, signs <-chan struct{}) {
	rest := max(f.minPause, f.gap())
	_ = pace.Sleep(ctx, max(wait, time.Until(f.syncedAt.Add(rest)))) // the caller sees that ctx has ended
	select {
	case <-signs:
	default:
	}
}

// gap returns the least time between two looks, by the tools that they take.
func (f *Filter) gap() time.Duration {
	gap := max(f.selection.active.traits.Gap, f.secondary.legacyGap)
	if f.selection.preferredErr != nil {
		gap = max(gap, f.selection.gap)
	}
	return gap
}

// syncAndReport makes the rules right. It returns the time until the next look, and whether somebody keeps
// undoing them, so that there should be none before.
func (f *Filter) syncAndReport(ctx context.Context) (pause time.Duration, fights bool) {
	holder, wanted := f.selection.active, f.now
	f.now = *f.input.Load()
	changes, err := f.sync(ctx)
	f.syncedAt = time.Now()
	if ctx.Err() != nil {
		return firstRetry, false
	}
	repaired := len(changes) > 0 && f.written && f.selection.active == holder && sameRules(wanted, f.now)
	f.stats.count(resultOf(changes, repaired, err), f.selection.active)
	f.report(changes, repaired, err)
	pause = idle
	if every := f.selection.active.traits.Resync; every > 0 {
		pause = every
	}
	if err != nil || f.selection.preferredErr != nil || f.secondary.legacyErr != nil || !f.secondary.unusedRemoved {
		pause = min(pause, f.retry.Failed())
		if f.selection.tooEarly {
			pause = min(pause, max(time.Until(f.selection.next), 0))
		}
	} else {
		f.retry.Reset()
	}
	if err != nil {
		return pause, false
	}
	if f.written = true; repaired {
		if calm := f.fight.Repaired(f.syncedAt); calm > 0 {
			f.cfg.Conditions.Begin(condition.Condition{
				ID: fightCondition, Severe: true, Text: "another program keeps undoing packet filter rules, backing off",
				Fields: []any{"changes", strings.Join(changes, "; ")},
			})
			return calm, true
		}
	}
	if !f.fight.On(f.syncedAt) {
		f.cfg.Conditions.End(fightCondition)
	}
	return pause, false
}

// sync has the rules right where they are held, then what is beside them, and then nothing left
// where they were before.
func (f *Filter) sync(ctx context.Context) (changes []string, err error) {
	f.overlays = slices.DeleteFunc(f.overlays, func(o firewall.Overlay) bool { return f.isPrevious(o) && f.cfg.InUse(o) })
	for _, in := range f.now {
		if !slices.Contains(f.overlays, in.Overlay) {
			f.overlays = append(f.overlays, in.Overlay)
		}
	}
	// What a former network has left is removed once: it may be another daemon's later.
	defer func() {
		if err == nil {
			f.overlays = slices.DeleteFunc(f.overlays, f.isPrevious)
		}
	}()
	f.sets = f.rulesets()
	if changes, err = f.syncRules(ctx); err != nil {
		return changes, err
	}
	more, err := f.syncAccepts(ctx)
	changes = append(changes, more...)
	if err == nil && f.selection.preferredErr == nil && !f.secondary.unusedRemoved {
		changes = append(changes, f.removeUnused(ctx)...)
	}
	return changes, err
}

// isPrevious reports whether this host was in an overlay of another network than now.
func (f *Filter) isPrevious(o firewall.Overlay) bool {
	return !slices.ContainsFunc(f.now, func(in Input) bool { return in.Network == o.Network })
}

// rulesets returns what is wanted now.
func (f *Filter) rulesets() (sets []firewall.Ruleset) {
	for _, in := range f.now {
		sets = append(sets, firewall.Ruleset{
			Family: firewall.FamilyOf(in.Network),
			Owner:  firewall.Owner{Network: in.Network, Overlays: slices.Clone(f.overlays)},
			Chains: firewall.Rules(firewall.Options{
				Overlay: in.Overlay, Masquerade: f.cfg.Masquerade, RandomPorts: !f.cfg.KeepPorts,
				Forward: f.cfg.Forward, Tunnel: in.Tunnel,
			}),
		})
	}
	return sets
}

// report says what was changed, and what cannot be.
func (f *Filter) report(changes []string, repaired bool, err error) {
	if len(changes) > 0 {
		msg := "wrote packet filter rules"
		if repaired {
			msg = "repaired packet filter rules"
		}
		f.cfg.Log.Info(msg, "changes", strings.Join(changes, "; "))
	}
	switch why := f.selection.preferredErr; {
	case err != nil:
		f.cfg.Conditions.Set(condition.Condition{
			ID: syncCondition, Text: "failed to sync packet filter rules, will retry",
			Fields: []any{"err", err}, Command: findHolder(why),
		})
	case why != nil:
		f.cfg.Conditions.Set(condition.Condition{
			ID: syncCondition, Text: f.selection.conditionText, Fields: []any{"err", why}, Command: findHolder(why),
		})
	default:
		f.cfg.Conditions.End(syncCondition)
	}
}

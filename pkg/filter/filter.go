// Package filter decides when packet filter rules are synced, and with which tool.
//
// One keeper is preferred. While it cannot sync the rules, the other one is used as a fallback, and
// a condition is set. Rules of the preferred keeper are kept meanwhile, because they may still be
// effective. Once it works again, it syncs its rules first, and then the fallback's are removed. A
// keeper counts as absent only if it reports an AbsentError; every other failure may be temporary.
//
// An accept is effective only in its own place, so accepts are also added to the other places where
// foreign rules may drop the network's packets. If that is not possible, a condition is set.
//
// Invariants: there is no code that is specific to an address family. Only the goroutine of an
// attempt waits for a command that hangs. However often other programs change rules, syncing takes
// a limited share of time. The rules stay after the process ends.
package filter

import (
	"cmp"
	"context"
	"fmt"
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

// Options are the settings that the command line has for the packet filter.
type Options struct {
	Masquerade bool          // masquerade packets that leave the network
	KeepPorts  bool          // masquerade without random source ports
	Forward    bool          // accept the network's traffic regardless of other rules
	Lock       bool          // drop packets to the tunnel port from hosts without a lease
	Resync     time.Duration // between two Syncs of iptables, whose Watch misses some changes
}

// Config configures a Filter.
type Config struct {
	Options
	Keepers    Keepers
	Choice     netconf.Choice     // whether nftables is preferred
	Previous   []firewall.Overlay // previous overlays, by this host's own records
	Vacate     Vacate
	Firewalld  func(context.Context) (Firewalld, error) // connects to firewalld
	Repaired   OnRepair
	Conditions *condition.List
	Log        *slog.Logger
}

// OnRepair is called after rules were repaired that another program had changed, with the number of
// changes, and the first one. It must not block.
type OnRepair func(what, example string)

// Vacate returns those of the networks of previous overlays that no other daemon of this host
// serves: only what is left of these is removed. No daemon starts to serve one of them until release
// is called.
type Vacate func(networks []netip.Prefix) (vacant []netip.Prefix, release func())

// Keepers are all keepers that may hold rules on this host.
type Keepers struct {
	IPTables firewall.Keeper // the installed iptables, of either variant
	Compat   firewall.Keeper // iptables-nft
	Legacy   Inspecting      // iptables-legacy
	NFTables Inspecting
}

// Inspecting is a keeper that can also read other programs' rules in the same place.
type Inspecting interface {
	firewall.Keeper
	firewall.Inspector
}

// Input determines the wanted rules of one address family.
type Input struct {
	firewall.Overlay
	Tunnel firewall.Tunnel
	Probes *Probes // nil: unknown, nothing is probed
}

// Probes are packets whose path through other programs' rules is evaluated.
type Probes struct {
	Tunnel *firewall.Packet  // from any peer to the tunnel port; nil if there is no tunnel
	Peers  []netip.Addr      // some source addresses of such packets
	Inner  []firewall.Packet // between containers of this host and of another host
}

const (
	// idle is the time between two syncs without events, unless a keeper needs a shorter one.
	idle = time.Minute
	// burst is the delay after a signal, so that another program's reload can finish.
	burst = 50 * time.Millisecond
	// lockPoll is the time between two checks of a lock that another program holds.
	lockPoll = 250 * time.Millisecond

	// Failed attempts are retried after firstRetry, and then less often, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// syncShare limits the share of time spent on syncing while rules change constantly.
func syncShare() pace.Share { return pace.Share{OneIn: 10, Max: 2 * time.Second} }

// IDs of conditions.
const (
	syncCondition  = "packet-filter"
	fightCondition = "packet-filter/fight"
)

// Filter keeps the packet filter rules of a network in sync. Make one with New. Set, SetChoice and
// Tried are for any goroutine, and never block.
type Filter struct {
	cfg   Config
	trust *trust

	input  atomic.Pointer[[]Input] // one per family; nil before the first Set
	choice atomic.Int32            // a netconf.Choice
	wake   chan struct{}
	tried  chan struct{} // closed after the first attempt
	stats  stats

	// The following fields belong to Run's goroutine.

	now       []Input            // as of the present sync
	sets      []firewall.Ruleset // computed from now
	overlays  []firewall.Overlay // present and previous ones of this host
	selection selection          // of the keeper
	secondary secondary
	written   bool // the rules were complete once, so later changes are repairs
	retry     pace.Backoff
	fight     fight
	syncedAt  time.Time
	minPause  time.Duration // from syncedAt to the next sync after a signal
}

// New returns a Filter that does nothing before Run.
func New(cfg Config) *Filter {
	f := &Filter{
		cfg: cfg, wake: make(chan struct{}, 1), tried: make(chan struct{}),
		retry: pace.Backoff{Initial: firstRetry, Max: lastRetry},
		fight: newFight(cfg.Conditions, fightCondition, "another program keeps undoing packet filter rules, backing off"),
	}
	f.trust = &trust{cfg: cfg, changed: f.trigger, wants: make(chan []netip.Prefix, 1)}
	f.choice.Store(int32(cfg.Choice))
	for _, o := range cfg.Previous {
		if o.Network.IsValid() && o.Subnet.IsValid() {
			f.overlays = append(f.overlays, o)
		}
	}
	return f
}

// Set sets the inputs, one per family and at least one. If the wanted rules change, they are synced
// soon.
func (f *Filter) Set(in []Input) {
	if before := f.input.Swap(&in); before == nil || !sameRules(*before, in) {
		f.trigger()
	}
}

// sameRules reports whether two inputs lead to the same rules.
func sameRules(a, b []Input) bool {
	return slices.EqualFunc(a, b, func(a, b Input) bool { return a.Overlay == b.Overlay && reflect.DeepEqual(a.Tunnel, b.Tunnel) })
}

// SetChoice sets which keeper is preferred, and reports whether that is a change.
func (f *Filter) SetChoice(c netconf.Choice) bool {
	if f.choice.Swap(int32(c)) == int32(c) {
		return false
	}
	f.trigger()
	return true
}

// Tried returns a channel that is closed after the first attempt to sync the rules.
func (f *Filter) Tried() <-chan struct{} { return f.tried }

// trigger requests a sync.
func (f *Filter) trigger() {
	pace.Wake(f.wake)
}

// Run keeps the rules in sync from the first Set until ctx ends.
func (f *Filter) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { f.trust.run(ctx) })
	for known := false; !known; known = f.input.Load() != nil {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
	}
	f.syncAndReport(ctx)
	close(f.tried)
	for ctx.Err() == nil {
		f.runWithKeeper(ctx)
	}
}

// runWithKeeper syncs the rules until another keeper becomes active.
func (f *Filter) runWithKeeper(ctx context.Context) {
	watching, cancel := context.WithCancel(ctx) // ends before ctx does, unlike attempts
	defer cancel()
	signals, who := f.watch(watching), f.selection.active
	pause := time.Duration(0) // there may have been changes since the last sync
	for f.selection.active == who {
		f.wait(ctx, pause, signals)
		if ctx.Err() != nil {
			return
		}
		begun := time.Now()
		next, calm := f.syncAndReport(ctx)
		pause = max(min(next, f.inspect(ctx)), calm)
		f.minPause = max(syncShare().Rest(time.Since(begun)), calm)
	}
}

// wait waits until a sync is due: after a pause, after a signal, when an attempt is done, or when
// the lock that it needs is free.
func (f *Filter) wait(ctx context.Context, pause time.Duration, signals <-chan struct{}) {
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
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			if f.selection.locked != nil && time.Now().Before(due) && !f.selection.locked.Free() {
				continue
			}
		case <-f.wake:
			f.settle(ctx, 0, signals)
		case <-ended:
		case <-signals:
			f.settle(ctx, burst, signals)
		}
		return
	}
}

// settle waits until a burst of changes is over and the minimum time since the last sync has
// passed.
func (f *Filter) settle(ctx context.Context, wait time.Duration, signals <-chan struct{}) {
	// A tool that starts processes needs a longer pause.
	rest := max(f.minPause, f.selection.active.Gap, f.secondary.legacyGap)
	if f.selection.preferredErr != nil {
		rest = max(rest, f.selection.preferred.Traits(f.sets[0].Family).Gap)
	}
	_ = pace.Sleep(ctx, max(wait, time.Until(f.syncedAt.Add(rest)))) // the caller sees that ctx has ended
	select {
	case <-signals:
	default:
	}
}

// syncAndReport syncs the rules and reports the result. It returns the time until the next sync,
// and the time until the earliest one, if another program keeps undoing changes.
func (f *Filter) syncAndReport(ctx context.Context) (pause, calm time.Duration) {
	holder, wanted := f.selection.active, f.now
	f.now = *f.input.Load()
	changes, err := f.sync(ctx)
	f.syncedAt = time.Now()
	if ctx.Err() != nil {
		return firstRetry, 0
	}
	repaired := len(changes) > 0 && f.written && f.selection.active == holder && sameRules(wanted, f.now)
	f.stats.count(f.selection.active, changes, repaired, err)
	f.report(changes, repaired, err)
	pause = cmp.Or(f.selection.active.Resync, idle)
	if err != nil || f.selection.preferredErr != nil || f.secondary.legacyErr != nil || !f.secondary.unusedRemoved {
		pause = min(pause, f.retry.Failed())
		if f.selection.tooEarly {
			pause = min(pause, max(time.Until(f.selection.next), 0))
		}
	} else {
		f.retry.Reset()
	}
	if err == nil {
		f.written = true
		calm = f.fight.synced(repaired, changes)
	}
	if calm > 0 {
		return calm, calm
	}
	return pause, 0
}

// sync updates the rules in the place that holds them, then the accepts in other places, and then
// removes rules from places that held them before.
func (f *Filter) sync(ctx context.Context) (changes []string, err error) {
	defer f.vacatePrevious()()
	for _, in := range f.now {
		if !slices.Contains(f.overlays, in.Overlay) {
			f.overlays = append(f.overlays, in.Overlay)
		}
	}
	// Remove rules of previous networks once only: later they may be another daemon's.
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

// vacatePrevious forgets previous overlays of networks that another daemon serves. It reserves the
// others until release is called.
func (f *Filter) vacatePrevious() (release func()) {
	var networks []netip.Prefix
	for _, o := range f.overlays {
		if f.isPrevious(o) {
			networks = append(networks, o.Network)
		}
	}
	if networks == nil {
		return func() {}
	}
	vacant, release := f.cfg.Vacate(networks)
	f.overlays = slices.DeleteFunc(f.overlays, func(o firewall.Overlay) bool {
		return f.isPrevious(o) && !slices.Contains(vacant, o.Network)
	})
	return release
}

// isPrevious reports whether an overlay is of another network than the present ones.
func (f *Filter) isPrevious(o firewall.Overlay) bool {
	return !slices.ContainsFunc(f.now, func(in Input) bool { return in.Network == o.Network })
}

// rulesets returns the wanted rulesets.
func (f *Filter) rulesets() (sets []firewall.Ruleset) {
	for _, in := range f.now {
		sets = append(sets, firewall.Ruleset{
			Family: firewall.FamilyOf(in.Network.Addr()),
			Owner:  firewall.Owner{Network: in.Network, Overlays: slices.Clone(f.overlays)},
			Chains: firewall.Rules(firewall.Options{
				Overlay: in.Overlay, Masquerade: f.cfg.Masquerade, RandomPorts: !f.cfg.KeepPorts,
				Forward: f.cfg.Forward, Tunnel: in.Tunnel,
			}),
		})
	}
	return sets
}

// countChanges returns a number of changes as text.
func countChanges(of string, changes []string) string {
	if len(changes) == 1 {
		return of + ": 1 change"
	}
	return fmt.Sprintf("%s: %d changes", of, len(changes))
}

// report logs changes and sets conditions for failures.
func (f *Filter) report(changes []string, repaired bool, err error) {
	if len(changes) > 0 {
		msg := "wrote packet filter rules"
		if repaired {
			msg = "repaired packet filter rules"
			f.cfg.Repaired(countChanges("packet filter", changes), changes[0])
		}
		f.cfg.Log.Info(msg, "changes", strings.Join(changes, "; "))
	}
	why := f.selection.preferredErr
	c := condition.Condition{ID: syncCondition, Severity: condition.Notice, Text: f.selection.conditionText, Command: findHolder(why)}
	if err != nil {
		c.Severity, c.Text = condition.Warning, "failed to sync packet filter rules, will retry"
	}
	f.cfg.Conditions.SetError(c, cmp.Or(err, why))
}

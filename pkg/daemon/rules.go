package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/netconf"
	"flanneld/pkg/presence"
)

// RuleOptions say what is wanted of the packet filter.
type RuleOptions struct {
	Masquerade bool          // what leaves the overlay gets this host's address
	KeepPorts  bool          // do not ask for random source ports with it
	Forward    bool          // let the overlay's traffic through whatever others do
	Lock       bool          // only hosts with a lease may send to the tunnel's port
	Resync     time.Duration // between two looks at iptables, of whose changes nobody tells
}

const (
	// ruleResync is the safety net under nftables' events.
	ruleResync = time.Minute
	// ruleBurst lets a reload by somebody else end before the rules are read.
	ruleBurst = 50 * time.Millisecond
	// ruleGap is the least time between two listings by a process.
	ruleGap = 500 * time.Millisecond
	// While somebody changes rules all the time, looks take one part in ruleShare of it: the
	// next one is so many times what the last one took after that, but not more than ruleRest.
	ruleShare = 10
	ruleRest  = 2 * time.Second
	// ruleWait is how long a keeper is waited for before the other one has to do, or ruleWaitShare
	// times what it took last, up to ruleWaitMost. One that is slower goes on meanwhile.
	ruleWait      = 3 * time.Second
	ruleWaitShare = 4
	ruleWaitMost  = 12 * time.Second
	// Attempts that fail are ruleRetry apart at first, then up to ruleRetryMost; where somebody
	// changes rules, ruleRetry or ruleRetryShare times what the last one took.
	ruleRetry      = time.Second
	ruleRetryMost  = 30 * time.Second
	ruleRetryShare = 20
	// ruleLock is the time between two looks at a lock that somebody holds.
	ruleLock = 250 * time.Millisecond

	// Repairs beyond ruleFights in quick succession wait for ruleFightPause.
	ruleFights     = 10
	ruleFightPause = 5 * time.Second
)

// IDs of conditions.
const (
	ruleCondition = "packet-filter"
	leftCondition = "packet-filter-left"
)

// rules keeps the packet filter as the overlay needs it. One keeper is preferred. For as long as
// it cannot keep the rules the other one does, with a condition; what the preferred one held
// stays, for it may be all that there is. Once it can, it gets its rules first, and then the
// other's go.
type rules struct {
	options RuleOptions
	choice  atomic.Int32            // a netconf.Choice; may change
	overlay func() firewall.Overlay // as it is now
	tunnel  func() firewall.Tunnel  // what carries it
	ours    func(uint32) bool       // ports of sockets whose changes of nftables are no news
	log     *slog.Logger

	wake    chan struct{}
	had     []firewall.Overlay // that this host has or had, by its subnet file
	tools   *tools
	set     ruleSet // that holds the rules; nil: none yet
	want    []firewall.Chain
	chosen  netconf.Choice   // by which keepers were tried last
	trying  *attempt         // of the preferred keeper, which has not ended; nil: none
	standIn error            // why the preferred keeper does not hold the rules; nil: it does
	text    string           // of the condition
	took    time.Duration    // what it last took to have them right
	next    time.Time        // of its next attempt, at the earliest
	early   bool             // there was a reason for one before
	locked  *iptables.Tables // whose lock somebody else holds; nil: none
	said    string           // in the log: who keeps the rules
	emptied bool             // nothing of ours is in iptables' nft variant, but the set
	retry   time.Duration    // the pause after the last failure; 0: there was none
	written bool             // they were right once, so that changes are repairs
	fights  *rate.Limiter
	fought  bool
	looked  time.Time
	rest    time.Duration // from then to a look that others cause
	others  others        // beside the set
}

func newRules(o RuleOptions, c netconf.Choice, overlay func() firewall.Overlay, former firewall.Overlay, log *slog.Logger) *rules {
	r := &rules{
		options: o, overlay: overlay, log: log, tools: newTools(),
		wake:   make(chan struct{}, 1),
		fights: rate.NewLimiter(rate.Every(ruleFightPause), ruleFights),
	}
	r.choice.Store(int32(c))
	if former.Network.IsValid() && former.Subnet.IsValid() {
		r.had = append(r.had, former)
	}
	return r
}

// choose changes who keeps the rules, and tells whether that is a change.
func (r *rules) choose(c netconf.Choice) bool {
	if r.choice.Swap(int32(c)) == int32(c) {
		return false
	}
	r.trigger()
	return true
}

// trigger asks for a look at the rules soon.
func (r *rules) trigger() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run keeps the rules until ctx ends.
func (r *rules) run(ctx context.Context) {
	for ctx.Err() == nil {
		r.keep(ctx)
	}
}

// keep keeps the rules until they are kept elsewhere.
func (r *rules) keep(ctx context.Context) {
	watching, cancel := context.WithCancel(ctx) // an attempt goes on after it
	defer cancel()
	signs, set := r.signs(watching), r.set
	pause := time.Duration(0) // for what was changed since the last look
	for r.set == set {
		r.wait(ctx, pause, signs)
		if ctx.Err() != nil {
			return
		}
		begun := time.Now()
		pause = min(r.look(ctx), r.lookBeside(ctx))
		r.rest = min(ruleShare*time.Since(begun), ruleRest)
	}
}

// wait waits until a look is due: after a pause, when somebody has changed rules, when an
// attempt has ended or the lock that it needs is free.
func (r *rules) wait(ctx context.Context, pause time.Duration, signs <-chan struct{}) {
	due := time.Now().Add(pause)
	var ended <-chan struct{}
	if r.trying != nil {
		ended = r.trying.done
	}
	for {
		pause = max(time.Until(due), 0)
		if r.locked != nil {
			pause = min(pause, ruleLock)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
			if r.locked != nil && time.Now().Before(due) && !r.locked.Free() {
				continue
			}
		case <-r.wake:
			r.settle(ctx, 0, signs)
		case <-ended:
		case <-signs:
			r.settle(ctx, ruleBurst, signs)
		}
		timer.Stop()
		return
	}
}

// settle waits until a burst of changes is over, no listing by a process follows another at
// once, and looks take a share of the time only.
func (r *rules) settle(ctx context.Context, wait time.Duration, signs <-chan struct{}) {
	rest := r.rest
	if r.slow() || r.others.slow {
		rest = max(rest, ruleGap)
	}
	timer := time.NewTimer(max(wait, time.Until(r.looked.Add(rest))))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	select {
	case <-signs:
	default:
	}
}

// slow reports whether a look takes processes.
func (r *rules) slow() bool {
	_, byIPTables := r.set.(*iptables.Tables)
	return byIPTables || r.standIn != nil
}

// look makes the rules right and returns the time until the next look.
func (r *rules) look(ctx context.Context) time.Duration {
	set := r.set
	changes, err := r.sync(ctx)
	r.looked = time.Now()
	if ctx.Err() != nil {
		return ruleRetry
	}
	r.report(changes, err)
	pause := ruleResync
	if _, byIPTables := r.set.(*iptables.Tables); byIPTables {
		pause = r.options.Resync
	}
	if err != nil || r.standIn != nil || r.others.failed != nil || !r.emptied {
		r.retry = min(max(2*r.retry, ruleRetry), ruleRetryMost)
		pause = min(pause, r.retry)
		if r.early {
			pause = min(pause, max(time.Until(r.next), 0))
		}
	} else {
		r.retry = 0
	}
	if err != nil {
		return pause
	}
	if len(changes) == 0 || !r.written || r.set != set {
		r.written = true
		return pause
	}
	if fight := r.fights.Reserve().Delay(); fight > 0 {
		if !r.fought {
			r.log.Error("something else on this host keeps undoing our packet filter rules; slowing down", "changed", changes)
		}
		r.fought = true
		timer := time.NewTimer(fight)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		return 0
	}
	r.fought = false
	return pause
}

// formerly reports whether this host was in an overlay of another network than now.
func (r *rules) formerly(o firewall.Overlay) bool { return o.Network != r.overlay().Network }

// taken reports whether another daemon of this host serves the network of a former overlay by
// now. Doubt means yes: better that rules stay than that another's go.
func taken(o firewall.Overlay) bool {
	holders, err := presence.Holders()
	return err != nil || slices.ContainsFunc(holders, func(h presence.Holder) bool { return h.Network == o.Network })
}

// wanter says what rules are wanted now, of a set.
func (r *rules) wanter() func(ruleSet) []firewall.Chain {
	now, tunnel, o := r.overlay(), r.tunnel(), r.options
	return func(set ruleSet) []firewall.Chain {
		return firewall.Rules(firewall.Options{
			Overlay:     now,
			Masquerade:  o.Masquerade,
			RandomPorts: !o.KeepPorts && set.RandomPorts(),
			Forward:     o.Forward,
			Tunnel:      tunnel,
		})
	}
}

// owner says which rules are this daemon's among those of several.
func (r *rules) owner() firewall.Owner {
	return firewall.Owner{Network: r.overlay().Network, Overlays: slices.Clone(r.had)}
}

func (r *rules) report(changes []string, err error) {
	if len(changes) > 0 {
		msg := "wrote packet filter rules"
		if r.written {
			msg = "repaired packet filter rules"
		}
		r.log.Info(msg, "changes", strings.Join(changes, "; "))
	}
	c := condition.Condition{ID: ruleCondition, Text: r.text, Fields: []any{"err", r.standIn}}
	if locked := (*iptables.LockedError)(nil); errors.As(r.standIn, &locked) && locked.PID != 0 {
		c.Command = fmt.Sprint("ps -fp ", locked.PID)
	}
	switch {
	case err != nil:
		c.Text, c.Fields = "packet filter rules cannot be kept; the overlay works as far as others' rules let it", []any{"err", err}
		fallthrough
	case r.standIn != nil:
		r.others.conditions.Set(c)
	default:
		r.others.conditions.End(ruleCondition)
	}
}

// close gives up what nftables are asked through. The rules stay.
func (r *rules) close() {
	if nft, ok := r.tools.nftables.peek(); ok {
		nft.Close()
	}
}

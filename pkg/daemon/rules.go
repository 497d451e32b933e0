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

	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/netconf"
	"flanneld/pkg/nftables"
	"flanneld/pkg/presence"
)

// RuleOptions say what is wanted of the packet filter.
type RuleOptions struct {
	Masquerade bool          // what leaves the overlay gets this host's address
	KeepPorts  bool          // do not ask for random source ports with it
	Forward    bool          // let the overlay's traffic through whatever others do
	Resync     time.Duration // between two looks at iptables, of whose changes nobody tells
}

const (
	// ruleResync is the safety net under nftables' events.
	ruleResync = time.Minute
	// ruleBurst lets a reload by somebody else end before the rules are read.
	ruleBurst = 50 * time.Millisecond
	// ruleGap is the least time between two listings by a process.
	ruleGap = 500 * time.Millisecond
	// ruleRetry is the time between attempts that fail.
	ruleRetry = 5 * time.Second

	// Repairs beyond ruleFights in quick succession wait for ruleFightPause.
	ruleFights     = 10
	ruleFightPause = 5 * time.Second
)

// ruleSet is where rules are kept: iptables or nftables.
type ruleSet interface {
	// Sync makes the owner's rules those that are wanted, here and in what older
	// generations have left, and touches no other network's. It tells what it has changed.
	Sync(ctx context.Context, owner firewall.Owner, want []firewall.Chain) (changes []string, err error)
	RandomPorts() bool
}

// rules keeps the packet filter as the overlay needs it.
type rules struct {
	options RuleOptions
	choice  atomic.Int32            // a netconf.Choice; may change
	overlay func() firewall.Overlay // as it is now
	log     *slog.Logger

	wake    chan struct{}
	had     []firewall.Overlay // that this host has or had, by its subnet file
	nft     *nftables.Tables   // nil if the kernel has none
	set     ruleSet            // nil until one is found
	want    []firewall.Chain   // that it was given last
	chosen  netconf.Choice     // by which it was found
	left    ruleSet            // iptables' other variant, until nothing of ours is there
	slow    bool               // a look at the set takes a process
	written bool               // it was right once, so that changes are repairs
	trouble bool               // the last attempt failed
	fights  *rate.Limiter
	fought  bool
	looked  time.Time
	others  others // beside the set
}

func newRules(o RuleOptions, c netconf.Choice, overlay func() firewall.Overlay, former firewall.Overlay, log *slog.Logger) *rules {
	r := &rules{
		options: o, overlay: overlay, log: log,
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signs, set := r.signs(ctx), r.set
	pause := time.Duration(0) // for what was changed since the last look
	for r.set == set {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.wake:
		case _, open := <-signs:
			if !open {
				signs = nil
			}
			r.settle(ctx, signs)
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		pause = min(r.look(ctx), r.lookBeside(ctx))
	}
}

// settle waits until a burst of changes is over, and no listing by a process
// follows another at once.
func (r *rules) settle(ctx context.Context, signs <-chan struct{}) {
	wait := ruleBurst
	if r.slow || r.others.slow {
		wait = max(wait, time.Until(r.looked.Add(ruleGap)))
	}
	timer := time.NewTimer(wait)
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

// signs tells that somebody has changed rules; nil: nobody does, and the resync
// remains.
func (r *rules) signs(ctx context.Context) <-chan struct{} {
	var legacy, nft <-chan struct{}
	var err, failed error
	if ipt, ok := r.set.(*iptables.Tables); ok && ipt.Legacy() {
		legacy, err = ipt.Watch(ctx)
	} else {
		legacy, err = iptables.WatchLegacy(ctx, iptables.IPv4)
	}
	if r.nft != nil {
		nft, failed = r.nft.Watch(ctx)
	}
	if err := errors.Join(err, failed); err != nil {
		r.log.Debug("nobody tells of changed rules", "err", err)
	}
	return merge(legacy, nft)
}

// look makes the rules right and gives the time until the next look.
func (r *rules) look(ctx context.Context) time.Duration {
	changes, err := r.sync(ctx)
	r.looked = time.Now()
	if ctx.Err() != nil {
		return ruleRetry
	}
	r.report(changes, err)
	pause := ruleResync
	if r.slow {
		pause = r.options.Resync
	}
	if err != nil {
		return min(pause, ruleRetry)
	}
	if len(changes) == 0 || !r.written {
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

// sync has the set right, what is beside it, and the other one empty, in this order.
func (r *rules) sync(ctx context.Context) (changes []string, err error) {
	if c := netconf.Choice(r.choice.Load()); r.set == nil || c != r.chosen {
		if err := r.find(c); err != nil {
			return nil, err
		}
		r.chosen = c
	}
	// What a former network has left is removed once: it may be another daemon's later.
	defer func() {
		if err == nil {
			r.had = slices.DeleteFunc(r.had, r.formerly)
		}
	}()
	changes, err = r.put(ctx)
	if err != nil && !r.written && r.slow && r.chosen == netconf.Open && r.nft != nil {
		r.useNFTables("iptables does not work: " + err.Error())
		changes, err = r.put(ctx)
	}
	if err != nil {
		return changes, err
	}
	beside, err := r.keepBeside(ctx)
	if changes = append(changes, beside...); err != nil || r.left == nil {
		return changes, err
	}
	removed, err := r.left.Sync(ctx, r.owner(), nil)
	if err != nil {
		return changes, fmt.Errorf("remove what was kept elsewhere before: %w", err)
	}
	r.left = nil
	return append(changes, removed...), nil
}

// formerly reports whether this host was in an overlay of another network than now.
func (r *rules) formerly(o firewall.Overlay) bool { return o.Network != r.overlay().Network }

// taken reports whether another daemon of this host serves the network of a former overlay by
// now. Doubt means yes: better that rules stay than that another's go.
func taken(o firewall.Overlay) bool {
	holders, err := presence.Holders()
	return err != nil || slices.ContainsFunc(holders, func(h presence.Holder) bool { return h.Network == o.Network })
}

// put makes the set what is wanted now.
func (r *rules) put(ctx context.Context) ([]string, error) {
	r.had = slices.DeleteFunc(r.had, func(o firewall.Overlay) bool { return r.formerly(o) && taken(o) })
	now := r.overlay()
	if !slices.Contains(r.had, now) {
		r.had = append(r.had, now)
	}
	r.want = firewall.Rules(firewall.Options{
		Overlay:     now,
		Masquerade:  r.options.Masquerade,
		RandomPorts: !r.options.KeepPorts && r.set.RandomPorts(),
		Forward:     r.options.Forward,
	})
	changes, err := r.set.Sync(ctx, r.owner(), r.want)
	return changes, r.minor(err)
}

// owner says which rules are this daemon's among those of several.
func (r *rules) owner() firewall.Owner {
	return firewall.Owner{Network: r.overlay().Network, Overlays: r.had}
}

func (r *rules) report(changes []string, err error) {
	if len(changes) > 0 {
		msg := "wrote packet filter rules"
		if r.written {
			msg = "repaired packet filter rules"
		}
		r.log.Info(msg, "changes", strings.Join(changes, "; "))
	}
	switch {
	case err != nil && !r.trouble:
		r.log.Warn("packet filter rules cannot be kept; the overlay works as far as others' rules let it; trying again", "err", err)
	case err == nil && r.trouble:
		r.log.Info("packet filter rules are kept again")
	}
	r.trouble = err != nil
}

// find finds out where to keep the rules, as the network config wants it.
func (r *rules) find(choice netconf.Choice) error {
	var noNFTables error
	if r.nft == nil {
		r.nft, noNFTables = nftables.New()
	}
	if choice == netconf.Yes {
		if noNFTables != nil {
			return noNFTables
		}
		r.useNFTables("EnableNFTables is true")
		return nil
	}
	ipt, err := iptables.New(iptables.IPv4)
	switch {
	case err == nil && choice == netconf.No:
		r.useIPTables(ipt, "EnableNFTables is false")
	case err == nil:
		r.useIPTables(ipt, "it is installed, and EnableNFTables is not set")
	case choice == netconf.No || noNFTables != nil:
		return errors.Join(err, noNFTables)
	default:
		r.useNFTables(err.Error())
	}
	return nil
}

func (r *rules) useIPTables(t *iptables.Tables, why string) {
	r.set, r.slow, r.left = t, true, nil
	if t.Legacy() {
		r.left = nftVariant()
	}
	r.others.forgetLegacy()
	r.log.Info("packet filter rules are kept by iptables", "version", t.Version(), "why", why)
}

func (r *rules) useNFTables(why string) {
	r.set, r.slow, r.left = nftSet{r.nft}, false, nftVariant()
	r.others.forgetLegacy()
	r.log.Info("packet filter rules are kept by nftables", "why", why)
}

// close gives up what nftables are asked through. The rules stay.
func (r *rules) close() {
	if r.nft != nil {
		r.nft.Close()
	}
}

// nftSet is nftables' IPv4 tables. The generations that left rules in chains of
// others did so by iptables.
type nftSet struct{ *nftables.Tables }

func (s nftSet) Sync(ctx context.Context, owner firewall.Owner, want []firewall.Chain) ([]string, error) {
	return s.Tables.Sync(ctx, nftables.IPv4, owner, want)
}

package filter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

// Plan returns what a filter with this configuration would change now, in order, and changes
// nothing. It makes one sync with keepers that only plan, so the decisions are those of a filter
// that starts. If the preferred keeper cannot be used, it also returns why.
func Plan(ctx context.Context, cfg Config, in []Input) (all []firewall.Change, fallback error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also ends an attempt that hangs
	planned := &planned{changes: map[string]firewall.Change{}}
	k := &cfg.Keepers
	k.IPTables, k.Compat = planner{k.IPTables, planned}, planner{k.Compat, planned}
	k.Legacy, k.NFTables = inspectingPlanner{planner{k.Legacy, planned}, k.Legacy}, inspectingPlanner{planner{k.NFTables, planned}, k.NFTables}
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Conditions = condition.NewList(cfg.Log)
	f := New(cfg)
	f.Set(in)
	f.now = in
	commands, err := f.sync(ctx)
	for _, c := range commands {
		all = append(all, planned.get(c))
	}
	if err == nil {
		var more []firewall.Change
		more, err = f.planTrust(ctx)
		all = append(all, more...)
	}
	return all, errors.Join(f.selection.preferredErr, f.secondary.legacyErr), err
}

// Plan returns what the filter would change now, in order, and changes nothing. Like Set, it is for
// any goroutine.
func (f *Filter) Plan(ctx context.Context) (all []firewall.Change, fallback error, err error) {
	in := f.input.Load()
	if in == nil {
		return nil, nil, errors.New("the wanted packet filter rules are not known yet")
	}
	cfg := f.cfg
	cfg.Choice = netconf.Choice(f.choice.Load())
	if isClosed(f.tried) { // rules of other networks were removed once, and may be another daemon's now
		cfg.Previous = slices.DeleteFunc(slices.Clone(cfg.Previous), func(o firewall.Overlay) bool {
			return !slices.ContainsFunc(*in, func(in Input) bool { return in.Network == o.Network })
		})
	}
	return Plan(ctx, cfg, *in)
}

// Plan returns what the lock would change now with a view, and changes nothing. It is for any
// goroutine.
func (l *Lock) Plan(ctx context.Context, v lease.View) ([]firewall.Change, error) {
	spec := l.spec.Load()
	if spec == nil {
		return nil, errors.New("the wanted lock is not known yet")
	}
	cfg := LockConfig{Wanted: l.cfg.Wanted, Network: l.cfg.Network, Open: l.cfg.Open, Vacate: l.cfg.Vacate}
	if !isClosed(l.tried) {
		cfg.Previous = l.previous
	}
	return PlanLock(ctx, cfg, *spec, v)
}

// isClosed reports whether a channel on which nothing is sent is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// planTrust returns what the filter asks of firewalld: to trust the networks whose packets its
// table drops.
func (f *Filter) planTrust(ctx context.Context) (all []firewall.Change, err error) {
	mistrusted, _, err := f.findOwned(ctx, f.now)
	for _, network := range mistrusted {
		all = append(all, firewall.Change{
			Kind: "source", Verb: "add", Object: fmt.Sprintf("source %s of firewalld's zone trusted", network),
			Command: firewalld.TrustCommand(network),
		})
	}
	return all, err
}

// planned has the changes that planners have returned, by what their Sync returns.
type planned struct {
	mu      sync.Mutex
	changes map[string]firewall.Change
}

func (p *planned) get(name string) firewall.Change {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changes[name]
}

// planner is a Keeper that plans instead of writing. The changes that its Sync returns are commands, or
// objects for which there is no command.
type planner struct {
	firewall.Keeper
	planned *planned
}

// Sync implements firewall.Keeper.
func (p planner) Sync(ctx context.Context, r firewall.Ruleset) (names []string, err error) {
	changes, err := p.Plan(ctx, r)
	p.planned.mu.Lock()
	defer p.planned.mu.Unlock()
	for _, c := range changes {
		name := cmp.Or(c.Command, c.Object)
		p.planned.changes[name] = c
		names = append(names, name)
	}
	return names, err
}

// inspectingPlanner is a planner that can also read other programs' rules.
type inspectingPlanner struct {
	planner
	firewall.Inspector
}

// PlanLock returns what a Lock would change now, and changes nothing.
func PlanLock(ctx context.Context, cfg LockConfig, spec firewall.Lock, v lease.View) (all []firewall.Change, err error) {
	l, err := cfg.Open()
	if withoutNFTables(err) && !cfg.Wanted {
		return nil, nil // there can be no lock
	}
	if err != nil {
		return nil, err
	}
	defer l.Close()
	switch {
	case !cfg.Wanted || spec.Port == 0:
		all, err = l.PlanUnlock(cfg.Network)
	case !spec.Local.IsValid():
		err = errors.New("the uplink is not known")
	default:
		peers := map[netip.Addr]struct{}{}
		for _, p := range v.Peers {
			if p.PublicIP.Is4() {
				peers[p.PublicIP] = struct{}{}
			}
		}
		all, err = l.PlanLock(ctx, spec, peers, v.Complete)
	}
	if p := cfg.Previous; err == nil && p.IsValid() && p != cfg.Network {
		vacant, release := cfg.Vacate([]netip.Prefix{p})
		defer release()
		for _, p := range vacant {
			more, failed := l.PlanUnlock(p)
			all, err = append(all, more...), errors.Join(err, failed)
		}
	}
	return all, err
}

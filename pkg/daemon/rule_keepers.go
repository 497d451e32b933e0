package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/netconf"
	"flanneld/pkg/nftables"
)

// sync has the set right, what is beside it, and the other one empty, in this order.
func (r *rules) sync(ctx context.Context) (changes []string, err error) {
	r.had = slices.DeleteFunc(r.had, func(o firewall.Overlay) bool { return r.formerly(o) && taken(o) })
	if now := r.overlay(); !slices.Contains(r.had, now) {
		r.had = append(r.had, now)
	}
	// What a former network has left is removed once: it may be another daemon's later.
	defer func() {
		if err == nil {
			r.had = slices.DeleteFunc(r.had, r.formerly)
		}
	}()
	if r.locked != nil && r.locked.Free() {
		r.locked = nil
	}
	if changes, err = r.put(ctx); err != nil {
		return changes, err
	}
	beside, err := r.keepBeside(ctx)
	changes = append(changes, beside...)
	if err == nil && r.standIn == nil && !r.emptied {
		changes = append(changes, r.emptyLeft(ctx)...)
	}
	return changes, err
}

// put has the rules right where they can be kept now.
func (r *rules) put(ctx context.Context) (changes []string, err error) {
	c := netconf.Choice(r.choice.Load())
	if c != r.chosen {
		r.chosen, r.standIn, r.took, r.next = c, nil, 0, time.Time{}
		if r.trying != nil {
			r.trying.cancel()
			r.trying = nil
		}
	}
	first, second := r.tools.keepers(c)
	a, why := r.prefer(ctx, first)
	if a != nil && why == nil {
		r.standIn, r.took = nil, a.took
		r.use(a.set)
		r.say(first.name, reason(c))
		return a.changes, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	set, err := second.find()
	if err == nil {
		changes, err = set.Sync(ctx, r.owner(), r.wanter()(set))
		err = r.minor(err)
	}
	if absent := c == netconf.Open && errors.Is(why, iptables.ErrNotFound); absent && err == nil {
		r.standIn = nil
		r.use(set)
		r.say(second.name, why.Error())
		return changes, nil
	}
	if !errors.Is(r.standIn, iptables.ErrLocked) || !errors.Is(why, iptables.ErrLocked) {
		r.standIn = why // but whoever holds the lock just now
	}
	if err != nil {
		return changes, errors.Join(why, err)
	}
	r.text = second.replace
	r.use(set)
	return changes, nil
}

// prefer has the preferred keeper try, unless it is too early, and waits for it, but only for a
// moment where the other one does. why is nil if it keeps the rules; what has ended is returned.
func (r *rules) prefer(ctx context.Context, k keeper) (a *attempt, why error) {
	within := min(max(ruleWait, ruleWaitShare*r.took), ruleWaitMost)
	if r.standIn != nil {
		within = ruleBurst
	}
	if r.trying == nil {
		r.early = r.standIn != nil && time.Now().Before(r.next)
		if r.early || r.standIn != nil && r.locked != nil {
			return nil, r.standIn
		}
		r.trying = k.try(ctx, r.owner(), r.wanter())
	}
	a = r.trying
	if why = a.wait(ctx, within); !a.ended() {
		return nil, cmp.Or(r.standIn, why)
	}
	r.trying = nil
	r.next = time.Now().Add(min(max(ruleRetryShare*a.took, ruleRetry), ruleRetryMost))
	if why = r.minor(a.err); errors.Is(why, iptables.ErrLocked) {
		r.locked, _ = r.tools.iptables.peek()
		r.next = time.Time{} // when it is free
	}
	return a, why
}

// use notes which set holds the rules.
func (r *rules) use(set ruleSet) {
	if r.set != set {
		r.set, r.emptied = set, false
	}
	r.want = r.wanter()(set)
}

// say logs who keeps the rules, when it is another one by choice.
func (r *rules) say(name, why string) {
	fields := []any{"why", why}
	if ipt, ok := r.set.(*iptables.Tables); ok {
		fields = append([]any{"version", ipt.Version()}, fields...)
	}
	if said := fmt.Sprint(name, fields); said != r.said {
		r.said = said
		r.log.Info("packet filter rules are kept by "+name, fields...)
	}
}

func reason(c netconf.Choice) string {
	switch c {
	case netconf.Yes:
		return "EnableNFTables is true"
	case netconf.No:
		return "EnableNFTables is false"
	}
	return "it is installed, and EnableNFTables is not set"
}

// emptyLeft removes what iptables' nft variant holds of ours, if that is not the set.
func (r *rules) emptyLeft(ctx context.Context) (changes []string) {
	var err error
	if ipt, ok := r.set.(*iptables.Tables); !ok || ipt.Legacy() {
		changes, err = r.emptyNFTIPTables(ctx)
	}
	if ctx.Err() != nil {
		return changes
	}
	if r.emptied = err == nil; r.emptied {
		r.others.conditions.End(leftCondition)
		return changes
	}
	r.others.conditions.Set(condition.Condition{
		ID: leftCondition, Text: "packet filter rules that iptables held before cannot be removed", Fields: []any{"err", err},
	})
	return changes
}

func (r *rules) emptyNFTIPTables(ctx context.Context) ([]string, error) {
	nft, err := r.tools.nftables.get()
	if errors.Is(err, nftables.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	there, err := nft.HasTable(nftables.IPv4, firewall.PostRouting.Table(), firewall.Forward.Table(), firewall.PreRouting.Table())
	if err != nil || !there {
		return nil, err
	}
	ipt, err := r.tools.nftIPTables()
	if errors.Is(err, iptables.ErrNotFound) {
		return nil, nil // nobody can
	}
	if err != nil {
		return nil, err
	}
	return ipt.Sync(ctx, r.owner(), nil)
}

package filter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"flanneld/pkg/firewall"
	"flanneld/pkg/netconf"
	"flanneld/pkg/pace"
)

// The preferred keeper is waited for in patience before the other one stands in: several times
// what it took last. One that is slower goes on meanwhile.
func patience() pace.Share {
	return pace.Share{Share: 4, Least: 3 * time.Second, Most: 12 * time.Second}
}

// attempts of the preferred keeper take one part in so many of the time.
func attempts() pace.Share {
	return pace.Share{Share: 20, Least: firstRetry, Most: lastRetry}
}

// holding is who holds the rules, and why.
type holding struct {
	holder    holder
	keeper    firewall.Keeper // the holder
	preferred firewall.Keeper // as of the last look
	gap       time.Duration   // between two of its Syncs
	chosen    netconf.Choice  // by which it was preferred
	trying    *attempt        // of the preferred keeper, which has not ended; nil: none
	standIn   error           // why the preferred keeper does not hold the rules; nil: it does
	text      string          // of the condition then
	took      time.Duration   // what the preferred keeper took to have them right last
	next      time.Time       // of its next attempt, at the earliest
	early     bool            // there was a reason for one before
	locked    *firewall.LockedError
	said      string // in the log: who holds the rules
	barred    bool   // a chain in nftables cannot be written
}

// holder is who holds the rules: another version of a tool is another holder. The zero holder is
// nobody yet.
type holder struct {
	name   string // of the candidate
	traits firewall.Traits
}

// candidate is a keeper that can hold the rules.
type candidate struct {
	firewall.Keeper
	name    string
	standIn string // text of the condition that it stands in for the other one
}

// candidates returns who holds the rules, as the network config wants it, and who stands in.
func (k Keepers) candidates(c netconf.Choice) (preferred, other candidate) {
	preferred = candidate{k.IPTables, "iptables", "nftables failed, using iptables for packet filter rules meanwhile"}
	other = candidate{k.NFTables, "nftables", "iptables failed, using nftables for packet filter rules meanwhile"}
	if c == netconf.Yes {
		return other, preferred
	}
	return preferred, other
}

// hold has the rules right where they can be held now.
func (f *Filter) hold(ctx context.Context) (changes []string, err error) {
	h := &f.holding
	preferred, other := f.cfg.Keepers.candidates(f.chosen())
	if h.locked != nil && h.locked.Free() {
		h.locked = nil
	}
	a, why := f.prefer(ctx, preferred)
	if a != nil && why == nil {
		h.standIn, h.took = nil, a.took
		f.use(preferred)
		f.say(preferred, reason(h.chosen))
		return a.changes, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	changes, err = f.note(syncAll(ctx, other, f.sets))
	if absent := h.chosen == netconf.Open && firewall.Absent(why); absent && err == nil {
		h.standIn = nil
		f.use(other)
		f.say(other, why.Error())
		return changes, nil
	}
	if firewall.Locked(h.standIn) == nil || firewall.Locked(why) == nil {
		h.standIn = why // but whoever holds the lock just now
	}
	if err != nil {
		return changes, errors.Join(why, err)
	}
	h.text = other.standIn
	f.use(other)
	return changes, nil
}

// chosen returns the present choice. With another one, all begins anew.
func (f *Filter) chosen() netconf.Choice {
	c, h := netconf.Choice(f.choice.Load()), &f.holding
	if c != h.chosen {
		h.chosen, h.standIn, h.took, h.next = c, nil, 0, time.Time{}
		if h.trying != nil {
			h.trying.cancel()
			h.trying = nil
		}
	}
	return c
}

// prefer has the preferred keeper try, unless it is too early, and waits for it, but only for a
// moment where the other one holds the rules. why is nil if it holds them; an attempt that has
// ended is returned.
func (f *Filter) prefer(ctx context.Context, k candidate) (a *attempt, why error) {
	h := &f.holding
	h.preferred, h.gap = k.Keeper, k.Traits(f.sets[0].Family).Gap
	within := patience().Rest(h.took)
	if h.standIn != nil {
		within = burst
	}
	if h.trying == nil {
		h.early = h.standIn != nil && time.Now().Before(h.next)
		if h.early || h.standIn != nil && h.locked != nil {
			return nil, h.standIn
		}
		h.trying = try(ctx, k, f.sets)
	}
	a = h.trying
	if !a.wait(ctx, within) {
		return nil, cmp.Or(h.standIn, ctx.Err(), fmt.Errorf("no end after %s", within))
	}
	h.trying = nil
	h.next = time.Now().Add(attempts().Rest(a.took))
	_, why = f.note(a.outcome)
	if locked := firewall.Locked(why); locked != nil {
		h.locked, h.next = locked, time.Time{} // when it is free
	}
	return a, why
}

// note takes what a keeper did.
func (f *Filter) note(o outcome) (changes []string, err error) {
	if o.err == nil {
		f.holding.barred = o.barred
	}
	return o.changes, o.err
}

// use notes who holds the rules.
func (f *Filter) use(k candidate) {
	f.holding.keeper = k.Keeper
	if now := (holder{k.name, k.Traits(f.sets[0].Family)}); f.holding.holder != now {
		f.holding.holder, f.beside.cleared = now, false
	}
}

// say logs who holds the rules by choice, when that is another one. Of a tool that was replaced while
// it wrote them nothing is known: that is another holder, so the next look is at once, and says it.
func (f *Filter) say(k candidate, why string) {
	traits := f.holding.holder.traits
	if traits.Place == firewall.Nowhere {
		return
	}
	fields := []any{"keeper", k.name, "reason", why}
	if traits.Version != "" {
		fields = append(fields, "version", traits.Version)
	}
	if said := fmt.Sprint(fields); said != f.holding.said {
		f.holding.said = said
		f.cfg.Log.Info("selected packet filter", fields...)
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

// findHolder returns the command that shows who holds the lock that a keeper waits for.
func findHolder(why error) string {
	if locked := firewall.Locked(why); locked != nil && locked.PID != 0 {
		return fmt.Sprint("ps -fp ", locked.PID)
	}
	return ""
}

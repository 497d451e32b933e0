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
func preferredTimeout() pace.Share {
	return pace.Share{Share: 4, Least: 3 * time.Second, Most: 12 * time.Second}
}

// retryShare of the preferred keeper take one part in so many of the time.
func retryShare() pace.Share {
	return pace.Share{Share: 20, Least: firstRetry, Most: lastRetry}
}

// selection is who holds the rules, and why.
type selection struct {
	active        activeKeeper
	keeper        firewall.Keeper // the holder
	preferred     firewall.Keeper // as of the last look
	gap           time.Duration   // between two of its Syncs
	chosen        netconf.Choice  // by which it was preferred
	attempt       *attempt        // of the preferred keeper, which has not ended; nil: none
	preferredErr  error           // why the preferred keeper does not hold the rules; nil: it does
	conditionText string          // of the condition then
	syncTime      time.Duration   // what the preferred keeper took to have them right last
	next          time.Time       // of its next attempt, at the earliest
	tooEarly      bool            // there was a reason for one before
	locked        *firewall.LockedError
	logged        string // in the log: who holds the rules
	ownerLocked   bool   // a chain in nftables cannot be written
}

// activeKeeper is who holds the rules: another version of a tool is another holder. The zero holder is
// nobody yet.
type activeKeeper struct {
	name   string // of the candidate
	traits firewall.Traits
}

// candidate is a keeper that can hold the rules.
type candidate struct {
	firewall.Keeper
	name         string
	fallbackText string // text of the condition that it stands in for the other one
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

// syncRules has the rules right where they can be held now.
func (f *Filter) syncRules(ctx context.Context) (changes []string, err error) {
	h := &f.selection
	preferred, other := f.cfg.Keepers.candidates(f.currentChoice())
	if h.locked != nil && h.locked.Free() {
		h.locked = nil
	}
	a, why := f.tryPreferred(ctx, preferred)
	if a != nil && why == nil {
		h.preferredErr, h.syncTime = nil, a.took
		f.setActive(preferred)
		f.logSelection(preferred, reason(h.chosen))
		return a.changes, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	changes, err = f.record(syncAll(ctx, other, f.sets))
	if absent := h.chosen == netconf.Open && firewall.Absent(why); absent && err == nil {
		h.preferredErr = nil
		f.setActive(other)
		f.logSelection(other, why.Error())
		return changes, nil
	}
	if firewall.Locked(h.preferredErr) == nil || firewall.Locked(why) == nil {
		h.preferredErr = why // but whoever holds the lock just now
	}
	if err != nil {
		return changes, errors.Join(why, err)
	}
	h.conditionText = other.fallbackText
	f.setActive(other)
	return changes, nil
}

// currentChoice returns the present choice. With another one, all begins anew.
func (f *Filter) currentChoice() netconf.Choice {
	c, h := netconf.Choice(f.choice.Load()), &f.selection
	if c != h.chosen {
		h.chosen, h.preferredErr, h.syncTime, h.next = c, nil, 0, time.Time{}
		if h.attempt != nil {
			h.attempt.cancel()
			h.attempt = nil
		}
	}
	return c
}

// tryPreferred has the preferred keeper try, unless it is too early, and waits for it, but only for a
// moment where the other one holds the rules. why is nil if it holds them; an attempt that has
// ended is returned.
func (f *Filter) tryPreferred(ctx context.Context, k candidate) (a *attempt, why error) {
	h := &f.selection
	h.preferred, h.gap = k.Keeper, k.Traits(f.sets[0].Family).Gap
	within := preferredTimeout().Rest(h.syncTime)
	if h.preferredErr != nil {
		within = burst
	}
	if h.attempt == nil {
		h.tooEarly = h.preferredErr != nil && time.Now().Before(h.next)
		if h.tooEarly || h.preferredErr != nil && h.locked != nil {
			return nil, h.preferredErr
		}
		h.attempt = startAttempt(ctx, k, f.sets)
	}
	a = h.attempt
	if !a.wait(ctx, within) {
		return nil, cmp.Or(h.preferredErr, ctx.Err(), fmt.Errorf("no end after %s", within))
	}
	h.attempt = nil
	h.next = time.Now().Add(retryShare().Rest(a.took))
	_, why = f.record(a.outcome)
	if locked := firewall.Locked(why); locked != nil {
		h.locked, h.next = locked, time.Time{} // when it is free
	}
	return a, why
}

// record takes what a keeper did.
func (f *Filter) record(o outcome) (changes []string, err error) {
	if o.err == nil {
		f.selection.ownerLocked = o.ownerLocked
	}
	return o.changes, o.err
}

// setActive notes who holds the rules.
func (f *Filter) setActive(k candidate) {
	f.selection.keeper = k.Keeper
	if now := (activeKeeper{k.name, k.Traits(f.sets[0].Family)}); f.selection.active != now {
		f.selection.active, f.secondary.unusedRemoved = now, false
	}
}

// logSelection logs who holds the rules by choice, when that is another one. Of a tool that was replaced while
// it wrote them nothing is known: that is another holder, so the next look is at once, and says it.
func (f *Filter) logSelection(k candidate, why string) {
	traits := f.selection.active.traits
	if traits.Place == firewall.Nowhere {
		return
	}
	fields := []any{"keeper", k.name, "reason", why}
	if traits.Version != "" {
		fields = append(fields, "version", traits.Version)
	}
	if said := fmt.Sprint(fields); said != f.selection.logged {
		f.selection.logged = said
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

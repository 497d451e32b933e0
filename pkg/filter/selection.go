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

// preferredTimeout is how long to wait for the preferred keeper before the fallback is used: a
// multiple of the duration of its last sync. A slower attempt continues in the background.
func preferredTimeout() pace.Share {
	return pace.Share{OneIn: 4, Min: 3 * time.Second, Max: 12 * time.Second}
}

// retryShare limits the share of time that attempts of the preferred keeper take while it fails.
func retryShare() pace.Share { return pace.Share{OneIn: 20, Min: firstRetry, Max: lastRetry} }

// selection is which keeper is in use, and why.
type selection struct {
	// active is what was known about the tool of the keeper in use. Another version counts as
	// another keeper. The zero value means that no keeper has synced the rules yet.
	active        firewall.Traits
	keeper        firewall.Keeper // the one in use
	preferred     firewall.Keeper // as of the last sync
	chosen        netconf.Choice  // that preferred follows from
	attempt       *attempt        // of the preferred keeper; nil if none is running
	preferredErr  error           // why the preferred keeper is not in use; nil if it is
	conditionText string          // text of the condition in that case
	syncTime      time.Duration   // duration of its last successful sync
	next          time.Time       // earliest time of its next attempt
	tooEarly      bool            // an attempt was due before next
	locked        *firewall.LockedError
	logged        string // fields of the last log line about the selection
	ownerLocked   bool   // a chain in nftables cannot be changed because its table has an owner
}

// candidates returns the preferred keeper by the network config, the fallback, and the text of the
// condition while that is in use.
func (k Keepers) candidates(c netconf.Choice) (preferred, fallback firewall.Keeper, text string) {
	if c == netconf.Yes {
		return k.NFTables, k.IPTables, "nftables failed, using iptables for packet filter rules meanwhile"
	}
	return k.IPTables, k.NFTables, "iptables failed, using nftables for packet filter rules meanwhile"
}

// syncRules syncs the rules with the preferred keeper, or else with the fallback.
func (f *Filter) syncRules(ctx context.Context) (changes []string, err error) {
	h := &f.selection
	preferred, fallback, text := f.cfg.Keepers.candidates(f.currentChoice())
	if h.locked != nil && h.locked.Free() {
		h.locked = nil
	}
	a, why := f.tryPreferred(ctx, preferred)
	if a != nil && why == nil {
		h.preferredErr, h.syncTime = nil, a.took
		f.setActive(preferred)
		f.logSelection(reason(h.chosen))
		return a.changes, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	changes, err = f.record(syncAll(ctx, fallback, f.sets))
	if absent := h.chosen == netconf.Unset && firewall.Absent(why); absent && err == nil {
		h.preferredErr = nil
		f.setActive(fallback)
		f.logSelection(why.Error())
		return changes, nil
	}
	if firewall.Locked(h.preferredErr) == nil || firewall.Locked(why) == nil {
		h.preferredErr = why // unchanged if only the holder of the lock differs
	}
	if err != nil {
		return changes, errors.Join(why, err)
	}
	h.conditionText = text
	f.setActive(fallback)
	return changes, nil
}

// currentChoice returns the present choice. A new choice resets the selection.
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

// tryPreferred starts an attempt of the preferred keeper, unless it is too early, and waits for it,
// but only briefly while the fallback is in use. It returns the attempt if it is done, and why the
// preferred keeper is not in use, nil if it is.
func (f *Filter) tryPreferred(ctx context.Context, k firewall.Keeper) (a *attempt, why error) {
	h := &f.selection
	h.preferred = k
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
		h.locked, h.next = locked, time.Time{} // retried as soon as the lock is free
	}
	return a, why
}

// record takes the outcome of a keeper that syncs the main rules.
func (f *Filter) record(o outcome) (changes []string, err error) {
	if o.err == nil {
		f.selection.ownerLocked = o.ownerLocked
	}
	return o.changes, o.err
}

// setActive sets the keeper in use.
func (f *Filter) setActive(k firewall.Keeper) {
	f.selection.keeper = k
	if now := k.Traits(f.sets[0].Family); f.selection.active != now {
		f.selection.active, f.secondary.unusedRemoved = now, false
	}
}

// logSelection logs which keeper is in use by choice, if that has changed. If the tool was replaced
// during the sync, its version is unknown; the next sync follows at once and logs it.
func (f *Filter) logSelection(why string) {
	active := f.selection.active
	if active.Place == firewall.Nowhere {
		return
	}
	fields := []any{"keeper", active.Name, "reason", why}
	if active.Version != "" {
		fields = append(fields, "version", active.Version)
	}
	if said := fmt.Sprint(fields); said != f.selection.logged {
		f.selection.logged = said
		f.cfg.Log.Info("selected packet filter", fields...)
	}
}

func reason(c netconf.Choice) string {
	return [...]string{
		netconf.Unset: "it is installed, and EnableNFTables is not set",
		netconf.Yes:   "EnableNFTables is true",
		netconf.No:    "EnableNFTables is false",
	}[c]
}

// findHolder returns the command that shows which process holds the lock, if err is a LockedError.
func findHolder(why error) string {
	if locked := firewall.Locked(why); locked != nil && locked.PID != 0 {
		return fmt.Sprint("ps -fp ", locked.PID)
	}
	return ""
}

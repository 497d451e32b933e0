package filter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/pace"
)

// IDs of conditions.
const (
	removeCondition = "packet-filter-left"
	legacyCondition = "iptables-legacy"
	unreadCondition = "iptables-legacy-unread"
)

// secondary is the state of the places that do not hold the rules.
type secondary struct {
	legacyGap     time.Duration // minimum time between two Syncs of the legacy variant; 0 if the kernel has no legacy tables
	legacyErr     error         // why accepts could not be written to the legacy tables
	legacyRetry   time.Time     // time of the next attempt, at the earliest
	unusedRemoved bool          // places that held the rules before have none of ours left

	nextPortCheck   time.Time // time of the next check of the tunnel port, at the earliest
	inspectFailures int       // consecutive failures to evaluate other programs' rules
}

// acceptsRuleset returns a ruleset for the places that do not hold the rules. HeldIn is Nowhere
// while the active keeper's tool is being replaced.
func (f *Filter) acceptsRuleset(set firewall.Ruleset) firewall.Ruleset {
	set.HeldIn = f.selection.keeper.Traits(set.Family).Place
	return set
}

// syncAccepts maintains accept rules in the places that do not hold the rules. While iptables-nft
// is active, nftables needs accepts only in foreign chains, and only if it is not the fallback.
func (f *Filter) syncAccepts(ctx context.Context) (changes []string, err error) {
	var foreign, legacy []firewall.Ruleset
	for _, set := range f.sets {
		set = f.acceptsRuleset(set)
		if (set.HeldIn == firewall.Legacy || set.HeldIn == firewall.Compat) && f.selection.preferredErr == nil {
			foreign = append(foreign, set)
		}
		if set.HeldIn == firewall.Native || set.HeldIn == firewall.Compat {
			legacy = append(legacy, set)
		}
	}
	if len(foreign) > 0 {
		if changes, err = f.record(syncAll(ctx, f.cfg.Keepers.NFTables, foreign)); firewall.Absent(err) {
			err = nil
		}
	}
	return append(changes, f.syncLegacyAccepts(ctx, legacy)...), err
}

// syncLegacyAccepts maintains accept rules in iptables-legacy if the kernel has legacy tables. Its
// failures do not affect anything else.
func (f *Filter) syncLegacyAccepts(ctx context.Context, sets []firewall.Ruleset) (changes []string) {
	b := &f.secondary
	b.legacyGap = 0
	var unread, failed error
	var danger *firewall.Ruleset // the first whose packets may be dropped
	for _, set := range sets {
		tables, err := f.cfg.Keepers.Legacy.Tables(set.Family)
		if unread = errors.Join(unread, err); len(tables) == 0 {
			continue
		}
		b.legacyGap = f.cfg.Keepers.Legacy.Traits(set.Family).Gap
		some, err := f.syncLegacy(ctx, set)
		changes = append(changes, some...)
		failed = errors.Join(failed, err)
		drops := slices.ContainsFunc(tables, func(t string) bool { return t != firewall.PostRouting.Table() })
		if err != nil && drops && f.cfg.Forward && danger == nil {
			danger = &set
		}
	}
	if ctx.Err() != nil {
		return changes
	}
	f.cfg.Conditions.SetError(condition.Condition{
		ID: unreadCondition, Severity: condition.Notice, Text: "failed to check for iptables-legacy rules, will retry",
	}, unread)
	if b.legacyErr = errors.Join(unread, failed); danger != nil {
		f.cfg.Conditions.SetError(condition.Condition{
			ID: legacyCondition, Text: "iptables-legacy may drop overlay packets, failed to add accept rules to it",
			Command: fmt.Sprintf("%[1]s -w -I FORWARD -s %[2]s -j ACCEPT; %[1]s -w -I FORWARD -d %[2]s -j ACCEPT",
				f.cfg.Keepers.Legacy.Traits(danger.Family).Name, danger.Owner.Network),
		}, failed)
	} else if unread == nil {
		f.cfg.Conditions.End(legacyCondition)
	}
	return changes
}

// syncLegacy syncs accepts to iptables-legacy, unless that is the preferred keeper and has failed:
// its rules are then left as they are.
func (f *Filter) syncLegacy(ctx context.Context, set firewall.Ruleset) (changes []string, err error) {
	b, h := &f.secondary, &f.selection
	if h.preferredErr != nil && h.preferred.Traits(set.Family).Place == firewall.Legacy {
		return nil, h.preferredErr
	}
	if b.legacyErr != nil && (h.locked != nil || time.Now().Before(b.legacyRetry)) {
		return nil, b.legacyErr
	}
	begun := time.Now()
	changes, err = f.cfg.Keepers.Legacy.Sync(ctx, set)
	b.legacyRetry = begun
	if locked := firewall.Locked(err); locked != nil {
		h.locked = locked
	} else if err != nil { // perhaps a command hangs: limit the share of time spent on it
		b.legacyRetry = time.Now().Add(pace.Share{OneIn: 20, Max: lastRetry}.Rest(time.Since(begun)))
	}
	return changes, err
}

// removeUnused removes our rules from iptables-nft unless it holds the rules. Accepts that nftables
// maintains in its chains are not affected.
func (f *Filter) removeUnused(ctx context.Context) (changes []string) {
	var failed error
	for _, set := range f.sets {
		if place := f.acceptsRuleset(set).HeldIn; place == firewall.Compat || place == firewall.Nowhere {
			continue
		}
		some, err := f.removeCompat(ctx, set)
		changes = append(changes, some...)
		failed = errors.Join(failed, err)
	}
	if ctx.Err() != nil {
		return changes
	}
	f.secondary.unusedRemoved = failed == nil
	f.cfg.Conditions.SetError(condition.Condition{
		ID: removeCondition, Severity: condition.Notice, Text: "failed to remove earlier iptables rules, will retry",
	}, failed)
	return changes
}

func (f *Filter) removeCompat(ctx context.Context, set firewall.Ruleset) ([]string, error) {
	tables, err := f.cfg.Keepers.NFTables.Tables(set.Family)
	if firewall.Absent(err) {
		return nil, nil
	}
	used := slices.ContainsFunc([]firewall.Hook{firewall.PostRouting, firewall.Forward, firewall.PreRouting}, func(h firewall.Hook) bool {
		return slices.Contains(tables, h.Table())
	})
	if err != nil || !used {
		return nil, err
	}
	changes, err := f.cfg.Keepers.Compat.Sync(ctx, firewall.Ruleset{Family: set.Family, Owner: set.Owner})
	if firewall.Absent(err) {
		return nil, nil // without the commands there is no way to remove them
	}
	return changes, err
}

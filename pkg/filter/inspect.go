package filter

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/pace"
)

const (
	// maxInspectFailures is the number of consecutive failures that cannot be explained by rules
	// that change while they are read.
	maxInspectFailures = 3
)

// portCheckShare limits the share of time spent on evaluating whether the tunnel port is open: all
// rules of other programs are read, and there may be many.
func portCheckShare() pace.Share { return pace.Share{OneIn: 50, Min: time.Second, Max: idle} }

// IDs of conditions.
const (
	ownedCondition   = "packet-filter/chain/" // and a chain
	portCondition    = "tunnel-port/"         // and a chain
	inspectCondition = "packet-filter-unread"
)

// inspect finds chains of other programs that drop the network's packets and that are not changed
// here. It returns the time until the next inspection.
func (f *Filter) inspect(ctx context.Context) time.Duration {
	known := slices.DeleteFunc(slices.Clone(f.now), func(in Input) bool { return in.Probes == nil })
	if len(known) == 0 || ctx.Err() != nil {
		return idle
	}
	err := f.inspectOwned(ctx, known)
	wait := time.Until(f.secondary.nextPortCheck)
	if wait <= 0 {
		begun := time.Now()
		err = errors.Join(err, f.inspectPort(ctx, known))
		wait, f.secondary.nextPortCheck = idle, time.Now().Add(portCheckShare().Rest(time.Since(begun)))
	}
	if err == nil || ctx.Err() != nil {
		f.secondary.inspectFailures = 0
		f.cfg.Conditions.End(inspectCondition)
		return wait
	}
	if f.secondary.inspectFailures++; f.secondary.inspectFailures >= maxInspectFailures {
		f.cfg.Conditions.Set(condition.Condition{
			ID: inspectCondition, Severity: condition.Notice, Text: "failed to check whether other rules drop overlay packets, will retry", Fields: []any{"err", err},
		})
	}
	return time.Until(f.secondary.nextPortCheck)
}

// inspectOwned evaluates packets between containers in chains that only the owner of the table can
// change.
func (f *Filter) inspectOwned(ctx context.Context, all []Input) error {
	mistrusted, barriers, err := f.findOwned(ctx, all)
	if err != nil {
		return err
	}
	var found []condition.Condition
	for _, b := range barriers {
		found = append(found, condition.Condition{
			ID: ownedCondition + b.String(), Fields: []any{"chain", b.String()},
			Text: "a chain that only its owner can change drops overlay packets",
		})
	}
	f.trust.set(mistrusted)
	f.cfg.Conditions.Replace(ownedCondition, found)
	return nil
}

// findOwned returns the networks whose packets firewalld may drop, and other chains that certainly
// drop packets and that only their owner can change.
func (f *Filter) findOwned(ctx context.Context, all []Input) (mistrusted []netip.Prefix, found []firewall.Barrier, err error) {
	for _, in := range all {
		if !f.selection.ownerLocked || in.Probes == nil {
			continue
		}
		for _, packet := range in.Probes.Inner {
			barriers, err := f.cfg.Keepers.NFTables.Barriers(ctx, packet)
			if err != nil {
				return nil, nil, err
			}
			for _, b := range barriers {
				switch {
				case !b.Owned:
				case b.Table == firewalld.Table:
					mistrusted = append(mistrusted, in.Network)
				case b.Certain:
					found = append(found, b)
				}
			}
		}
	}
	return slices.Compact(mistrusted), found, nil
}

// inspectPort finds chains that drop peers' packets to the tunnel port. Opening the port is left to
// the operator.
func (f *Filter) inspectPort(ctx context.Context, all []Input) error {
	var found []condition.Condition
	for _, in := range all {
		if in.Probes.Tunnel == nil {
			continue
		}
		closed, err := f.portBarriers(ctx, *in.Probes)
		if err != nil {
			return err
		}
		port := in.Probes.Tunnel.DstPort
		for _, b := range closed {
			found = append(found, condition.Condition{
				ID: portCondition + b.String(), Text: "this host's packet filter drops packets to the tunnel port",
				Fields: []any{"port", port, "chain", b.String()}, Command: b.OpenCommand(port),
			})
		}
	}
	f.cfg.Conditions.Replace(portCondition, found)
	return nil
}

// portBarriers returns the chains that certainly drop packets of a peer to the tunnel port.
func (f *Filter) portBarriers(ctx context.Context, p Probes) ([]firewall.Barrier, error) {
	// From an unknown source first. If some chains may drop that, the source may matter.
	for _, source := range append([]netip.Addr{{}}, p.Peers...) {
		packet := *p.Tunnel
		packet.Src = source
		all, err := f.barriers(ctx, packet)
		none := len(all) == 0
		all = slices.DeleteFunc(all, func(b firewall.Barrier) bool { return !b.Certain })
		if err != nil || len(all) > 0 || none && !source.IsValid() {
			return all, err
		}
	}
	return nil, nil
}

// barriers evaluates nftables, which includes the rules of iptables-nft, and iptables-legacy unless
// it has failed, which is reported elsewhere.
func (f *Filter) barriers(ctx context.Context, packet firewall.Packet) ([]firewall.Barrier, error) {
	all, err := f.cfg.Keepers.NFTables.Barriers(ctx, packet)
	if failed := f.secondary.legacyErr; failed != nil && firewall.Locked(failed) == nil {
		return all, err
	}
	more, failed := f.cfg.Keepers.Legacy.Barriers(ctx, packet)
	return append(all, more...), errors.Join(err, failed)
}

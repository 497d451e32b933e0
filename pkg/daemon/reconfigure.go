package daemon

import (
	"fmt"
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/subnet"
)

// admit reads a network config, and refuses one whose own routes would take what this host
// needs itself. What it has it keeps.
func (d *daemon) admit(raw []byte) (backend.Network, error) {
	n, err := backend.ParseNetwork(raw)
	if err != nil || !n.RoutesToAll() || n.Equal(d.net) {
		return n, err
	}
	inv, err := d.inventory(true)
	if err != nil {
		return n, fmt.Errorf("cannot tell whether the network is in the way of this host: %w", err)
	}
	f, err := d.uplink.Load().Facts(inv, d.publicIP(), n.Network)
	if err != nil {
		return n, nil // there is nothing to be in the way of
	}
	f.Needs, f.Leased = inv.Needs(n.Network, d.wanted()), n.Pool().Cover()
	if err := backend.Check(n.Backend, f); err != nil {
		return n, fmt.Errorf("network config: SubnetMin, SubnetMax: %s, %s: must be beside what the hosts need themselves: %w", n.SubnetMin, n.SubnetMax, err)
	}
	return n, nil
}

// reconfigure takes over what a later network config may change while the
// network runs: which subnets are leased from now on, for how long, and who keeps
// the packet filter's rules. Anything else would cut this host off from those
// that have not noticed yet; it waits for a restart.
func (d *daemon) reconfigure(n backend.Network) {
	late := d.net.NeedsRestart(n)
	if text := strings.Join(late, "; "); text != d.refused {
		d.refused = text
		if text != "" {
			d.log.Warn("the network config has changed in what takes a restart of flanneld, on all hosts; going on with the old one", "changed", text)
		}
	}
	if len(late) > 0 {
		return
	}
	changed := d.tell(func(t *subnet.Terms) { t.Pool, t.TTL = n.Pool(), n.LeaseTTL })
	if changed {
		d.facts.stale()
		d.loop.Trigger()
	}
	if d.rules.SetChoice(n.NFTables) || changed {
		d.log.Info("took over the new network config", "subnet_min", n.SubnetMin, "subnet_max", n.SubnetMax, "lease_ttl", n.LeaseTTL)
	}
}

// tell changes the terms of the lease, and tells whether they are others now.
func (d *daemon) tell(change func(*subnet.Terms)) bool {
	d.terms.Lock()
	defer d.terms.Unlock()
	before := d.terms.now
	if change(&d.terms.now); d.terms.now == before {
		return false
	}
	replace(d.terms.news, d.terms.now)
	return true
}

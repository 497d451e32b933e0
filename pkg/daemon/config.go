package daemon

import (
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
)

// parseConfig reads a network config, and refuses one whose own routes would take what this host
// needs itself. What it has it keeps.
func (d *daemon) parseConfig(raw []byte) (backend.Network, error) {
	n, err := backend.ParseNetwork(raw)
	if err == nil && !n.Equal(d.net) {
		err = d.uplink.CheckNetwork(n)
	}
	return n, err
}

// applyConfig takes over what a later network config may change while the
// network runs: which subnets are leased from now on, for how long, and who keeps
// the packet filter's rules. Anything else would cut this host off from those
// that have not noticed yet; it waits for a restart.
func (d *daemon) applyConfig(n backend.Network) {
	const id = "network-config/restart"
	if late := d.net.NeedsRestart(n); len(late) > 0 {
		d.conditions.Set(condition.Condition{
			ID: id, Text: "config change needs a restart of flanneld on all hosts, keeping the old config",
			Fields: []any{"changes", strings.Join(late, "; ")},
		})
		return
	}
	d.conditions.End(id)
	changed := d.terms.SetConfig(n)
	if changed {
		d.uplink.SetLeased(n.V4.Cover())
	}
	if d.rules.SetChoice(n.NFTables) || changed {
		d.log.Info("applied new network config", "subnet_min", n.V4.Min, "subnet_max", n.V4.Max, "lease_ttl", n.LeaseTTL)
	}
}

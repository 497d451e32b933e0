package daemon

import (
	"strings"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
)

// parseConfig parses a network config. A new one is rejected if its routes would hide addresses
// that this host needs.
func (d *daemon) parseConfig(raw []byte) (backend.Network, error) {
	n, err := backend.ParseNetwork(raw)
	if err == nil && !n.Equal(d.net) {
		err = d.uplink.CheckNetwork(n)
	}
	return n, err
}

// applyConfig applies the parts of a later network config that may change at runtime: which subnets
// are leased from now on, for how long, and which packet filter is preferred. Other changes would
// cut this host off from hosts that have not applied them yet; they need a restart.
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

package daemon

import (
	"fmt"
	"reflect"
	"strings"

	"flanneld/pkg/lease"
	"flanneld/pkg/subnet"
)

// pool is what a network config has to lease.
func (n network) pool() lease.Pool {
	return lease.Pool{Network: n.Network, SubnetLen: n.SubnetLen, Min: n.SubnetMin, Max: n.SubnetMax}
}

// reconfigure takes over what a later network config may change while the
// network runs: which subnets are leased from now on, for how long, and who keeps
// the packet filter's rules. Anything else would cut this host off from those
// that have not noticed yet; it waits for a restart.
func (d *daemon) reconfigure(n network) {
	var late []string
	differ := func(what string, before, now any) {
		if before != now {
			late = append(late, fmt.Sprintf("%s is %v, was %v", what, now, before))
		}
	}
	differ("Network", d.net.Network, n.Network)
	differ("SubnetLen", d.net.SubnetLen, n.SubnetLen)
	differ("Backend.Type", d.net.BackendType, n.BackendType)
	if len(late) == 0 && !reflect.DeepEqual(d.net.Backend, n.Backend) {
		late = append(late, "Backend has other options")
	}
	if text := strings.Join(late, "; "); text != d.refused {
		d.refused = text
		if text != "" {
			d.log.Warn("the network config has changed in what takes a restart of flanneld, on all hosts; going on with the old one", "changed", text)
		}
	}
	if len(late) > 0 {
		return
	}
	changed := d.tell(func(t *subnet.Terms) { t.Pool, t.TTL = n.pool(), n.LeaseTTL })
	if d.rules.choose(n.NFTables) || changed {
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
	select { // the latest counts
	case <-d.terms.news:
	default:
	}
	d.terms.news <- d.terms.now
	return true
}

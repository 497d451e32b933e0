package daemon

import (
	"context"
	"net/netip"
	"slices"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/presence"
	"flanneld/pkg/registry/store"
)

// findEtcd finds out where etcd is, and has nothing of an earlier run in the way to it.
func (d *daemon) findEtcd(ctx context.Context, inv host.Inventory) (err error) {
	o := &d.options.Etcd
	d.uncover(inv.Gateways())
	if domain := d.options.EtcdDomain; domain != "" {
		d.warnOfNameServers()
		if o.Endpoints, err = store.Resolve(ctx, domain, d.log, d.conditions); err != nil {
			return err
		}
	}
	d.needs = newNeeds(*o, d.needsChanged)
	if d.options.EtcdDomain == "" && len(d.needs.names) > 0 {
		d.warnOfNameServers()
	}
	o.Connecting = d.connecting
	d.atStart = inv.Needs(netip.PrefixFrom(netip.IPv4Unspecified(), 0), d.wanted())
	d.uncover(d.wanted())
	return nil
}

// leftover is a route of this host's network, left by an earlier run, that takes what this run
// needs itself, as the operation that removes it.
type leftover struct {
	dataplane.Op
	need host.Need
}

// uncover removes routes that an earlier run has left and that would take what this run needs
// itself. Without that, an etcd that such a route has cut off could never say that it is not
// wanted any more. So this is the one thing that is removed before the view of the network is
// complete; from then on, the loop does it.
func (d *daemon) uncover(wanted []host.Need) {
	d.way.Lock()
	defer d.way.Unlock()
	for _, l := range d.leftovers(wanted) {
		fields := []any{"addr", l.need.Addr, "reason", l.need.What}
		if err := d.kernel.Apply([]dataplane.Op{l.Op})[0]; err != nil {
			d.log.Warn("cannot remove a route of an earlier run that takes what this host needs itself", append(fields, "err", err, "command", l.Op.String())...)
		} else {
			d.log.Warn("removed a route of an earlier run that took what this host needs itself", append(fields, "op", l.Op.String())...)
		}
	}
}

// warnOfNameServers warns about routes of an earlier run that lead to name servers, which are
// asked for names before etcd can be. They may be in containers, so nothing is removed.
func (d *daemon) warnOfNameServers() {
	for _, l := range d.leftovers(nameServers()) {
		d.log.Warn("a route of an earlier run leads to a name server: if that is not in a container, it is cut off", "addr", l.need.Addr, "command", l.Op.String())
	}
}

func (d *daemon) leftovers(wanted []host.Need) (all []leftover) {
	network := d.former.Network
	wanted = slices.DeleteFunc(slices.Clone(wanted), func(n host.Need) bool { return !network.IsValid() || !network.Contains(n.Addr) })
	if len(wanted) == 0 {
		return nil // as nearly always
	}
	inv, err := d.kernel.Inventory(kernel.Wanted{Network: network, Leads: addrsOf(wanted)})
	if err != nil {
		d.conditions.Set(unreadable(err))
		return nil
	}
	needs := slices.DeleteFunc(inv.Needs(network, wanted), func(n host.Need) bool {
		blackhole := d.former.Subnet // which an inventory does not tell
		return !inv.Takes(n.Addr) && !(blackhole.IsValid() && n.TakenBy(blackhole))
	})
	if len(needs) == 0 {
		d.conditions.End(routesUnread)
		return nil
	}
	daemons, err := presence.Holders()
	if err != nil {
		d.conditions.Set(unreadable(err))
		return nil
	}
	if slices.ContainsFunc(daemons, func(h presence.Holder) bool { return h.Network.Overlaps(network) }) {
		return nil // the routes are those of one that runs
	}
	scope := dataplane.Scope{Network: network}
	for _, i := range inv.Ifaces {
		if dataplane.IsDeviceName(i.Name) {
			scope.Links = append(scope.Links, i.Name)
		}
	}
	have, err := d.kernel.Snapshot(scope)
	if err != nil {
		d.conditions.Set(unreadable(err))
		return nil
	}
	d.conditions.End(routesUnread)
	scope.Links = slices.DeleteFunc(scope.Links, func(name string) bool {
		ours, _ := have.DeviceOf(network, name)
		return !ours
	})
	for _, n := range needs {
		for _, op := range dataplane.Uncover(have, scope, n.Addr) {
			have.Note(op)
			all = append(all, leftover{op, n})
		}
	}
	return all
}

// routesUnread is the ID of the condition that the routes cannot be read.
const routesUnread = "leftover-routes"

func unreadable(err error) condition.Condition {
	return condition.Condition{
		ID: routesUnread, Text: "cannot tell whether an earlier run has left routes that are in the way",
		Fields: []any{"err", err},
	}
}

// connecting is told of each address of etcd before a connection to it is tried.
func (d *daemon) connecting(a netip.Addr) {
	d.needs.connecting(a)
	if !d.looping.Load() {
		d.uncover(d.needs.wanted())
	}
}

// needsChanged has the routes follow other addresses of etcd, once there are any.
func (d *daemon) needsChanged() {
	if d.looping.Load() {
		d.facts.stale()
		d.loop.Trigger()
		d.checks.trigger()
	}
}

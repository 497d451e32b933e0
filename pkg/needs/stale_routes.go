package needs

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/presence"
)

// StaleRoutes handles routes of this host's network that an earlier run has left. Its methods may
// be called by several goroutines.
type StaleRoutes struct {
	Kernel     Kernel
	Network    netip.Prefix // previous network of this host; invalid if there is none
	Subnet     netip.Prefix // previous subnet
	Conditions *condition.List
	Log        *slog.Logger

	mu      sync.Mutex // one call at a time
	stopped bool       // see Stop
}

// Kernel reads and removes routes.
type Kernel interface {
	Inventory(kernel.Wanted) (host.Inventory, error)
	Snapshot(dataplane.Scope) (dataplane.State, error)
	Apply([]dataplane.Op) []error
}

// staleRoute is a stale route to an address that this host needs, as the operation that removes it.
type staleRoute struct {
	dataplane.Op
	need host.Need
}

// RemoveFor removes stale routes to addresses that this host needs. Without that, an etcd that such
// a route makes unreachable could never report that the route is outdated. So this is the only
// removal before the view of the network is complete; later the reconcile loop does it.
func (l *StaleRoutes) RemoveFor(wanted []host.Need) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	l.each(wanted, func(o staleRoute) {
		fields := []any{"addr", o.need.Addr, "reason", o.need.What}
		if err := l.Kernel.Apply([]dataplane.Op{o.Op})[0]; err != nil {
			l.Log.Warn("failed to remove stale route that hides an address this host needs", append(fields, "err", err, "command", o.Op.String())...)
		} else {
			l.Log.Warn("removed stale route that hid an address this host needs", append(fields, "command", o.Op.String())...)
		}
	})
}

// WarnAbout warns about stale routes to name servers, which resolve the names of etcd. They may run
// in containers, so nothing is removed.
func (l *StaleRoutes) WarnAbout(nameServers []host.Need) {
	l.each(nameServers, func(o staleRoute) {
		l.Log.Warn("stale route leads to a name server, which is unreachable unless it runs in a container", "addr", o.need.Addr, "command", o.Op.String())
	})
}

// Stop ends the removal, because the reconcile loop does it from now on.
func (l *StaleRoutes) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.Conditions.End(routesCondition)
}

// routesCondition is the ID of the condition that the routes cannot be read.
const routesCondition = "leftover-routes"

// each calls do for each stale route to the given addresses.
func (l *StaleRoutes) each(wanted []host.Need, do func(staleRoute)) {
	wanted = slices.DeleteFunc(slices.Clone(wanted), func(n host.Need) bool { return !l.Network.IsValid() || !l.Network.Contains(n.Addr) })
	if len(wanted) == 0 {
		return // the common case
	}
	l.Conditions.SetError(condition.Condition{
		ID: routesCondition, Text: "failed to check for stale routes of an earlier run, will retry",
	}, l.eachOf(wanted, do))
}

// eachOf calls do for each stale route to addresses in the network. No daemon that may need one of
// them starts meanwhile.
func (l *StaleRoutes) eachOf(wanted []host.Need, do func(staleRoute)) error {
	inv, err := l.Kernel.Inventory(kernel.Wanted{Network: l.Network, Targets: Addrs(wanted)})
	if err != nil {
		return err
	}
	needs := slices.DeleteFunc(inv.Needs(l.Network, wanted), func(n host.Need) bool {
		blackhole := l.Subnet // not part of an inventory
		return !inv.ViaOverlay(n.Addr) && !(blackhole.IsValid() && n.DivertedBy(blackhole))
	})
	if len(needs) == 0 {
		return nil
	}
	daemons, release, err := presence.Freeze()
	if err != nil {
		return err
	}
	defer release()
	if slices.ContainsFunc(daemons, func(h presence.Daemon) bool { return h.Network.Overlaps(l.Network) }) {
		return nil // the routes belong to a running daemon
	}
	scope := dataplane.Scope{Networks: []netip.Prefix{l.Network}}
	for _, i := range inv.Ifaces {
		if dataplane.IsDeviceName(i.Name) {
			scope.Links = append(scope.Links, i.Name)
		}
	}
	have, err := l.Kernel.Snapshot(scope)
	if err != nil {
		return err
	}
	scope.Links = slices.DeleteFunc(scope.Links, func(name string) bool {
		ours, _ := have.DeviceOf(l.Network, name)
		return !ours
	})
	for _, n := range needs {
		for _, op := range dataplane.DelRoutesTo(have, scope, n.Addr) {
			have.Update(op)
			do(staleRoute{op, n})
		}
	}
	return nil
}

package daemon

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/host"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnet"
	"flanneld/pkg/subnetenv"
)

// factsRetry is the time between attempts while this host has no uplink.
const factsRetry = time.Second

// uplinkCondition is there while the uplink cannot be used.
const uplinkCondition = "uplink"

// chooseUplink finds the interface that carries the overlay, or keeps it. It returns why
// that cannot be used now.
func (d *daemon) chooseUplink(inv host.Inventory) error {
	d.choosing.Lock()
	defer d.choosing.Unlock()
	choice := d.tracker.Update(inv, d.subnets(), time.Now())
	if choice.Again > 0 {
		d.choice.within(choice.Again)
	}
	u, before := choice.Uplink, d.uplink.Load()
	switch {
	case u.Iface == "" || before != nil && *before == u:
	case before == nil:
		d.log.Info("chose the uplink", "iface", u.Iface, "addr", u.Addr, "by", u.Why)
		d.uplink.Store(&u)
	default:
		d.log.Warn("chose another uplink", "iface", u.Iface, "addr", u.Addr, "by", u.Why, "iface_before", before.Iface, "addr_before", before.Addr)
		d.uplink.Store(&u)
		if before.Addr != u.Addr {
			d.registry.Reconnect()
		}
	}
	switch {
	case choice.Err == nil:
		d.conditions.End(uplinkCondition)
		return nil
	case before == nil:
		return choice.Err
	case !d.conditions.Has(uplinkCondition): // why it began, not all that happens meanwhile
		d.conditions.Set(condition.Condition{
			ID: uplinkCondition, Text: "the uplink cannot be used, waiting for it; the kernel stays as it is",
			Fields: []any{"iface", u.Iface, "addr", u.Addr, "err", choice.Err},
		})
	}
	return reconcile.ReportedError{Err: choice.Err}
}

// subnets are those that this host has or had.
func (d *daemon) subnets() []netip.Prefix {
	if v := d.view.Load(); v != nil {
		return append(slices.Clip(d.had), v.Own.Subnet)
	}
	return d.had
}

// publicIP is the address that peers send to.
func (d *daemon) publicIP() netip.Addr {
	if ip := d.options.Uplink.PublicIP; ip.IsValid() {
		return ip
	}
	return d.uplink.Load().Addr
}

// inventory reads what an uplink can be chosen from, with the links whose names matter: those
// that were asked for, the present uplink, and the overlay's device; and, if routes, how peers and
// what this host needs are reached, which may take a while where a routing daemon has made many.
func (d *daemon) inventory(routes bool) (host.Inventory, error) {
	names := slices.Clone(d.options.Uplink.Ifaces)
	if to := d.options.Uplink.CanReach; to.IsValid() {
		if iface, _, err := d.kernel.RouteTo(to); err == nil { // else the choice says so
			names = append(names, iface)
		}
	}
	if u := d.uplink.Load(); u != nil {
		names = append(names, u.Iface, u.Holder)
	}
	if d.net.Backend != nil {
		names = append(names, d.net.FixedDevice())
	}
	var leads []netip.Addr
	if routes {
		leads = append(addrsOf(d.wanted()), addrsOf(nameServers())...)
	}
	return d.kernel.Inventory(kernel.Wanted{
		Names:  slices.DeleteFunc(names, func(name string) bool { return name == "" }),
		Routes: routes, Network: d.net.Network, Leads: leads,
	})
}

// readFacts reads what is true of this host now.
func (d *daemon) readFacts() (host.Facts, error) { return d.factsWith(true) }

// factsWith is readFacts with the underlay's routes or without.
func (d *daemon) factsWith(routes bool) (host.Facts, error) {
	inv, err := d.inventory(routes)
	if err != nil {
		return host.Facts{}, err
	}
	if err := d.chooseUplink(inv); err != nil {
		return host.Facts{}, err
	}
	f, err := d.uplink.Load().Facts(inv, d.publicIP(), d.net.Network)
	if tun := d.tun.Load(); tun != nil {
		f.TUN = *tun
	}
	if routes {
		f.Needs, f.NameServers = inv.Needs(d.net.Network, d.wanted()), inv.Inside(d.net.Network, nameServers())
	}
	d.terms.Lock()
	f.Leased = cmp.Or(d.terms.now.Pool, d.net.Pool()).Cover()
	d.terms.Unlock()
	return f, err
}

// input is what the wanted state follows from now. Every pass begins with it.
func (d *daemon) input(whole bool) (reconcile.Input, error) {
	d.alive.loop.Beat()
	read := d.facts.latest
	if whole {
		read = d.facts.recent
	}
	f, err := read()
	if err != nil {
		if d.again == nil {
			d.again = time.AfterFunc(factsRetry, d.loop.Trigger)
		}
		d.again.Reset(factsRetry) // one, or there would be more with each pass
		if d.filtered != nil {
			d.setFilter(*d.filtered, false)
		}
		return reconcile.Input{}, err
	}
	d.publish(f)
	d.files.Update(func(e *subnetenv.Env) { e.MTU = d.net.MTU(f) })
	d.filtered = &f
	d.setFilter(f, true)
	return reconcile.Input{Facts: f, View: *d.view.Load()}, nil
}

// publish has the lease follow the address of the uplink. What else it says, as
// the MAC of a device, stays: peers know it.
func (d *daemon) publish(f host.Facts) {
	own := d.view.Load().Own.Attrs
	if own.PublicIP == f.PublicIP {
		return
	}
	f.MACs = nil
	a, err := d.net.Attrs(f, own, nil)
	if err != nil {
		if d.said != err.Error() {
			d.log.Warn("the lease cannot follow the uplink's address", "public_ip", own.PublicIP, "addr", f.PublicIP, "err", err)
		}
		d.said = err.Error()
		return
	}
	d.tell(func(t *subnet.Terms) { t.Attrs = a })
}

// attrs returns what the lease says of this host.
func (d *daemon) attrs(previous lease.Attrs, others []lease.Lease) (lease.Attrs, error) {
	var f host.Facts
	err := d.try("read the state of this host", pace.Passing, func() (err error) {
		f, err = d.factsWith(false) // no lease depends on routes
		return err
	})
	if err != nil {
		return lease.Attrs{}, err
	}
	return d.net.Attrs(f, previous, others)
}

package daemon

import (
	"fmt"
	"net/netip"
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/subnet"
)

// factsRetry is the time between attempts while this host has no uplink.
const factsRetry = time.Second

// chooseUplink finds the interface that carries the overlay.
func (d *daemon) chooseUplink(inv host.Inventory) error {
	u, err := host.Choose(d.options.Uplink, inv, d.kernel.RouteTo)
	if err != nil {
		return fmt.Errorf("choose the uplink: %w", err)
	}
	before := d.uplink.Swap(&u)
	if before == nil || *before != u {
		d.log.Info("chose the uplink", "iface", u.Iface, "addr", u.Addr, "by", u.Why)
	}
	if before != nil && before.Addr != u.Addr {
		d.registry.Reconnect()
	}
	return nil
}

// publicIP is the address that peers send to.
func (d *daemon) publicIP() netip.Addr {
	if ip := d.options.Uplink.PublicIP; ip.IsValid() {
		return ip
	}
	return d.uplink.Load().Addr
}

// readFacts reads what is true of this host now. The uplink is chosen once, and
// again when it is gone, is down or has lost its address: changing it without
// need would interrupt traffic.
func (d *daemon) readFacts() (host.Facts, error) {
	inv, err := d.kernel.Inventory()
	if err != nil {
		return host.Facts{}, err
	}
	if u := d.uplink.Load(); u == nil || !inv.Has(*u) {
		if err := d.chooseUplink(inv); err != nil {
			return host.Facts{}, err
		}
	}
	f, err := d.uplink.Load().Facts(inv, d.publicIP(), d.net.Network)
	if tun := d.tun.Load(); tun != nil {
		f.TUN = *tun
	}
	return f, err
}

// input is what the wanted state follows from now. Every pass begins with it.
func (d *daemon) input(whole bool) (reconcile.Input, error) {
	d.watchdog.loop.beat()
	read := d.facts.latest
	if whole {
		read = d.facts.recent
	}
	f, err := read()
	if err != nil {
		// An interface that is new here tells nobody that it is the uplink.
		time.AfterFunc(factsRetry, d.loop.Trigger)
		return reconcile.Input{}, err
	}
	d.publish(f)
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
	a, err := d.net.Attrs(f, own)
	if err != nil {
		if d.said != err.Error() {
			d.log.Warn("the lease cannot follow the uplink's address", "public_ip", own.PublicIP, "addr", f.PublicIP, "err", err)
		}
		d.said = err.Error()
		return
	}
	if d.tell(func(t *subnet.Terms) { t.Attrs = a }) {
		d.updateSubnetFile()
	}
}

// attrs gives what the lease says of this host.
func (d *daemon) attrs(previous lease.Attrs) (lease.Attrs, error) {
	f, err := d.readFacts()
	if err != nil {
		return lease.Attrs{}, err
	}
	return d.net.Attrs(f, previous)
}

package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/probe"
	"flanneld/pkg/subnet"
)

// probe returns what shows that another host has an address, or why that cannot be
// found out; it is empty when nobody answers there.
func (d *daemon) probe(ctx context.Context, addr netip.Addr) string {
	if !addr.IsValid() || addr.IsUnspecified() {
		return ""
	}
	inv, err := d.inventory(true)
	if err != nil {
		return fmt.Sprintf("cannot tell whether %s is in use: %v", addr, err)
	}
	has := func(a host.Addr) bool { return a.Prefix.Addr() == addr }
	if slices.ContainsFunc(inv.Ifaces, func(i host.Iface) bool { return slices.ContainsFunc(i.Addrs, has) }) {
		return "" // it is this host's, still or again
	}
	iface, _ := host.OnLink(inv.Routes, addr)
	answered, err := probe.Probe(ctx, addr, iface, d.kernel)
	switch {
	case err != nil:
		return fmt.Sprintf("cannot tell whether %s is in use: %v", addr, err)
	case answered != "":
		return fmt.Sprintf("%s answers %s", addr, answered)
	}
	return ""
}

const (
	// rivalPatience is how long the host with the older of two leases with one MAC
	// waits for the other one to take another: that may run a flanneld which never does.
	rivalPatience = 30 * time.Second
	// macEvery is the least time between two changes of the MAC.
	macEvery = 10 * time.Second
)

// rivalry is about other hosts that have the MAC of this one. It belongs to the
// goroutine of the loop.
type rivalry struct {
	since   time.Time // since when there is one; zero: there is none
	changed time.Time // when the MAC was changed last
}

// contest ends a rivalry over the MAC of this host, which no packet between the rivals
// survives. The newer of two leases takes another MAC at once, the older one when the
// other has not done so in time.
func (d *daemon) contest(rivals []lease.Lease) {
	if len(rivals) == 0 {
		d.rivalry.since = time.Time{}
		return
	}
	now := time.Now()
	if d.rivalry.since.IsZero() {
		d.rivalry.since = now
	}
	own := d.view.Load().Own
	if latest := d.own.Load(); latest != nil && latest.Subnet == own.Subnet {
		own.Created = latest.Created
	}
	at := d.rivalry.since.Add(rivalPatience)
	if slices.ContainsFunc(rivals, func(l lease.Lease) bool { return l.Precedes(own) }) {
		at = d.rivalry.since
	}
	if next := d.rivalry.changed.Add(macEvery); at.Before(next) {
		at = next
	}
	if wait := at.Sub(now); wait > 0 {
		time.AfterFunc(wait, d.loop.Trigger)
		return
	}
	f, err := d.facts.latest()
	if err != nil {
		return // the loop says so
	}
	f.MACs = nil
	a, err := d.net.Attrs(f, own.Attrs, rivals)
	if err == nil && d.tell(func(t *subnet.Terms) { t.Attrs = a }) {
		d.rivalry.changed = now
		d.log.Warn("another host has the MAC of this one, taking another", "peer", rivals[0].Subnet, "public_ip", rivals[0].PublicIP, "before", own.BackendData, "now", a.BackendData)
	}
}

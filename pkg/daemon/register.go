package daemon

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/presence"
)

// registerRetry is the time between attempts while another daemon of this host is in the way.
const registerRetry = time.Second

// inTheWay is the ID of the condition that another daemon is.
const inTheWay = "other-flanneld"

// register makes this daemon known to the others of this host, which it waits for as long as one of them serves an
// overlapping network or holds a device of the name that this one's must have: two that share these undo each other's work.
func (d *daemon) register(ctx context.Context) (*presence.Presence, error) {
	device := fixedDevice(d.net.Backend)
	for {
		p, err := presence.Register(d.net.Network, device)
		var held *presence.HeldError
		switch {
		case err == nil:
			d.conditions.End(inTheWay)
			return p, nil
		case errors.As(err, &held):
			d.conditions.Set(conflict(d.net.Network, held))
		default: // the network does not need it
			d.log.Warn("cannot tell other flannelds on this host what this one has; going on", "err", err)
			return nil, nil
		}
		timer := time.NewTimer(registerRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

// fixedDevice is the link that a backend needs and that can have no other name, empty if there is none. Names do not
// depend on facts or leases.
func fixedDevice(b backend.Backend) string {
	for name, l := range b.Base(host.Facts{}, lease.Lease{}).Links {
		if l.Kind != dataplane.KindTUN {
			return name
		}
	}
	return ""
}

// usesTUN reports whether a backend needs a TUN device, whose name can be any.
func usesTUN(b backend.Backend) bool {
	for _, l := range b.Base(host.Facts{}, lease.Lease{}).Links {
		if l.Kind == dataplane.KindTUN {
			return true
		}
	}
	return false
}

// chooseTUN takes the TUN device for this host's overlay, and reports whether that is another one than before.
func (d *daemon) chooseTUN() (changed bool, err error) {
	inv, err := d.kernel.Inventory()
	if err != nil {
		return false, err
	}
	name := d.fds.chooseTUN(inv, d.net.Network, d.former.Network)
	if before := d.tun.Swap(&name); before != nil && *before == name {
		return false, nil
	}
	d.facts.stale()
	return true, nil
}

// anotherTUN looks for another TUN device, for another program has this one now.
func (d *daemon) anotherTUN() {
	if changed, err := d.chooseTUN(); err == nil && changed {
		d.loop.Retry()
	}
}

func conflict(network netip.Prefix, held *presence.HeldError) condition.Condition {
	c := condition.Condition{ID: inTheWay, Severe: true, Fields: []any{"network", network, "reason", held.Error()}}
	switch {
	case held.Device != "":
		c.Text = "waiting until another flanneld on this host ends, which has the same device: give one of the networks another VNI"
	case held.Holder.Network == network:
		c.Text, c.Severe = "waiting until another flanneld on this host ends, which serves the same network", false
	default:
		c.Text = "waiting until another flanneld on this host ends, whose network overlaps: give one of them another Network"
	}
	return c
}

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

// registerRetry is the time between attempts to register.
const registerRetry = time.Second

// IDs of conditions: that another daemon is in the way, and that the others do not know of
// this one.
const (
	inTheWay     = "other-flanneld"
	unregistered = "unregistered"
)

// register makes this daemon known to the others of this host, which it waits for as long as one of them serves an
// overlapping network or holds a device of the name that this one's must have: two that share these undo each other's work.
// The network does not need it: where it is not possible, register returns and goes on trying until ctx ends.
func (d *daemon) register(ctx context.Context) error {
	for waits := false; ; {
		held, err := d.tryRegister()
		if err == nil {
			return nil
		}
		if waits = waits || held || scarce(err); !waits {
			go d.keepRegistering(ctx)
			return nil
		}
		if !pause(ctx, registerRetry) {
			return ctx.Err()
		}
	}
}

func (d *daemon) keepRegistering(ctx context.Context) {
	for pause(ctx, registerRetry) {
		if _, err := d.tryRegister(); err == nil {
			return
		}
	}
}

// tryRegister tries once. It reports whether it failed because another daemon is in the way.
func (d *daemon) tryRegister() (held bool, err error) {
	p, err := presence.Register(d.net.Network, fixedDevice(d.net.Backend))
	var holder *presence.HeldError
	switch {
	case err == nil:
		d.presence.Store(p)
		d.conditions.End(inTheWay)
		d.conditions.End(unregistered)
		return false, nil
	case errors.As(err, &holder):
		d.conditions.Set(conflict(d.net.Network, holder))
		d.conditions.End(unregistered)
		return true, err
	}
	d.conditions.Set(condition.Condition{
		ID: unregistered, Text: "cannot tell other flannelds on this host what this one has, will retry", Fields: []any{"err", err},
	})
	return false, err
}

// pause waits, and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
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
	inv, err := d.inventory(false)
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

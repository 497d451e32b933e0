package subnet

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

const (
	// renewFloor is the least time between two renewals, whatever the
	// margin, and the time between attempts that fail.
	renewFloor = time.Minute
	// Bounds of the wait between two repairs of our key; the latter also bounds how
	// often somebody else's writes are reported.
	firstRepair, lastRepair = time.Second, time.Minute
)

// tendOwn brings the own key to what it should hold, one step at a time, and
// sets the time of the next look.
func (f *follower) tendOwn(ctx context.Context) {
	if f.away.active() {
		return // reconnect comes back here
	}
	err := f.ownStep(ctx)
	var exhausted *exhaustedError
	switch {
	case ctx.Err() != nil:
		return
	case err == nil:
		f.tries = 0
		f.schedule()
	case errors.Is(err, registry.ErrConflict):
		f.known = false
		f.tries++
		f.tend.Reset(max(afterConflict(f.tries), f.lookDelay()))
	case errors.Is(err, registry.ErrDenied):
		f.known = false
		f.Log.Debug("registry refuses to write the lease, trying again", "subnet", f.own.Subnet, "expires", f.own.Expires, "err", err)
		f.tend.Reset(between(lastRetry/2, lastRetry))
	case errors.As(err, &exhausted):
		f.known = false
		f.moving.wait(exhausted)
		f.tend.Reset(exhaustedRetry())
	default:
		// No answer does not mean that nothing was done: look before writing again.
		f.known = false
		f.failed++
		if f.failed == 1 {
			f.Log.Warn("cannot renew lease, trying again", "subnet", f.own.Subnet, "expires", f.own.Expires, "err", err)
		}
		f.tend.Reset(f.retryDelay())
	}
}

// ownStep looks at the own key if need be and does what it needs.
func (f *follower) ownStep(ctx context.Context) error {
	if !f.known {
		return f.look(ctx)
	}
	news := f.own.Attrs != f.attrs
	if !news && (f.own.Reservation() || time.Now().Before(f.due())) {
		return nil
	}
	f.note(f.own.Subnet, f.own.Attrs, f.attrs, 0)
	l, err := f.Registry.Update(ctx, f.own, f.attrs, f.ttl(f.own))
	if err != nil {
		return err
	}
	f.adopt(l)
	if news {
		f.Log.Info("lease tells of the new address", "subnet", l.Subnet, "public_ip", l.PublicIP)
	} else {
		f.Log.Info("lease renewed", "subnet", l.Subnet, "expires", l.Expires)
	}
	return nil
}

// look reads the own key and puts right what is wrong with it.
func (f *follower) look(ctx context.Context) error {
	ev, err := f.Registry.Get(ctx, f.own.Subnet)
	if err != nil {
		return err
	}
	found := ev.Lease
	switch {
	case ev.Deleted:
		return f.repair("own lease is gone, making it again", func() (lease.Lease, error) {
			return f.Registry.Create(ctx, f.own.Subnet, f.attrs, f.TTL)
		})
	case ev.Bad != nil:
		return f.putBack(ctx, lease.Lease{Subnet: f.own.Subnet, Revision: ev.Bad.Revision, Expires: f.own.Expires})
	case found.Attrs == f.own.Attrs && found.Revision == f.own.Revision:
		f.known = true
		return f.ownStep(ctx)
	case !found.Leaving && f.claim.Covers(found): // ours, whose answer was lost
		f.adopt(found)
		return f.ownStep(ctx)
	case found.Attrs == f.attrs || found.Attrs == f.own.Attrs:
		f.reportDouble(found)
		f.adopt(found)
		return f.ownStep(ctx)
	case f.claim.Former != (lease.Attrs{}) && found.Attrs == f.claim.Former && !f.other && found.Created == f.own.Created && found.Revision > f.own.Revision:
		return f.move(ctx, found, "the lease that this host took up is kept by another host, leasing a new one")
	case found.PublicIP == f.PublicIP || found.PublicIP == f.own.PublicIP:
		f.reportDouble(found)
	case f.other || found.Created != f.own.Created:
		return f.move(ctx, found, "own subnet is held by another host now, leasing a new one")
	}
	return f.putBack(ctx, found)
}

// putBack writes our key over what was found there.
func (f *follower) putBack(ctx context.Context, found lease.Lease) error {
	return f.repair("own lease was overwritten, putting it back", func() (lease.Lease, error) {
		return f.Registry.Update(ctx, found, f.attrs, f.ttl(found))
	})
}

// reportDouble reports that somebody else writes our lease as if it were his.
func (f *follower) reportDouble(found lease.Lease) {
	if now := time.Now(); now.Sub(f.doubled) >= lastRepair {
		f.doubled = now
		f.Log.Warn("own lease was written by somebody else: if another host has the same public IP, give one of them its own (-public-ip) or another interface (-iface)",
			"subnet", found.Subnet, "public_ip", found.PublicIP)
	}
}

// repair writes our key against somebody's change, at once the first time
// and ever more slowly if the change keeps coming back.
func (f *follower) repair(msg string, write func() (lease.Lease, error)) error {
	if time.Now().Before(f.fights.next) {
		return nil
	}
	f.note(f.own.Subnet, f.own.Attrs, f.attrs, 0)
	l, err := write()
	if err != nil {
		return err
	}
	f.Log.Warn(msg, "subnet", l.Subnet)
	f.fights.fought()
	f.adopt(l)
	return nil
}

// move gives the subnet up to the host that has it now, if another one can be had: one
// attempt, because peers are to be followed meanwhile.
func (f *follower) move(ctx context.Context, holder lease.Lease, why string) error {
	if f.moving == nil {
		f.moves++
		f.Log.Error(why, "subnet", f.own.Subnet, "public_ip", holder.PublicIP, "times", f.moves)
		f.moving = newAcquisition(f.Options, func(lease.Attrs, []lease.Lease) (lease.Attrs, error) { return f.attrs, nil })
		f.moving.yielded = holder.Subnet
	}
	f.moving.Options = f.Options // the terms may be others by now
	f.moving.Previous, f.moving.Claim = netip.Prefix{}, lease.Claim{}
	l, _, err := f.moving.attempt(ctx)
	if err != nil {
		return err
	}
	f.claim.Former = lease.Attrs{}
	// The listing is not needed: the watch never stopped.
	f.learn(holder)
	f.adopt(l)
	return nil
}

// adopt takes l as what the registry holds for us.
func (f *follower) adopt(l lease.Lease) {
	if !l.SameAs(f.own) {
		f.changed()
	}
	f.own, f.known, f.other, f.failed, f.moving, f.wrote = l, true, false, 0, nil, time.Now()
	f.note(l.Subnet, l.Attrs, l.Attrs, l.Revision)
}

// note keeps what our key may say from now on: what it says, and what is being
// written, of which the answer may be lost; then the revision is 0.
func (f *follower) note(subnet netip.Prefix, held, next lease.Attrs, revision uint64) {
	f.claim = lease.Claim{Subnet: subnet, Held: held, Next: next, Revision: revision, Former: f.claim.Former}
	f.remember(f.claim)
}

// ttl is that of the next write: a reservation stays one.
func (f *follower) ttl(l lease.Lease) time.Duration {
	if l.Reservation() {
		return 0
	}
	return f.TTL
}

// due is when to renew a lease that is no reservation. A margin longer than
// the lease would mean always, hence the floor.
func (f *follower) due() time.Time {
	floor := f.wrote.Add(min(renewFloor, f.own.Expires.Sub(f.wrote)/2))
	if due := f.own.Expires.Add(-f.Margin); due.After(floor) {
		return due
	}
	return floor
}

// schedule sets the time of the next look at the own lease.
func (f *follower) schedule() {
	switch {
	case !f.known:
		f.tend.Reset(max(time.Until(f.fights.next), f.lookDelay()))
	case f.own.Reservation():
		f.tend.Stop()
	default:
		f.tend.Reset(max(time.Until(f.due()), f.lookDelay()))
	}
}

// retryDelay is the wait after a write without an answer: a second and then ever longer, up to a
// minute, or less when the lease would not live that long, misleads peers, or is lost.
func (f *follower) retryDelay() time.Duration {
	left := time.Until(f.own.Expires) / 8
	if f.own.Attrs != f.attrs || f.moving != nil {
		left = 0
	}
	delay := min(max(left, lastRetry), renewFloor, firstRetry<<min(f.failed-1, 6))
	return between(delay/2, delay)
}

// fight is a contest over our key with somebody who does not compare before
// he writes.
type fight struct {
	next time.Time // no repair before this
	wait time.Duration
}

func (f *fight) fought() {
	now := time.Now()
	if now.Sub(f.next) > lastRepair {
		f.wait = 0
	}
	f.wait = min(max(firstRepair, f.wait*2), lastRepair)
	f.next = now.Add(f.wait)
}

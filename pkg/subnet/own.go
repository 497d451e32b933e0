package subnet

import (
	"context"
	"net/netip"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

const (
	// renewFloor is the minimum time between two renewals, whatever the margin, and the time
	// between failed attempts.
	renewFloor = time.Minute
	// These are the bounds of the wait between two repairs of our key. lastRepair is also the
	// minimum time between two reports of foreign writes.
	firstRepair, lastRepair = time.Second, time.Minute
)

// ownLease is the lease of this host and the state needed to maintain it. It belongs to the pending
// step, and to the follower between steps.
type ownLease struct {
	Options // with the latest terms

	lease       lease.Lease // as last written or found; zero if there was none yet
	attrs       lease.Attrs // desired attributes
	claim       lease.Claim // possible values of our key from our own writes
	verified    bool        // lease is what the registry has, as far as known
	restored    bool        // the registry was wiped or restored since lease was written, so revisions cannot be compared
	notified    bool        // an event for the key arrived since it was last verified
	missedEvent bool        // this step found a change for which there was no event
	wroteAt     time.Time   // when lease was last written or found
	repairs     pace.Pace   // for repairs of foreign changes to our key
	reportedAt  time.Time   // when a duplicate was last reported

	acquiring        *acquisition     // set while there is no lease or it was lost
	newOwner         lease.Lease      // lease of the host that has the subnet lost last
	moves            uint64           // number of subnets lost to other hosts
	conflicts        uint64           // number of times that another program wrote the key
	conflictRevision uint64           // revision of the last conflict
	listing          registry.Listing // listing that the first subnet was chosen from
}

// had reports whether there is or was a lease.
func (o *ownLease) had() bool { return o.lease != (lease.Lease{}) }

func newRepairs() pace.Pace { return pace.Pace{Initial: firstRepair, Max: lastRepair} }

// step does what the lease needs now: a read and at most one write, or one attempt to lease a
// subnet. Even if it returns an error, it keeps what it has learned.
func (o *ownLease) step(ctx context.Context, told stepInput) error {
	if t := told.terms; t != nil {
		o.setTerms(*t)
	}
	o.restored, o.missedEvent = o.restored || told.restored, false
	if told.wiped {
		o.repairs = newRepairs()
	}
	if told.keyRevision > 0 {
		o.verified, o.notified = false, true
	}
	var err error
	switch {
	case !o.had():
		err = o.acquire(ctx)
	case !o.verified:
		err = o.check(ctx)
	default:
		err = o.renew(ctx)
	}
	if err != nil {
		o.verified = false // a write without an answer may have succeeded, so read before writing again
	}
	return err
}

// setTerms applies new terms.
func (o *ownLease) setTerms(t Terms) {
	o.Pool, o.TTL = t.Pool, t.TTL
	if o.had() {
		o.attrs, o.PublicIP = t.Attrs, t.Attrs.PublicIP
	}
	if q := o.acquiring; q != nil {
		q.Pool, q.TTL, q.PublicIP = o.Pool, o.TTL, o.PublicIP
	}
}

// renew writes the lease if it is due or its attributes have changed.
func (o *ownLease) renew(ctx context.Context) error {
	news := o.lease.Attrs != o.attrs
	if !news && (o.lease.Reservation() || time.Now().Before(o.due())) {
		return nil
	}
	o.record(o.lease.Attrs, o.attrs, 0)
	l, err := o.Registry.Update(ctx, o.lease, o.attrs, o.ttl(o.lease))
	if err != nil {
		return err
	}
	o.adopt(l)
	if news {
		o.Log.Info("updated lease to the new address", "subnet", l.Subnets, "public_ip", l.PublicIP)
	} else {
		o.Log.Info("lease renewed", "subnet", l.Subnets, "expires", l.Expires)
	}
	return nil
}

// check reads the own key and repairs it.
func (o *ownLease) check(ctx context.Context) error {
	ev, err := o.Registry.Get(ctx, o.lease.Subnets)
	if err != nil {
		return err
	}
	found := ev.Lease
	o.missedEvent = !o.notified && (ev.Deleted || ev.Invalid != nil || found.Revision != o.lease.Revision)
	switch {
	case ev.Deleted:
		return o.repair("own lease was deleted, creating it again", func() (lease.Lease, error) {
			return o.Registry.Create(ctx, o.lease.Subnets, o.attrs, o.TTL)
		})
	case ev.Invalid != nil:
		o.countConflict(ev.Invalid.Revision)
		return o.restore(ctx, lease.Lease{Subnets: o.lease.Subnets, Revision: ev.Invalid.Revision, Expires: o.lease.Expires})
	case found.Attrs == o.lease.Attrs && found.Revision == o.lease.Revision:
		o.verified, o.notified, o.acquiring = true, false, nil
		return o.renew(ctx)
	case !found.Leaving && o.claim.Covers(found): // our own write, whose answer was lost
		o.adopt(found)
		return o.renew(ctx)
	}
	if found.Attrs == o.lease.Attrs && found.Reservation() && !o.lease.Reservation() {
		o.Log.Info("lease was reserved for this host, it does not expire any more", "subnet", found.Subnets)
		o.adopt(found)
		return o.renew(ctx)
	}
	o.countConflict(found.Revision)
	switch {
	case found.Attrs == o.attrs || found.Attrs == o.lease.Attrs:
		o.reportDuplicate(found)
		o.adopt(found)
		return o.renew(ctx)
	case o.claim.Adopted != (lease.Attrs{}) && found.Attrs == o.claim.Adopted && !o.restored && found.Created == o.lease.Created && found.Revision > o.lease.Revision:
		return o.move(ctx, found, "reused lease belongs to another host, leasing a new one")
	case found.PublicIP == o.PublicIP || found.PublicIP == o.lease.PublicIP:
		o.reportDuplicate(found)
	case o.restored || found.Created != o.lease.Created:
		return o.move(ctx, found, "lost own subnet to another host, leasing a new one")
	}
	return o.restore(ctx, found)
}

// countConflict counts a write of our key by another program, once per revision.
func (o *ownLease) countConflict(revision uint64) {
	if revision != o.conflictRevision {
		o.conflicts++
		o.conflictRevision = revision
	}
}

// restore overwrites our key.
func (o *ownLease) restore(ctx context.Context, found lease.Lease) error {
	return o.repair("own lease was overwritten, restoring it", func() (lease.Lease, error) {
		return o.Registry.Update(ctx, found, o.attrs, o.ttl(found))
	})
}

// reportDuplicate logs that another program writes our lease as its own.
func (o *ownLease) reportDuplicate(found lease.Lease) {
	if now := time.Now(); now.Sub(o.reportedAt) >= lastRepair {
		o.reportedAt = now
		o.Log.Warn("another program writes this host's lease; if another host has the same public IP, set -public-ip or -iface on one of them",
			"subnet", found.Subnets, "public_ip", found.PublicIP)
	}
}

// repair writes our key after a foreign change: at once the first time, and with increasing delay
// if the change recurs.
func (o *ownLease) repair(msg string, write func() (lease.Lease, error)) error {
	now := time.Now()
	if o.repairs.Delay(now) > 0 {
		return nil
	}
	o.record(o.lease.Attrs, o.attrs, 0)
	l, err := write()
	if err != nil {
		return err
	}
	o.Log.Warn(msg, "subnet", l.Subnets)
	o.repairs.Turn(now)
	o.adopt(l)
	return nil
}

// move gives up the subnet to the host that has it now, once another one is available. It makes one
// attempt in this step and in each following step, unless the subnet is this host's again by then.
func (o *ownLease) move(ctx context.Context, holder lease.Lease, why string) error {
	if o.acquiring == nil {
		o.moves++
		o.Log.Error(why, "subnet", o.lease.Subnets, "public_ip", holder.PublicIP, "times", o.moves)
		another := o.Options
		another.Previous, another.Claim = netip.Prefix{}, lease.Claim{}
		another.Attrs = func(lease.Attrs, []lease.Lease) (lease.Attrs, error) { return o.attrs, nil }
		o.acquiring = newAcquisition(another)
	}
	o.newOwner, o.acquiring.lostSubnet = holder, holder.Subnets.V4()
	return o.acquire(ctx)
}

// acquire makes one attempt to lease a subnet.
func (o *ownLease) acquire(ctx context.Context) error {
	listing, err := o.Registry.List(ctx)
	if err != nil {
		return err
	}
	l, err := o.acquiring.attempt(ctx, &listing)
	if err != nil {
		return err
	}
	if !o.had() {
		o.attrs, o.listing = l.Attrs, listing
	}
	o.claim = o.acquiring.claimed
	o.set(l)
	return nil
}

// adopt sets the lease to l, which the registry has, and records that.
func (o *ownLease) adopt(l lease.Lease) {
	o.set(l)
	o.record(l.Attrs, l.Attrs, l.Revision)
}

func (o *ownLease) set(l lease.Lease) {
	o.lease, o.verified, o.notified, o.restored, o.acquiring, o.wroteAt = l, true, false, false, nil, time.Now()
}

// record updates the claim with the possible values of our key: the present one and the one being
// written, whose answer may be lost. In that case revision is 0.
func (o *ownLease) record(held, next lease.Attrs, revision uint64) {
	o.claim = lease.Claim{Subnets: o.lease.Subnets, Held: held, Next: next, Revision: revision, Adopted: o.claim.Adopted}
	o.remember(o.claim)
}

// ttl returns the TTL of the next write, which is 0 for a reservation.
func (o *ownLease) ttl(l lease.Lease) time.Duration {
	if l.Reservation() {
		return 0
	}
	return o.TTL
}

// due returns when to renew a lease that is not a reservation. The minimum prevents constant
// renewals if the margin is longer than the TTL.
func (o *ownLease) due() time.Time {
	floor := o.wroteAt.Add(min(renewFloor, o.lease.Expires.Sub(o.wroteAt)/2))
	if due := o.lease.Expires.Add(-o.Margin); due.After(floor) {
		return due
	}
	return floor
}

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
	// renewFloor is the least time between two renewals, whatever the
	// margin, and the time between attempts that fail.
	renewFloor = time.Minute
	// Bounds of the wait between two repairs of our key; the latter also bounds how
	// often somebody else's writes are reported.
	firstRepair, lastRepair = time.Second, time.Minute
)

// ownLease is the lease of this host, and what it takes to have a right one. All of it belongs to
// the step that is under way, and to the follower between two of them.
type ownLease struct {
	Options // with the terms as told last

	lease       lease.Lease // as last written or found; zero: there never was one
	attrs       lease.Attrs // that it is to have
	claim       lease.Claim // what our key may say, for all that we wrote
	verified    bool        // lease is what the registry holds, as far as this has seen
	restored    bool        // the registry was wiped or restored since lease was written: its revisions say nothing of it
	notified    bool        // since the key was as it should be, it was heard that it may not be
	missedEvent bool        // this step found it otherwise, and that was not heard
	wroteAt     time.Time   // when lease was last written or found
	repairs     pace.Pace   // of what somebody else does to our key
	reportedAt  time.Time   // when it was last reported that somebody writes it as his own

	acquiring        *acquisition     // of a subnet: there is no lease, or it was lost; else nil
	newOwner         lease.Lease      // that of the host that has the subnet which was lost last
	moves            uint64           // subnets that were lost to other hosts
	conflicts        uint64           // times that the key was found to be written by others
	conflictRevision uint64           // the revision then
	listing          registry.Listing // from which the first subnet was chosen
}

// had reports whether there is, or was, a lease.
func (o *ownLease) had() bool { return o.lease != (lease.Lease{}) }

func newRepairs() pace.Pace { return pace.Pace{Initial: firstRepair, Max: lastRepair} }

// step does what the lease needs: a look at the registry, and one write there, or one attempt to
// lease a subnet. An error says that it failed; whatever can be learned from that is learned.
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
		o.verified = false // no answer does not mean that nothing was done: look before writing again
	}
	return err
}

// setTerms takes over new terms.
func (o *ownLease) setTerms(t Terms) {
	o.Pool, o.TTL = t.Pool, t.TTL
	if o.had() {
		o.attrs, o.PublicIP = t.Attrs, t.Attrs.PublicIP
	}
	if q := o.acquiring; q != nil {
		q.Pool, q.TTL, q.PublicIP = o.Pool, o.TTL, o.PublicIP
	}
}

// renew writes the lease if it is due, or is to say something else.
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

// check reads the own key and puts right what is wrong with it.
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
	case !found.Leaving && o.claim.Covers(found): // ours, whose answer was lost
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

// countConflict counts that somebody else has written our key, once.
func (o *ownLease) countConflict(revision uint64) {
	if revision != o.conflictRevision {
		o.conflicts++
		o.conflictRevision = revision
	}
}

// restore writes our key over what was found there.
func (o *ownLease) restore(ctx context.Context, found lease.Lease) error {
	return o.repair("own lease was overwritten, restoring it", func() (lease.Lease, error) {
		return o.Registry.Update(ctx, found, o.attrs, o.ttl(found))
	})
}

// reportDuplicate reports that somebody else writes our lease as if it were his.
func (o *ownLease) reportDuplicate(found lease.Lease) {
	if now := time.Now(); now.Sub(o.reportedAt) >= lastRepair {
		o.reportedAt = now
		o.Log.Warn("another program writes this host's lease; if another host has the same public IP, set -public-ip or -iface on one of them",
			"subnet", found.Subnets, "public_ip", found.PublicIP)
	}
}

// repair writes our key against somebody's change, at once the first time
// and ever more slowly if the change keeps coming back.
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

// move gives the subnet up to the host that has it now, if another one can be had: by one attempt
// in this step, and one in each of the next, unless the subnet is this host's again by then.
func (o *ownLease) move(ctx context.Context, holder lease.Lease, why string) error {
	if o.acquiring == nil {
		o.moves++
		o.Log.Error(why, "subnet", o.lease.Subnets, "public_ip", holder.PublicIP, "times", o.moves)
		another := o.Options
		another.Previous, another.Claim = netip.Prefix{}, lease.Claim{}
		another.Attrs = func(lease.Attrs, []lease.Lease) (lease.Attrs, error) { return o.attrs, nil }
		o.acquiring = newAcquisition(another)
	}
	o.newOwner, o.acquiring.lostSubnet = holder, holder.Subnets.V4
	return o.acquire(ctx)
}

// acquire makes one attempt to lease a subnet.
func (o *ownLease) acquire(ctx context.Context) error {
	q := o.acquiring
	l, listing, err := q.attempt(ctx)
	if err != nil {
		return err
	}
	if !o.had() {
		o.attrs, o.listing = l.Attrs, listing
	}
	o.claim = q.claimed
	o.set(l)
	return nil
}

// adopt takes l as what the registry holds for us, and notes that.
func (o *ownLease) adopt(l lease.Lease) {
	o.set(l)
	o.record(l.Attrs, l.Attrs, l.Revision)
}

func (o *ownLease) set(l lease.Lease) {
	o.lease, o.verified, o.notified, o.restored, o.acquiring, o.wroteAt = l, true, false, false, nil, time.Now()
}

// record keeps what our key may say from now on: what it says, and what is being
// written, of which the answer may be lost; then the revision is 0.
func (o *ownLease) record(held, next lease.Attrs, revision uint64) {
	o.claim = lease.Claim{Subnets: o.lease.Subnets, Held: held, Next: next, Revision: revision, Adopted: o.claim.Adopted}
	o.remember(o.claim)
}

// ttl is that of the next write: a reservation stays one.
func (o *ownLease) ttl(l lease.Lease) time.Duration {
	if l.Reservation() {
		return 0
	}
	return o.TTL
}

// due is when to renew a lease that is no reservation. A margin longer than
// the lease would mean always, hence the floor.
func (o *ownLease) due() time.Time {
	floor := o.wroteAt.Add(min(renewFloor, o.lease.Expires.Sub(o.wroteAt)/2))
	if due := o.lease.Expires.Add(-o.Margin); due.After(floor) {
		return due
	}
	return floor
}

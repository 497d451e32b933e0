package subnet

import (
	"context"
	"net/netip"
	"slices"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// acquisition is the search for a subnet: the one that this host has, claims or is reserved, else
// the previous one, else a random free one. It goes on from attempt to attempt.
//
// A lease of this host at a former address is left to whoever lives at that address
// now, or has written it since: a machine cloned with its files is not the one that it
// was cloned from.
type acquisition struct {
	Options
	lostSubnet netip.Prefix // not to be taken: another host has it, although perhaps with our public IP
	claimed    lease.Claim  // on the lease that is written
	logged     map[string]bool
}

func newAcquisition(o Options) *acquisition {
	return &acquisition{Options: o, logged: map[string]bool{}}
}

// logOnce says something the first time that it is so, by a method of a Logger.
func (q *acquisition) logOnce(say func(msg string, fields ...any), msg string, fields ...any) {
	if !q.logged[msg] {
		q.logged[msg] = true
		say(msg, fields...)
	}
}

// hostError is one of the host's own: of Attrs or Avoid.
type hostError struct{ err error }

func (e *hostError) Error() string { return e.err.Error() }

func (e *hostError) Unwrap() error { return e.err }

// attempt lists, chooses and writes once. The listing is the one the choice was made from; it is
// older than the lease.
func (q *acquisition) attempt(ctx context.Context) (lease.Lease, registry.Listing, error) {
	listing, err := q.Registry.List(ctx)
	if err != nil {
		return lease.Lease{}, listing, err
	}
	l, err := q.pick(ctx, &listing)
	return l, listing, err
}

func (q *acquisition) pick(ctx context.Context, listing *registry.Listing) (lease.Lease, error) {
	has, ok := q.existing(ctx, *listing)
	if !ok {
		var err error
		if has, ok, err = q.originalLease(ctx, *listing); err != nil {
			return lease.Lease{}, err
		}
	}
	previous := has.Attrs
	previous.Leaving = false // who gave it up did not get to the end, and is here again
	a, err := q.Attrs(previous, q.others(*listing, has, ok))
	if err != nil {
		return lease.Lease{}, &hostError{err}
	}
	a.PublicIP = q.PublicIP
	if ok {
		return q.reuse(ctx, has, a)
	}
	if err := q.releaseUnusable(ctx, listing); err != nil {
		return lease.Lease{}, err
	}
	subnet, err := q.choose(ctx, *listing)
	if err != nil {
		return lease.Lease{}, err
	}
	subnets := lease.Subnets{V4: subnet}
	l, err := q.write(lease.Claim{Subnets: subnets, Held: a, Next: a}, func() (lease.Lease, error) {
		return q.Registry.Create(ctx, subnets, a, q.TTL)
	})
	if err == nil {
		q.Log.Info("allocated lease to current node", "subnet", l.Subnets, "public_ip", q.PublicIP)
	}
	return l, err
}

// write writes a lease. What the next run is to know of it is remembered before, for the answer
// may be lost, and after.
func (q *acquisition) write(c lease.Claim, write func() (lease.Lease, error)) (lease.Lease, error) {
	q.remember(c)
	l, err := write()
	if err == nil {
		c.Held, c.Revision = c.Next, l.Revision
		q.remember(c)
		q.claimed = c
	}
	return l, err
}

// reuse renews a lease that this host already has; a reservation stays one.
func (q *acquisition) reuse(ctx context.Context, has lease.Lease, a lease.Attrs) (lease.Lease, error) {
	ttl := q.TTL
	if has.Reservation() {
		ttl = 0
	}
	claim := lease.Claim{Subnets: has.Subnets, Held: has.Attrs, Next: a, Adopted: q.adopted(has, a)}
	claim.Held.Leaving = false
	l, err := q.write(claim, func() (lease.Lease, error) { return q.Registry.Update(ctx, has, a, ttl) })
	switch {
	case err != nil:
	case has.PublicIP == q.PublicIP:
		q.Log.Info("reused own lease", "subnet", l.Subnets, "public_ip", q.PublicIP, "reservation", l.Reservation())
	default:
		q.Log.Info("reused lease of this host's previous address", "subnet", l.Subnets, "public_ip", q.PublicIP, "before", has.PublicIP, "reservation", l.Reservation())
	}
	return l, err
}

// fits reports whether a subnet can be this host's.
func (q *acquisition) fits(subnet netip.Prefix) bool {
	if !q.Pool.Fits(subnet) {
		return false
	}
	if q.Needed == nil {
		return true
	}
	reason := q.Needed(subnet)
	if reason != "" {
		q.logOnce(q.Log.Error, "own subnet contains an address this host needs, leasing another one", "subnet", subnet, "reason", reason)
	}
	return reason == ""
}

// releaseUnusable releases the leases of this host that it cannot use, as those that do not fit the
// network config any more. A reservation is the operator's and stays.
func (q *acquisition) releaseUnusable(ctx context.Context, listing *registry.Listing) error {
	for _, l := range slices.Clone(listing.Leases) {
		// One that fits and was not taken up is another host's.
		if !q.ours(l) || q.fits(l.Subnets.V4) || !q.onlyOurs(ctx, l) {
			continue
		}
		if l.Reservation() && q.Pool.Fits(l.Subnets.V4) {
			continue // that was said
		}
		if l.Reservation() {
			q.logOnce(q.Log.Warn, "ignored reservation that does not fit the network config", "subnet", l.Subnets, "network", q.Pool.Network)
			continue
		}
		if err := q.Registry.Release(ctx, l); err != nil {
			return err
		}
		q.Log.Info("released unusable lease of this host", "subnet", l.Subnets, "network", q.Pool.Network)
		listing.Leases = slices.DeleteFunc(listing.Leases, func(x lease.Lease) bool { return x.Subnets == l.Subnets })
	}
	return nil
}

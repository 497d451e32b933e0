package subnet

import (
	"context"
	"net/netip"
	"slices"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// acquisition is the search for a subnet: the one of a lease that this host has, of its claim or of
// a reservation, else the previous subnet, else a random free one. Its state spans several
// attempts.
//
// A lease with a previous address of this host is not used if another host has the address now or
// has written the lease since: a machine cloned with its files is a different host.
type acquisition struct {
	Options
	lostSubnet netip.Prefix // not to be used, because another host has it, perhaps with our public IP
	claimed    lease.Claim  // for the lease that is written
	logged     map[string]bool
}

func newAcquisition(o Options) *acquisition {
	return &acquisition{Options: o, logged: map[string]bool{}}
}

// logOnce logs a message only once per acquisition. log is a method of a Logger.
func (q *acquisition) logOnce(log func(msg string, fields ...any), msg string, fields ...any) {
	if !q.logged[msg] {
		q.logged[msg] = true
		log(msg, fields...)
	}
}

// hostError is an error of Attrs or Avoid.
type hostError struct{ error }

func (e hostError) Unwrap() error { return e.error }

// attempt chooses a subnet on the basis of a listing and writes a lease once. It removes leases that
// it released from the listing.
func (q *acquisition) attempt(ctx context.Context, listing *registry.Listing) (lease.Lease, error) {
	has, err := q.existing(ctx, *listing)
	if err != nil {
		return lease.Lease{}, err
	}
	previous := has.Attrs
	previous.Leaving = false // a previous run of this host did not finish releasing it
	a, err := q.Attrs(previous, q.others(*listing, has))
	if err != nil {
		return lease.Lease{}, hostError{err}
	}
	a.PublicIP = q.PublicIP
	if has.Subnets.IsValid() {
		return q.reuse(ctx, has, a)
	}
	if err := q.releaseUnusable(ctx, listing); err != nil {
		return lease.Lease{}, err
	}
	subnet, err := q.choose(ctx, *listing)
	if err != nil {
		return lease.Lease{}, err
	}
	subnets := lease.SubnetsOf(subnet)
	l, err := q.write(lease.Claim{Subnets: subnets, Held: a, Next: a}, func() (lease.Lease, error) {
		return q.Registry.Create(ctx, subnets, a, q.TTL)
	})
	if err == nil {
		q.Log.Info("allocated lease to current node", "subnet", l.Subnets, "public_ip", q.PublicIP)
	}
	return l, err
}

// write writes a lease. It remembers the claim before, because the answer may be lost, and after.
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

// reuse renews a lease that this host already has. A reservation stays a reservation.
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

// fits reports whether this host can use a subnet.
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

// releaseUnusable releases leases of this host that it cannot use, such as those that no longer fit
// the network config. A reservation belongs to the operator and is kept.
func (q *acquisition) releaseUnusable(ctx context.Context, listing *registry.Listing) error {
	for _, l := range slices.Clone(listing.Leases) {
		// A lease that fits and was not reused is another host's.
		if !q.ours(l) || q.fits(l.Subnets.V4()) || !q.onlyOurs(ctx, l) {
			continue
		}
		if l.Reservation() && q.Pool.Fits(l.Subnets.V4()) {
			continue // already logged by fits
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

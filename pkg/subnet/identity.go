package subnet

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sort"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// This file determines which of the leases are this host's.

// ours reports whether a lease is this host's: it has our address, or this host wrote it before it
// had that address. The latter may be another host's now: see onlyOurs.
func (q *acquisition) ours(l lease.Lease) bool {
	return l.Subnets.V4() != q.lostSubnet && (l.PublicIP == q.PublicIP || q.Claim.Matches(l))
}

// probeTime is the timeout of the probe for a previous address of this host.
const probeTime = time.Second

// onlyOurs reports whether a lease that this host wrote cannot be another host's. A lease with
// another address is another host's if it was written since or if the address answers. In doubt the
// result is false, because a new subnet is cheaper than a duplicate one.
func (q *acquisition) onlyOurs(ctx context.Context, l lease.Lease) bool {
	if l.PublicIP == q.PublicIP {
		return true
	}
	evidence := ""
	switch {
	case q.Claim.WrittenSince(l):
		evidence = "another host has written the lease"
	case q.Probe != nil:
		ctx, cancel := context.WithTimeout(ctx, probeTime)
		evidence = q.Probe(ctx, l.PublicIP)
		cancel()
	}
	if evidence != "" && ctx.Err() == nil {
		if l.Subnets.V4() == q.Previous {
			q.Previous = netip.Prefix{} // prevents a second message
		}
		q.logOnce(q.Log.Error, "lease of this host's previous address belongs to another host, leasing a new subnet",
			"subnet", l.Subnets, "before", l.PublicIP, "public_ip", q.PublicIP, "reason", evidence)
	}
	return evidence == ""
}

// existing returns the lease to reuse, or zero if there is none. Of several, the one of the previous
// subnet comes first, because this host's containers are there, then the one of the claim, then a
// reservation, then the oldest.
func (q *acquisition) existing(ctx context.Context, listing registry.Listing) (lease.Lease, error) {
	var fit []lease.Lease
	for _, l := range listing.Leases {
		if q.ours(l) && q.fits(l.Subnets.V4()) {
			fit = append(fit, l)
		}
	}
	rank := func(l lease.Lease) int {
		switch {
		case l.Subnets.V4() == q.Previous:
			return 0
		case q.Claim.Matches(l):
			return 1
		case l.Reservation():
			return 2
		}
		return 3
	}
	sort.Slice(fit, func(i, j int) bool { // package slices would compile another 20 KB for leases
		a, b := fit[i], fit[j]
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Created, b.Created), a.Subnets.Compare(b.Subnets)) < 0
	})
	for _, l := range fit {
		if q.onlyOurs(ctx, l) {
			return l, nil
		}
	}
	return q.originalLease(ctx, listing)
}

// originalLease returns a lease that the original wrote for this host at another address, so there
// is no claim for it: the lease of the previous subnet, if it has values that no other host
// publishes, such as the MAC of a device.
func (q *acquisition) originalLease(ctx context.Context, listing registry.Listing) (lease.Lease, error) {
	at := slices.IndexFunc(listing.Leases, func(l lease.Lease) bool { return l.Subnets.V4() == q.Previous && q.fits(l.Subnets.V4()) })
	if at < 0 || q.ours(listing.Leases[at]) {
		return lease.Lease{}, nil
	}
	l := listing.Leases[at]
	a, err := q.Attrs(lease.Attrs{}, nil)
	if err != nil {
		return lease.Lease{}, hostError{err}
	}
	same := l.BackendType == a.BackendType && l.BackendData == a.BackendData && a.BackendData != ""
	if !same || !q.onlyOurs(ctx, l) {
		return lease.Lease{}, nil
	}
	return l, nil
}

// others returns the leases of other hosts that win conflicts of claims with this host: all of
// them, or those older than mine, the lease that is reused, if there is one.
func (q *acquisition) others(listing registry.Listing, mine lease.Lease) []lease.Lease {
	return slices.DeleteFunc(slices.Clone(listing.Leases), func(l lease.Lease) bool {
		return l.PublicIP == q.PublicIP || l.Subnets == mine.Subnets || mine.Subnets.IsValid() && mine.Precedes(l)
	})
}

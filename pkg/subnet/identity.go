package subnet

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Which of the leases are this host's.

// ours reports whether a lease is this host's: it has our address, or is the one that
// we wrote before we had that. The latter may be another host's now: see onlyOurs.
func (q *acquisition) ours(l lease.Lease) bool {
	return l.Subnets.V4 != q.lostSubnet && (l.PublicIP == q.PublicIP || q.Claim.Matches(l))
}

// probeTime bounds the search for a host that lives at a former address of this one.
const probeTime = time.Second

// onlyOurs reports whether nobody but this host can have a lease that it wrote. One
// with another address is somebody else's if it was written since, or if the address
// answers; when in doubt it is, for a new subnet costs less than one that two have.
func (q *acquisition) onlyOurs(ctx context.Context, l lease.Lease) bool {
	if l.PublicIP == q.PublicIP {
		return true
	}
	evidence := ""
	switch {
	case q.Claim.WrittenSince(l):
		evidence = "the lease was written since"
	case q.Probe != nil:
		ctx, cancel := context.WithTimeout(ctx, probeTime)
		evidence = q.Probe(ctx, l.PublicIP)
		cancel()
	}
	if evidence != "" && ctx.Err() == nil {
		if l.Subnets.V4 == q.Previous {
			q.Previous = netip.Prefix{} // and that is all there is to say of it
		}
		q.logOnce(q.Log.Error, "lease of this host's previous address belongs to another host, leasing a new subnet",
			"subnet", l.Subnets, "before", l.PublicIP, "public_ip", q.PublicIP, "reason", evidence)
	}
	return evidence == ""
}

// existing returns the lease to take up again. Of several, the one where this host's
// containers are goes first, which subnet.env tells, or else the claim; then what an
// operator reserved, then the oldest.
func (q *acquisition) existing(ctx context.Context, listing registry.Listing) (lease.Lease, bool) {
	var fit []lease.Lease
	for _, l := range listing.Leases {
		if q.ours(l) && q.fits(l.Subnets.V4) {
			fit = append(fit, l)
		}
	}
	rank := func(l lease.Lease) int {
		switch {
		case l.Subnets.V4 == q.Previous:
			return 0
		case q.Claim.Matches(l):
			return 1
		case l.Reservation():
			return 2
		}
		return 3
	}
	slices.SortFunc(fit, func(a, b lease.Lease) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Created, b.Created), a.Subnets.Compare(b.Subnets))
	})
	for _, l := range fit {
		if q.onlyOurs(ctx, l) {
			return l, true
		}
	}
	return lease.Lease{}, false
}

// originalLease returns a lease that this host had at another address, and that no claim of
// ours tells of, since the original wrote it: the one of the previous subnet, known by
// what no other host publishes, such as the MAC of a device.
func (q *acquisition) originalLease(ctx context.Context, listing registry.Listing) (lease.Lease, bool, error) {
	at := slices.IndexFunc(listing.Leases, func(l lease.Lease) bool { return l.Subnets.V4 == q.Previous && q.fits(l.Subnets.V4) })
	if at < 0 || q.ours(listing.Leases[at]) {
		return lease.Lease{}, false, nil
	}
	l := listing.Leases[at]
	a, err := q.Attrs(lease.Attrs{}, nil)
	if err != nil {
		return lease.Lease{}, false, &hostError{err}
	}
	same := l.BackendType == a.BackendType && l.BackendData == a.BackendData && a.BackendData != ""
	if !same || !q.onlyOurs(ctx, l) {
		return lease.Lease{}, false, nil
	}
	return l, true, nil
}

// others returns the leases of other hosts that keep what both they and this host claim:
// all of them, or those older than the lease that is taken up.
func (q *acquisition) others(listing registry.Listing, mine lease.Lease, reuse bool) []lease.Lease {
	return slices.DeleteFunc(slices.Clone(listing.Leases), func(l lease.Lease) bool {
		return l.PublicIP == q.PublicIP || l.Subnets == mine.Subnets || reuse && mine.Precedes(l)
	})
}

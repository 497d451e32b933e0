package subnet

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// choose returns the previous subnet if it is free, or else a random free one that overlaps no
// address that this host or a peer needs.
func (q *acquisition) choose(ctx context.Context, listing registry.Listing) (netip.Prefix, error) {
	taken := make([]netip.Prefix, 0, 2*len(listing.Leases))
	take := func(subnet netip.Prefix) {
		// Prefixes that are not inside the network belong to no host and must not prevent hosts
		// from using it.
		if q.Pool.Network.Contains(subnet.Addr()) && subnet.Bits() > q.Pool.Network.Bits() {
			taken = append(taken, subnet)
		}
	}
	for _, l := range listing.Leases {
		take(l.Subnets.V4())
	}
	for _, b := range listing.Invalid {
		take(b.Subnets.V4()) // may be in use by an unknown host
	}
	if q.fits(q.Previous) {
		switch previous := q.Previous; {
		case slices.ContainsFunc(taken, previous.Overlaps):
			q.logOnce(q.Log.Error, "previous subnet is leased by another host, leasing a new one", "subnet", previous)
		case q.free(ctx):
			return previous, nil
		default:
			q.lostSubnet = previous
		}
	}
	leased := len(taken)
	take(q.lostSubnet)
	take(address(q.PublicIP))
	for _, l := range listing.Leases {
		take(address(l.PublicIP))
	}
	if q.Avoid != nil {
		avoid, err := q.Avoid()
		if err != nil {
			return netip.Prefix{}, hostError{err}
		}
		for _, p := range avoid {
			take(p)
		}
	}
	subnet, ok := q.Pool.Pick(taken, rand.Uint64N)
	if ok {
		return subnet, nil
	}
	e := exhaustedError{pool: q.Pool, leased: leased}
	if _, free := q.Pool.Pick(taken[:leased], rand.Uint64N); free {
		e.avoided = taken[leased:]
	}
	return netip.Prefix{}, &e
}

// free reports whether this host can use its previous subnet, for which there is no lease. It
// cannot if another host has this host's previous address and still uses the subnet, although etcd
// has lost the lease or it has expired.
func (q *acquisition) free(ctx context.Context) bool {
	if q.Claim.Subnets.V4() != q.Previous || !q.Claim.Held.PublicIP.IsValid() {
		return true
	}
	return q.onlyOurs(ctx, lease.Lease{Subnets: q.Claim.Subnets, Attrs: q.Claim.Held})
}

// address returns the prefix of a single address. That of the zero address is invalid and in no
// network.
func address(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// exhaustedError is returned if no subnet is free.
type exhaustedError struct {
	pool    lease.Pool
	leased  int
	avoided []netip.Prefix // prefixes that make free subnets unusable; empty if none are free
}

func (e *exhaustedError) Error() string {
	has := fmt.Sprintf("network %s has %d subnets of length %d (%s to %s)", e.pool.Network, e.pool.Size(), e.pool.SubnetLen, e.pool.Min, e.pool.Max)
	if len(e.avoided) > 0 {
		return fmt.Sprintf("no subnet can be used: %s, %d are leased, and each of the others overlaps "+
			"a network or an address that this host or a peer has, such as %s; set SubnetMin and SubnetMax in the network config to an unused range",
			has, e.leased, examples(e.avoided))
	}
	return fmt.Sprintf("out of subnets: %s, and %d leases leave none of them free; "+
		"delete leases of hosts that no longer exist, or enlarge the pool in the network config (SubnetLen, SubnetMin, SubnetMax)", has, e.leased)
}

// examples returns the widest few of prefixes.
func examples(prefixes []netip.Prefix) string {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), a.Compare(b)) })
	sorted = slices.Compact(sorted)
	var names []string
	for _, p := range sorted[:min(len(sorted), 3)] {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

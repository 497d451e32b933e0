package subnet

import (
	"context"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Release releases the lease of this host permanently, after Follow has ended. It returns the lease
// of the last remembered claim, or zero if that is another host's or was never written. A
// reservation belongs to the operator and is kept.
//
// Peers retain a deleted lease for a moment, because the deletion may be an error that its owner
// corrects. They remove a lease with Leaving at once.
func Release(ctx context.Context, r registry.Registry, c lease.Claim) (lease.Lease, error) {
	if c == (lease.Claim{}) {
		return lease.Lease{}, nil
	}
	ev, err := r.Get(ctx, c.Subnets)
	own := ev.Lease
	if err != nil || ev.Deleted || ev.Invalid != nil || !c.Covers(own) || own.Reservation() {
		return lease.Lease{}, err
	}
	return own, r.Release(ctx, own)
}

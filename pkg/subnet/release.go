package subnet

import (
	"context"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Release gives up for good what this host has leased, after Follow has ended, and returns what
// that was: the lease of the claim that was remembered last, or the zero one if that is another
// host's or never came to be. A reservation is the operator's and stays.
//
// A deleted lease may be a mistake that its owner corrects, so peers keep it for a moment; one that
// says that its owner is leaving they drop at once.
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

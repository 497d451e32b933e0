package subnet

import (
	"context"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Preview makes the attempt to lease a subnet that Follow begins with, once, and returns the lease
// and the listing that it was chosen from. With a registry that does not write, it finds out which
// lease this host would have.
func Preview(ctx context.Context, o Options) (lease.Lease, registry.Listing, error) {
	listing, err := o.Registry.List(ctx)
	if err != nil {
		return lease.Lease{}, listing, err
	}
	l, err := newAcquisition(o).attempt(ctx, &listing)
	return l, listing, err
}

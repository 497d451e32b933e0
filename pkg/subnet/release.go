package subnet

import (
	"context"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Release gives the own lease up for good, after Follow has ended. A deleted lease may
// be a mistake that its owner corrects, so peers keep it for a moment; one that says
// that its owner is leaving they drop at once. A reservation is the operator's and
// stays.
func Release(ctx context.Context, r registry.Registry, own lease.Lease) error {
	if own.Reservation() {
		return nil
	}
	return r.Release(ctx, own)
}

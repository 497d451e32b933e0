package subnet

import (
	"context"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// leaveTime is how long a lease lives that was marked and then not deleted.
const leaveTime = time.Minute

// Release gives the own lease up for good, after Follow has ended. That a lease is
// deleted may be anybody's mistake, which its owner puts right, so peers wait a
// moment before they believe it; hence the owner first writes into it that he is
// leaving, upon which they drop him at once. If that fails nothing was changed, and
// if the deletion fails the lease ends by itself in a minute. A reservation is the
// operator's and stays.
func Release(ctx context.Context, r registry.Registry, own lease.Lease) error {
	if own.Reservation() {
		return nil
	}
	a := own.Attrs
	a.Leaving = true
	marked, err := r.Update(ctx, own, a, leaveTime)
	if err != nil {
		return err
	}
	return r.Delete(ctx, marked)
}

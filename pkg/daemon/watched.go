package daemon

import (
	"context"
	"net/netip"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/systemd"
)

// watched is a registry whose calls are signs of life.
type watched struct {
	registry.Registry
	life *systemd.Pulse
}

func (w watched) List(ctx context.Context) (registry.Listing, error) {
	w.life.Beat()
	defer w.life.Beat()
	return w.Registry.List(ctx)
}

func (w watched) Get(ctx context.Context, subnet netip.Prefix) (registry.Event, error) {
	w.life.Beat()
	defer w.life.Beat()
	return w.Registry.Get(ctx, subnet)
}

// Watch is begun by the follower and ends by itself.
func (w watched) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	w.life.Beat()
	return w.Registry.Watch(ctx, index)
}

func (w watched) Create(ctx context.Context, subnet netip.Prefix, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	w.life.Beat()
	defer w.life.Beat()
	return w.Registry.Create(ctx, subnet, a, ttl)
}

func (w watched) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	w.life.Beat()
	defer w.life.Beat()
	return w.Registry.Update(ctx, prev, a, ttl)
}

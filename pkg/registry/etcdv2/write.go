package etcdv2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// WriteConfig implements registry.Registry.
func (r *Registry) WriteConfig(ctx context.Context, raw []byte, revision uint64) error {
	opts := &client.SetOptions{PrevIndex: revision}
	if revision == 0 {
		opts.PrevExist = client.PrevNoExist
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.keys.Set(ctx, r.config, string(raw), opts)
	if err == nil {
		return nil
	}
	if err = r.unwritten(ctx, err); errors.Is(err, registry.ErrConflict) {
		err = registry.ErrConfigChanged
	}
	return fmt.Errorf("write %s: %w", r.config, err)
}

// Create implements registry.Registry.
func (r *Registry) Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := r.set(ctx, r.key(subnets), a, &client.SetOptions{PrevExist: client.PrevNoExist, TTL: seconds(ttl)})
	return l, registry.Failed("create", subnets, err)
}

// Update implements registry.Registry.
func (r *Registry) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := r.swap(ctx, prev, a, ttl)
	return l, registry.Failed("update", prev.Subnets, err)
}

// releaseTTL is the time that a released key remains.
const releaseTTL = time.Second

// Release implements registry.Registry. The key is never deleted by compareAndDelete: clients up to
// flannel 0.11 cannot parse the empty value of its event and see no later event, and those up to
// 0.17 keep the peer. All of them follow a compare-and-swap and an expiry, so the key is written
// once more with a TTL of one second.
func (r *Registry) Release(ctx context.Context, prev lease.Lease) error {
	a := prev.Attrs
	a.Leaving = true
	_, err := r.swap(ctx, prev, a, releaseTTL)
	return registry.Failed("release", prev.Subnets, err)
}

// swap writes a lease if it is unchanged.
func (r *Registry) swap(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	if prev.Revision == 0 {
		return lease.Lease{}, fmt.Errorf("%w: no revision to compare with", registry.ErrConflict)
	}
	return r.set(ctx, r.key(prev.Subnets), a, &client.SetOptions{PrevIndex: prev.Revision, TTL: seconds(ttl)})
}

// set writes a lease under the conditions in opts.
func (r *Registry) set(ctx context.Context, key string, a lease.Attrs, opts *client.SetOptions) (lease.Lease, error) {
	value, err := a.Encode()
	if err = cmp.Or(err, ctx.Err()); err != nil { // the client might send the request even if ctx has ended
		return lease.Lease{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	// The time before the request: the time of the answer must not lengthen the lease.
	now := time.Now()
	resp, err := r.keys.Set(ctx, key, string(value), opts)
	if err != nil {
		return lease.Lease{}, r.unwritten(ctx, err)
	}
	if resp.Node == nil {
		return lease.Lease{}, errNoNode
	}
	ev := content(resp.Node, now).Event()
	if ev.Invalid != nil {
		return lease.Lease{}, fmt.Errorf("read back what was written: %w", ev.Invalid.Err)
	}
	return ev.Lease, nil
}

// unwritten converts etcd's answer to a conditional write to an error of the registry.
func (r *Registry) unwritten(ctx context.Context, err error) error {
	switch refusal(err).Code {
	case client.ErrorCodeKeyNotFound:
		return registry.ErrGone
	case client.ErrorCodeTestFailed, client.ErrorCodeNodeExist, client.ErrorCodeNotFile:
		return registry.ErrConflict
	}
	return r.explain(ctx, err)
}

// seconds rounds up: etcd uses whole seconds, and 0 means no expiry.
func seconds(ttl time.Duration) time.Duration {
	return (ttl + time.Second - 1).Truncate(time.Second)
}

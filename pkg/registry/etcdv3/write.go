package etcdv3

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	client "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// WriteConfig implements registry.Registry.
func (r *Registry) WriteConfig(ctx context.Context, raw []byte, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	unchanged := client.Compare(client.ModRevision(r.config), "=", int64(revision)) // 0 for a key that does not exist
	resp, err := r.swap(ctx, r.config, client.OpPut(r.config, string(raw)), unchanged)
	if err == nil && !resp.Succeeded {
		err = registry.ErrConfigChanged
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", r.config, err)
	}
	return nil
}

// Create implements registry.Registry. It creates the key if no host has a lease of the IPv4
// subnet, with another IPv6 subnet or without one.
func (r *Registry) Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	l, err := r.create(ctx, subnets, a, seconds(ttl))
	return l, registry.Failed("create", subnets, err)
}

func (r *Registry) create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl int64) (lease.Lease, error) {
	value, err := a.Encode()
	if err != nil {
		return lease.Lease{}, err
	}
	found, revision, err := r.holder(ctx, subnets)
	if err != nil {
		return lease.Lease{}, err
	}
	if found.KeyValue != nil {
		return lease.Lease{}, registry.ErrConflict
	}
	g, err := r.grant(ctx, ttl)
	if err != nil {
		return lease.Lease{}, err
	}
	// There may be tails that are no leases. None may be newer.
	plain := r.key(lease.SubnetsOf(subnets.V4()))
	return r.put(ctx, &mvccpb.KeyValue{Key: []byte(r.key(subnets)), Value: value}, g,
		client.Compare(client.CreateRevision(plain), "=", 0),
		client.Compare(client.ModRevision(tails(plain)), "<", int64(revision)+1).WithRange(tailsEnd(plain)))
}

// Update implements registry.Registry.
//
// An etcd lease that has only this key, and this ttl, is kept and renewed, whoever granted it, so
// that renewals leave nothing behind. Any other one is replaced by a new one and ends by itself:
// another program may use it, or it may have other keys, which revoking it would delete.
func (r *Registry) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	l, err := r.update(ctx, prev, a, seconds(ttl))
	return l, registry.Failed("update", prev.Subnets, err)
}

func (r *Registry) update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl int64) (lease.Lease, error) {
	value, err := a.Encode()
	if err != nil {
		return lease.Lease{}, err
	}
	kv, err := r.find(ctx, prev)
	if err != nil {
		return lease.Lease{}, err
	}
	g, kept, err := r.prolong(ctx, kv.Lease, ttl)
	if err == nil && !kept {
		g, err = r.grant(ctx, ttl)
	}
	if err != nil {
		return lease.Lease{}, err
	}
	kv = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, Value: value}
	return r.put(ctx, kv, g, client.Compare(client.ModRevision(string(kv.Key)), "=", int64(prev.Revision)))
}

// releaseTTL is the time that a released key remains if deleting it fails.
const releaseTTL = time.Minute

// Release implements registry.Registry. The etcd lease, which other keys may use, ends by itself.
func (r *Registry) Release(ctx context.Context, prev lease.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	a := prev.Attrs
	a.Leaving = true
	marked, err := r.update(ctx, prev, a, seconds(releaseTTL))
	if err == nil {
		err = r.delete(ctx, marked)
	}
	return registry.Failed("release", prev.Subnets, err)
}

func (r *Registry) delete(ctx context.Context, prev lease.Lease) error {
	kv, err := r.find(ctx, prev)
	if err != nil {
		return err
	}
	key := string(kv.Key)
	resp, err := r.swap(ctx, key, client.OpDelete(key), client.Compare(client.ModRevision(key), "=", int64(prev.Revision)))
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return conflict(present(resp))
	}
	return nil
}

// find returns the key of a lease, which must be at the revision of prev.
func (r *Registry) find(ctx context.Context, prev lease.Lease) (*mvccpb.KeyValue, error) {
	if prev.Revision == 0 {
		return nil, fmt.Errorf("%w: no revision to compare with", registry.ErrConflict)
	}
	found, _, err := r.holder(ctx, prev.Subnets)
	switch {
	case err != nil:
		return nil, err
	case found.KeyValue == nil || string(found.Key) != r.key(prev.Subnets):
		return nil, registry.ErrGone
	case uint64(found.ModRevision) != prev.Revision:
		return nil, registry.ErrConflict
	}
	return found.KeyValue, nil
}

// put writes kv's key and value under g if the conditions hold. If the key exists, kv has its
// creation revision.
func (r *Registry) put(ctx context.Context, kv *mvccpb.KeyValue, g grant, conditions ...client.Cmp) (lease.Lease, error) {
	key := string(kv.Key)
	resp, err := r.swap(ctx, key, client.OpPut(key, string(kv.Value), client.WithLease(client.LeaseID(g.id))), conditions...)
	switch {
	case refused(err, rpctypes.ErrLeaseNotFound):
		err = registry.ErrGone // the etcd lease has just ended, and the key with it
	case err != nil:
	case resp.Succeeded:
		kv.Lease, kv.ModRevision = g.id, resp.Header.Revision
		if kv.CreateRevision == 0 {
			kv.CreateRevision = kv.ModRevision
		}
	default:
		switch is := present(resp); {
		case is != nil && g.fresh && is.Lease == g.id:
			// Only this call can have written it: a request that was sent twice conflicts with itself.
			is.Value = kv.Value
			kv = is
		case kv.CreateRevision == 0:
			err = registry.ErrConflict
		default:
			err = conflict(is)
		}
	}
	if err != nil {
		r.drop(ctx, g, err)
		return lease.Lease{}, err
	}
	ev := r.content(entry{KeyValue: kv}, g.expires).Event()
	if ev.Invalid != nil {
		return lease.Lease{}, fmt.Errorf("read back what was written: %w", ev.Invalid.Err)
	}
	return ev.Lease, nil
}

// swap does op if the conditions hold. Else it reads the key without its value, which may have any
// length.
func (r *Registry) swap(ctx context.Context, key string, op client.Op, conditions ...client.Cmp) (resp *client.TxnResponse, err error) {
	err = r.link.write(ctx, func(ctx context.Context) (err error) {
		resp, err = r.kv.Txn(ctx).If(conditions...).Then(op).Else(client.OpGet(key, client.WithKeysOnly())).Commit()
		if err == nil && resp.Header == nil {
			return errNoHeader
		}
		return err
	})
	return resp, err
}

// present returns the key that a swap read because its conditions did not hold, or nil.
func present(resp *client.TxnResponse) *mvccpb.KeyValue {
	if len(resp.Responses) == 0 { // it was not sent by etcd
		return nil
	}
	if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}

// conflict returns why the conditions of a swap of an existing key did not hold.
func conflict(is *mvccpb.KeyValue) error {
	if is == nil {
		return registry.ErrGone
	}
	return registry.ErrConflict
}

// grant is an etcd lease; the zero value is that of a reservation.
type grant struct {
	id      int64
	expires time.Time
	fresh   bool // granted by this call
}

// grant requests an etcd lease. If the answer is lost, the lease ends by itself.
func (r *Registry) grant(ctx context.Context, ttl int64) (grant, error) {
	if ttl == 0 {
		return grant{}, nil
	}
	// The time before the request: the time of the answer must not lengthen the lease.
	now := time.Now()
	var given *pb.LeaseGrantResponse
	err := r.link.write(ctx, func(ctx context.Context) (err error) {
		given, err = r.leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
		if err == nil && given.ID == 0 { // 0 would make a reservation
			return errNoHeader
		}
		return err
	})
	if err != nil {
		return grant{}, fmt.Errorf("grant of %d s: %w", ttl, err)
	}
	return grant{given.ID, now.Add(time.Duration(given.TTL) * time.Second), true}, nil
}

// prolong renews an etcd lease if it may be kept.
func (r *Registry) prolong(ctx context.Context, id, ttl int64) (g grant, kept bool, err error) {
	if id == 0 || ttl == 0 {
		return grant{}, false, nil
	}
	had, err := r.timeToLive(ctx, id, true)
	if _, is := tooLong(err); is { // it has many keys
		return grant{}, false, nil
	}
	if err != nil || had.GrantedTTL != ttl || len(had.Keys) != 1 {
		return grant{}, false, err
	}
	now := time.Now()
	var left int64
	err = r.link.read(ctx, answerTimeout, func(ctx context.Context) error {
		stream, err := r.leases.LeaseKeepAlive(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			return err
		}
		resp, err := stream.Recv()
		left = resp.GetTTL()
		return err
	})
	if err != nil {
		return grant{}, false, fmt.Errorf("keep its etcd lease alive: %w", err)
	}
	return grant{id: id, expires: now.Add(time.Duration(left) * time.Second)}, left > 0, nil
}

// timeToLive requests the time left of an etcd lease, and optionally its keys.
func (r *Registry) timeToLive(ctx context.Context, id int64, keys bool) (resp *pb.LeaseTimeToLiveResponse, err error) {
	err = r.link.read(ctx, answerTimeout, func(ctx context.Context) (err error) {
		resp, err = r.leases.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
		return err
	})
	return resp, err
}

// drop revokes a fresh grant whose write failed. A write without an answer may have been done, and
// revoking would then delete the lease that its owner finds at the next look; such a grant ends by
// itself.
func (r *Registry) drop(ctx context.Context, g grant, why error) {
	switch code, _ := facts(why); {
	case !g.fresh:
		return
	case code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled || code == codes.Internal || code == codes.Aborted:
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	// If this fails, it ends by itself.
	_ = r.link.write(ctx, func(ctx context.Context) error {
		_, err := r.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: g.id})
		return err
	})
}

// seconds rounds up: etcd uses whole seconds.
func seconds(ttl time.Duration) int64 {
	return int64((ttl + time.Second - 1) / time.Second)
}

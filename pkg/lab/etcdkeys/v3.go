package etcdkeys

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"time"

	client "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// V3 is an etcd through its v3 API. Each call of a method opens a connection; see Keep.
type V3 struct {
	Access
	kept *client.Client // nil: one connection for each call
}

// Keep returns a V3 whose methods share a connection until ctx ends.
func (v V3) Keep(ctx context.Context) (V3, error) {
	c, err := v.Client(ctx)
	if err != nil {
		return V3{}, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	v.kept = c
	return v, nil
}

// Client returns a client that ends with ctx. The caller closes it.
func (v V3) Client(ctx context.Context) (*client.Client, error) {
	config := client.Config{
		Endpoints: v.Endpoints, Context: ctx, Logger: zap.NewNop(), TLS: v.TLS, Username: v.Username, Password: v.Password,
		MaxCallSendMsgSize: math.MaxInt32,
		DialOptions:        []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(math.MaxInt32))},
	}
	if v.TLS != nil {
		config.TLS = v.TLS.Clone()
	}
	if v.Dial != nil {
		config.DialOptions = append(config.DialOptions, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return v.Dial(ctx, "tcp", addr)
		}))
	}
	return client.New(config)
}

// within calls f with a new client that it closes afterwards, or with the kept one.
func (v V3) within(ctx context.Context, f func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(v.Timeout, 10*time.Second))
	defer cancel()
	if v.kept != nil {
		return f(ctx, v.kept)
	}
	c, err := v.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// Put sets a key; one with a ttl is attached to its own etcd lease.
func (v V3) Put(ctx context.Context, key, value string, ttl time.Duration) error {
	err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
		var options []client.OpOption
		if ttl > 0 {
			lease, err := c.Grant(ctx, int64(ttl/time.Second))
			if err != nil {
				return err
			}
			options = append(options, client.WithLease(lease.ID))
		}
		_, err := c.Put(ctx, key, value, options...)
		return err
	})
	if err != nil {
		return fmt.Errorf("put key %s: %w", key, err)
	}
	return nil
}

// PutAll sets permanent keys with few connections.
func (v V3) PutAll(ctx context.Context, entries []Entry) error {
	for some := range slices.Chunk(entries, 500) { // each chunk within the time limit of one client
		err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
			for _, e := range some {
				if _, err := c.Put(ctx, e.Key, e.Value); err != nil {
					return fmt.Errorf("put key %s: %w", e.Key, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (v V3) Get(ctx context.Context, key string) (e Entry, err error) {
	err = v.within(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Get(ctx, key)
		if err != nil {
			return err
		}
		if len(r.Kvs) == 0 {
			return ErrNoKey
		}
		e = Entry{Key: key, Value: string(r.Kvs[0].Value)}
		e.TTL, err = timeLeft(ctx, c, client.LeaseID(r.Kvs[0].Lease))
		return err
	})
	if err != nil {
		return Entry{}, fmt.Errorf("get key %s: %w", key, err)
	}
	return e, nil
}

func (v V3) List(ctx context.Context, dir string) (all []Entry, err error) {
	err = v.within(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Get(ctx, dir+"/", client.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			e := Entry{Key: string(kv.Key), Value: string(kv.Value)}
			if e.TTL, err = timeLeft(ctx, c, client.LeaseID(kv.Lease)); err != nil {
				return err
			}
			all = append(all, e)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	return all, nil
}

func timeLeft(ctx context.Context, c *client.Client, id client.LeaseID) (time.Duration, error) {
	if id == 0 {
		return 0, nil
	}
	left, err := c.TimeToLive(ctx, id)
	if err != nil {
		return 0, err
	}
	return time.Duration(left.TTL) * time.Second, nil
}

func (v V3) Delete(ctx context.Context, key string) error {
	err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Txn(ctx).Then(client.OpDelete(key), client.OpDelete(key+"/", client.WithPrefix())).Commit()
		if err != nil {
			return err
		}
		if r.Responses[0].GetResponseDeleteRange().Deleted+r.Responses[1].GetResponseDeleteRange().Deleted == 0 {
			return ErrNoKey
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete key %s: %w", key, err)
	}
	return nil
}

// ForgetHistory compacts etcd's history.
func (v V3) ForgetHistory(ctx context.Context) error {
	err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Put(ctx, unwatchedKey, "") // makes sure that there is some history
		if err != nil {
			return err
		}
		_, err = c.Compact(ctx, r.Header.Revision)
		return err
	})
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	return nil
}

// PutTogether sets permanent keys, as many in one transaction as etcd allows. The keys of a
// transaction are one event.
func (v V3) PutTogether(ctx context.Context, entries []Entry) error {
	const most = 128 // etcd's --max-txn-ops
	for some := range slices.Chunk(entries, most) {
		ops := make([]client.Op, len(some))
		for i, e := range some {
			ops[i] = client.OpPut(e.Key, e.Value)
		}
		err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
			_, err := c.Txn(ctx).Then(ops...).Commit()
			return err
		})
		if err != nil {
			return fmt.Errorf("put %d keys from %s on: %w", len(some), some[0].Key, err)
		}
	}
	return nil
}

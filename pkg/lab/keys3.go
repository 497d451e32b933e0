package lab

import (
	"context"
	"fmt"
	"net"
	"time"

	client "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// V3 is the same etcd through its v3 API, which is a store of its own.
type V3 struct {
	etcd     *Etcd
	password string // of root; empty: etcd asks for none
}

// V3 gives the v3 API.
func (e *Etcd) V3() V3 { return V3{etcd: e} }

// within calls f with a client that ends with it.
func (v V3) within(ctx context.Context, f func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := v.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// as is within, as root if etcd asks for a user.
func (v V3) as(ctx context.Context, root bool, password string, f func(context.Context, *client.Client) error) error {
	if root {
		v.password = password
	}
	return v.within(ctx, f)
}

// client gives a client that ends with ctx; close it.
func (v V3) client(ctx context.Context) (*client.Client, error) {
	config := client.Config{
		Endpoints: []string{v.etcd.Endpoint()},
		Context:   ctx,
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return v.etcd.lab.Fabric.DialContext(ctx, "tcp", addr)
		})},
	}
	if v.password != "" {
		config.Username, config.Password = "root", v.password
	}
	if t := v.etcd.transport.TLSClientConfig; t != nil {
		config.TLS = t.Clone()
	}
	return client.New(config)
}

// Put sets a key; with a ttl it is attached to a lease of its own, without one it is permanent.
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

// Get reads a key; the error is ErrNoKey if there is none.
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
		if id := r.Kvs[0].Lease; id != 0 {
			left, err := c.TimeToLive(ctx, client.LeaseID(id))
			if err != nil {
				return err
			}
			e.TTL = time.Duration(left.TTL) * time.Second
		}
		return nil
	})
	if err != nil {
		return Entry{}, fmt.Errorf("get key %s: %w", key, err)
	}
	return e, nil
}

// Delete removes a key and all that begin with it and a slash; the error is ErrNoKey if there is none.
func (v V3) Delete(ctx context.Context, key string) error {
	err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
		one, err := c.Delete(ctx, key)
		if err != nil {
			return err
		}
		below, err := c.Delete(ctx, key+"/", client.WithPrefix())
		if err == nil && one.Deleted+below.Deleted == 0 {
			return ErrNoKey
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete key %s: %w", key, err)
	}
	return nil
}

// Compact forgets the history before now.
func (v V3) Compact(ctx context.Context) error {
	err := v.within(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.Get(ctx, "any")
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

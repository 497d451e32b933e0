package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	client "go.etcd.io/etcd/client/v3"
)

// List reads the keys of a directory through the v2 API, with their values; one that does not exist is empty.
func (e *Etcd) List(ctx context.Context, dir string) ([]Entry, error) {
	r, err := e.keys.Get(ctx, dir, nil)
	if err = keyError(err); errors.Is(err, ErrNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var all []Entry
	for _, n := range r.Node.Nodes {
		all = append(all, Entry{Key: n.Key, Value: n.Value, TTL: n.TTLDuration()})
	}
	return all, nil
}

// List is Etcd.List for the v3 API: the keys that begin with dir and a slash.
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

package lab

import (
	"context"
	"fmt"
	"slices"

	client "go.etcd.io/etcd/client/v3"
)

// PutAll sets keys one after another through the v2 API, without a TTL: each is an event of its own.
func (e *Etcd) PutAll(ctx context.Context, entries []Entry) error {
	for _, entry := range entries {
		if err := e.Put(ctx, entry.Key, entry.Value, 0); err != nil {
			return err
		}
	}
	return nil
}

// PutAll is Etcd.PutAll for the v3 API. It takes few connections, where Put takes one a key.
func (v V3) PutAll(ctx context.Context, entries []Entry) error {
	for some := range slices.Chunk(entries, 500) { // each within the time of one client
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

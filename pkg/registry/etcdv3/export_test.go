package etcdv3

import (
	"context"
	"time"

	client "go.etcd.io/etcd/client/v3"
)

// SetPoll shortens the wait of a quiet watch, which is above the patience of a test.
func (r *Registry) SetPoll(d time.Duration) { r.poll = d }

// SetPage makes listings be read by fewer keys at once.
func (r *Registry) SetPage(n int64) { r.page = n }

// NewSmall makes a Registry that takes only small answers.
func NewSmall(o Options, maxMessage int) (*Registry, error) { return newRegistry(o, maxMessage) }

// SetRead has f called before each read.
func (r *Registry) SetRead(f func()) { r.kv = reads{r.kv, f} }

type reads struct {
	client.KV
	before func()
}

func (r reads) Get(ctx context.Context, key string, opts ...client.OpOption) (*client.GetResponse, error) {
	r.before()
	return r.KV.Get(ctx, key, opts...)
}

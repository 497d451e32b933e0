package lab

import (
	"context"
	"fmt"
	"slices"

	client "go.etcd.io/etcd/client/v3"
)

// A Session is one connection to etcd's v3 API, for writes whose time counts: the methods of V3 make one each.
type Session struct{ client *client.Client }

// Open connects until the context ends or the Session is closed.
func (v V3) Open(ctx context.Context) (*Session, error) {
	c, err := v.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	return &Session{c}, nil
}

// Close ends the connection.
func (s *Session) Close() error { return s.client.Close() }

// Put sets a key, which is permanent.
func (s *Session) Put(ctx context.Context, key, value string) error {
	if _, err := s.client.Put(ctx, key, value); err != nil {
		return fmt.Errorf("put key %s: %w", key, err)
	}
	return nil
}

// PutAll sets keys, as many in one transaction as etcd takes: those are one event.
func (s *Session) PutAll(ctx context.Context, entries []Entry) error {
	const most = 128 // etcd's --max-txn-ops
	for some := range slices.Chunk(entries, most) {
		ops := make([]client.Op, len(some))
		for i, e := range some {
			ops[i] = client.OpPut(e.Key, e.Value)
		}
		if _, err := s.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("put %d keys from %s on: %w", len(some), some[0].Key, err)
		}
	}
	return nil
}

// Delete removes one key; the error is ErrNoKey if there is none.
func (s *Session) Delete(ctx context.Context, key string) error {
	r, err := s.client.Delete(ctx, key)
	if err == nil && r.Deleted == 0 {
		err = ErrNoKey
	}
	if err != nil {
		return fmt.Errorf("delete key %s: %w", key, err)
	}
	return nil
}

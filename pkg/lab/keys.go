package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/v2"
)

// ErrNoKey is returned for a key that does not exist.
var ErrNoKey = errors.New("no such key")

// An Entry is a key with its value.
type Entry struct {
	Key, Value string
	TTL        time.Duration // what is left, in whole seconds; 0 for a key that does not expire
}

// Put sets a key through the v2 API; ttl 0 makes it permanent.
func (e *Etcd) Put(ctx context.Context, key, value string, ttl time.Duration) error {
	if _, err := e.keys.Set(ctx, key, value, &client.SetOptions{TTL: ttl}); err != nil {
		return fmt.Errorf("put key %s: %w", key, err)
	}
	return nil
}

// Get reads a key through the v2 API; the error is ErrNoKey if there is none.
func (e *Etcd) Get(ctx context.Context, key string) (Entry, error) {
	r, err := e.keys.Get(ctx, key, nil)
	if err != nil {
		return Entry{}, fmt.Errorf("get key %s: %w", key, keyError(err))
	}
	return Entry{Key: r.Node.Key, Value: r.Node.Value, TTL: r.Node.TTLDuration()}, nil
}

// Delete removes a key, or a directory with all it holds; the error is ErrNoKey if there is none.
func (e *Etcd) Delete(ctx context.Context, key string) error {
	if _, err := e.keys.Delete(ctx, key, &client.DeleteOptions{Recursive: true}); err != nil {
		return fmt.Errorf("delete key %s: %w", key, keyError(err))
	}
	return nil
}

func keyError(err error) error {
	var e client.Error
	if errors.As(err, &e) && e.Code == client.ErrorCodeKeyNotFound {
		return ErrNoKey
	}
	return err
}

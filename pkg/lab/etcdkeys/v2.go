package etcdkeys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	client "go.etcd.io/etcd/client/v2"
)

// V2 is an etcd through its v2 API.
type V2 struct {
	Keys client.KeysAPI // for operations that a Store does not have

	access    Access
	transport *http.Transport
}

// OpenV2 returns a V2. It does not connect yet.
func OpenV2(a Access) (*V2, error) {
	v := &V2{access: a, transport: &http.Transport{DialContext: a.Dial, TLSClientConfig: a.TLS}}
	c, err := v.Client()
	if err != nil {
		return nil, err
	}
	v.Keys = client.NewKeysAPI(c)
	return v, nil
}

// Client returns the client for the APIs other than that of keys.
func (v *V2) Client() (client.Client, error) { return v.client(v.access) }

func (v *V2) client(a Access) (client.Client, error) {
	c, err := client.New(client.Config{
		Endpoints: a.Endpoints, Transport: v.transport, Username: a.Username, Password: a.Password,
		HeaderTimeoutPerRequest: cmp.Or(a.Timeout, 10*time.Second),
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	return c, nil
}

// Close closes idle connections.
func (v *V2) Close() { v.transport.CloseIdleConnections() }

func (v *V2) Put(ctx context.Context, key, value string, ttl time.Duration) error {
	if _, err := v.Keys.Set(ctx, key, value, &client.SetOptions{TTL: ttl}); err != nil {
		return fmt.Errorf("put key %s: %w", key, err)
	}
	return nil
}

func (v *V2) PutAll(ctx context.Context, entries []Entry) error {
	for _, e := range entries {
		if err := v.Put(ctx, e.Key, e.Value, 0); err != nil {
			return err
		}
	}
	return nil
}

func (v *V2) Get(ctx context.Context, key string) (Entry, error) {
	r, err := v.Keys.Get(ctx, key, nil)
	if err != nil {
		return Entry{}, fmt.Errorf("get key %s: %w", key, keyError(err))
	}
	return Entry{Key: r.Node.Key, Value: r.Node.Value, TTL: r.Node.TTLDuration()}, nil
}

func (v *V2) List(ctx context.Context, dir string) ([]Entry, error) {
	r, err := v.Keys.Get(ctx, dir, nil)
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

func (v *V2) Delete(ctx context.Context, key string) error {
	if _, err := v.Keys.Delete(ctx, key, &client.DeleteOptions{Recursive: true}); err != nil {
		return fmt.Errorf("delete key %s: %w", key, keyError(err))
	}
	return nil
}

// ForgetHistory makes 1,100 events: etcd keeps the last thousand.
func (v *V2) ForgetHistory(ctx context.Context) error {
	for i := range 1100 {
		if err := v.Put(ctx, unwatchedKey, strconv.Itoa(i), 0); err != nil {
			return err
		}
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

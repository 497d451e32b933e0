package etcdv2_test

import (
	"context"
	"fmt"
	"path"
	"sync/atomic"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

// backdoor is plain access to an etcd, beside the registry.
type backdoor struct {
	t      testing.TB
	prefix string
	keys   client.KeysAPI
}

func openBackdoor(t testing.TB, url, prefix string) *backdoor {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	return &backdoor{t, prefix, client.NewKeysAPI(c)}
}

func (b *backdoor) set(key, value string, ttl time.Duration) {
	b.t.Helper()
	if _, err := b.keys.Set(context.Background(), path.Join(b.prefix, key), value, &client.SetOptions{TTL: ttl}); err != nil {
		b.t.Errorf("set %s: %v", key, err)
	}
}

func (b *backdoor) put(key, value string, ttl time.Duration) {
	b.t.Helper()
	b.set("subnets/"+key, value, ttl)
}

func (b *backdoor) delete(key string, recursive bool) {
	b.t.Helper()
	if _, err := b.keys.Delete(context.Background(), path.Join(b.prefix, key), &client.DeleteOptions{Recursive: recursive, Dir: recursive}); err != nil {
		b.t.Errorf("delete %s: %v", key, err)
	}
}

// flood makes more events of somebody else's than etcd remembers.
func (b *backdoor) flood() {
	b.t.Helper()
	for range 1100 {
		if _, err := b.keys.Set(context.Background(), "/elsewhere", "x", nil); err != nil {
			b.t.Fatal(err)
		}
	}
}

func open(t testing.TB, o etcdv2.Options) *etcdv2.Registry {
	t.Helper()
	r, err := etcdv2.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestContract(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	var n atomic.Int32
	registrytest.Run(t, func(t *testing.T) registrytest.Harness {
		prefix := fmt.Sprintf("/coreos.com/network%d", n.Add(1))
		b := openBackdoor(t, etcd.URL, prefix)
		return registrytest.Harness{
			Registry:      open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix}),
			SetConfig:     func(v string) { b.set("config", v, 0) },
			Put:           b.put,
			Remove:        func(key string) { b.delete("subnets/"+key, false) },
			RemoveAll:     func() { b.delete("subnets", true) },
			ForgetHistory: b.flood,
		}
	})
}

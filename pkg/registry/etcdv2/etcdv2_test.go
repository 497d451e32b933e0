package etcdv2_test

import (
	"context"
	"testing"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

var api = registrytest.API{Name: "v2", New: func(o etcdv2.Options) (registrytest.Closer, error) { return etcdv2.New(o) }}

// operator changes an etcd as other programs do.
type operator struct {
	registrytest.Operator
	keys client.KeysAPI
}

func newOperator(t testing.TB, e *etcdtest.Etcd) operator {
	t.Helper()
	keys := e.V2(t)
	return operator{registrytest.Operator{T: t, Store: keys, Prefix: prefix}, keys.Keys}
}

// set writes any key.
func (o operator) set(key, value string) {
	o.T.Helper()
	if err := o.Store.Put(context.Background(), key, value, 0); err != nil {
		o.T.Errorf("set %s: %v", key, err)
	}
}

// delete deletes a key, and a directory only if dir is set.
func (o operator) delete(key string, dir bool) {
	o.T.Helper()
	if _, err := o.keys.Delete(context.Background(), key, &client.DeleteOptions{Recursive: dir, Dir: dir}); err != nil {
		o.T.Errorf("delete %s: %v", key, err)
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

// at opens the registry of an etcd without credentials.
func at(t testing.TB, e *etcdtest.Etcd) *etcdv2.Registry {
	t.Helper()
	return open(t, etcdv2.Options{Endpoints: []string{e.URL}, Prefix: prefix})
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	api.Run(t)
}

func TestUnixSocket(t *testing.T) { api.RunUnixSocket(t) }

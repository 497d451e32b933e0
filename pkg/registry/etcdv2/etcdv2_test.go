package etcdv2_test

import (
	"context"
	"testing"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry/etcdv2"
	"flanneld/pkg/registry/registrytest"
)

var api = registrytest.API[*etcdv2.Registry]{Name: "v2", New: etcdv2.New}

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

// delete deletes a key, and a directory only if dir is set.
func (o operator) delete(key string, dir bool) {
	o.T.Helper()
	_, err := o.keys.Delete(context.Background(), key, &client.DeleteOptions{Recursive: dir, Dir: dir})
	o.Must(err)
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	api.Run(t)
}

func TestUnixSocket(t *testing.T) { api.RunUnixSocket(t) }

package etcdv3

import (
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"flanneld/pkg/lease"
)

// FuzzDecode decodes arbitrary keys and values below the prefix: the result is a lease under its
// own key, or an invalid entry with a short fault.
func FuzzDecode(f *testing.F) {
	const subnets = "/coreos.com/network/subnets/"
	f.Add([]byte(subnets+"10.42.7.0-24"), []byte(`{"PublicIP":"198.51.100.7","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:07"}}`), int64(7))
	f.Add([]byte(subnets+"10.42.7.0-24&fd42::-64"), []byte(`{}`), int64(0))
	f.Add([]byte(subnets+"10.42.7.0-24&fd42::-64"), []byte(`{"PublicIP":"198.51.100.7","PublicIPv6":"fd00::7"}`), int64(0))
	f.Add([]byte(subnets+"a/b"), []byte(strings.Repeat("x", 70000)), int64(-1))
	f.Add([]byte("elsewhere"), []byte(nil), int64(1))
	f.Fuzz(func(t *testing.T, key, value []byte, session int64) {
		r := &Registry{subnets: subnets}
		e := r.content(entry{KeyValue: &mvccpb.KeyValue{Key: key, Value: value, Lease: session}}, time.Unix(1, 0)).Event()
		if e.Invalid != nil {
			if text := e.Invalid.Err.Error(); text == "" || len(text) > 1000 {
				t.Errorf("%q: the fault is said in %d bytes", key, len(text))
			}
			return
		}
		if name := strings.TrimPrefix(string(key), subnets); lease.Key(e.Lease.Subnets) != name {
			t.Errorf("%q is read as the lease of %s", key, e.Lease.Subnets)
		}
	})
}

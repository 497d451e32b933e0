package etcdv3_test

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	client "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

const prefix = "/coreos.com/network"

var (
	subnet7 = netip.MustParsePrefix("10.42.7.0/24")
	attrs7  = lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7"), BackendType: "vxlan", BackendData: `{"VtepMAC":"02:00:00:00:00:07"}`}
	lease7  = lease.Lease{Subnet: subnet7, Attrs: attrs7, Revision: 7}
	lease8  = lease.Lease{Subnet: netip.MustParsePrefix("10.42.8.0/24")}
)

// backdoor is plain access to an etcd, beside the registry.
type backdoor struct {
	*client.Client
	t      testing.TB
	prefix string
}

func openBackdoor(t testing.TB, url, prefix string) *backdoor {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &backdoor{c, t, prefix}
}

func (b *backdoor) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Error(err)
	}
}

func (b *backdoor) key(name string) string { return path.Join(b.prefix, "subnets") + "/" + name }

// set writes a key, with an etcd lease of its own if ttl is not 0.
func (b *backdoor) set(key, value string, ttl time.Duration) {
	b.t.Helper()
	var opts []client.OpOption
	if ttl != 0 {
		g, err := b.Grant(context.Background(), int64(ttl/time.Second))
		b.must(err)
		opts = append(opts, client.WithLease(g.ID))
	}
	_, err := b.Client.Put(context.Background(), key, value, opts...)
	b.must(err)
}

func (b *backdoor) put(name, value string, ttl time.Duration) {
	b.t.Helper()
	b.set(b.key(name), value, ttl)
}

func (b *backdoor) setConfig(value string) {
	b.t.Helper()
	b.set(path.Join(b.prefix, "config"), value, 0)
}

func (b *backdoor) delete(key string, opts ...client.OpOption) {
	b.t.Helper()
	_, err := b.Client.Delete(context.Background(), key, opts...)
	b.must(err)
}

// compact has etcd forget everything but how it is now.
func (b *backdoor) compact() {
	b.t.Helper()
	resp, err := b.Client.Put(context.Background(), "/elsewhere", "x")
	b.must(err)
	_, err = b.Compact(context.Background(), resp.Header.Revision)
	b.must(err)
}

// leases counts the etcd leases.
func (b *backdoor) leases() int {
	b.t.Helper()
	resp, err := b.Leases(context.Background())
	b.must(err)
	return len(resp.Leases)
}

// at gives what a lease's key holds.
func (b *backdoor) at(name string) (value string, id client.LeaseID) {
	b.t.Helper()
	resp, err := b.Client.Get(context.Background(), b.key(name))
	b.must(err)
	if err != nil || len(resp.Kvs) == 0 {
		return "", 0
	}
	return string(resp.Kvs[0].Value), client.LeaseID(resp.Kvs[0].Lease)
}

func open(t testing.TB, o etcdv3.Options) *etcdv3.Registry {
	t.Helper()
	r, err := etcdv3.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func list(t testing.TB, r *etcdv3.Registry) registry.Listing {
	t.Helper()
	l, err := r.List(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestContract(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	var n atomic.Int32
	registrytest.Run(t, func(t *testing.T) registrytest.Harness {
		prefix := fmt.Sprintf("/coreos.com/network%d", n.Add(1))
		b := openBackdoor(t, etcd.URL, prefix)
		return registrytest.Harness{
			Registry:      open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix}),
			SetConfig:     b.setConfig,
			Put:           b.put,
			Remove:        func(name string) { b.delete(b.key(name)) },
			RemoveAll:     func() { b.delete(b.key(""), client.WithPrefix()) },
			ForgetHistory: b.compact,
		}
	})
}

// A compaction between two pages makes the listing begin again, but not for ever.
func TestListDuringCompaction(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	b := openBackdoor(t, etcd.URL, prefix)
	r := open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	const n = 10
	for i := range n {
		b.put(fmt.Sprintf("10.42.%d.0-24", i), `{"PublicIP":"198.51.100.7"}`, 0)
	}
	r.SetPage(3)
	reads, most := 0, 4
	r.SetRead(func(*pb.RangeRequest) {
		if reads++; reads > 1 && reads <= most {
			b.put("10.42.0.0-24", fmt.Sprintf(`{"PublicIP":"198.51.100.%d"}`, reads), 0)
			b.compact()
		}
	})
	l := list(t, r)
	if last := netip.AddrFrom4([4]byte{198, 51, 100, byte(most)}); len(l.Leases) != n || l.Leases[0].PublicIP != last {
		t.Errorf("listing %+v", l)
	}
	reads, most = 0, 1000
	if l, err := r.List(timeout(t)); err == nil || len(l.Leases) > 0 || reads > 10 {
		t.Errorf("listing %+v, %v after %d reads", l, err, reads)
	}
}

package etcdv3_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

const prefix = registrytest.Prefix

var (
	subnet7 = lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24"))
	attrs7  = lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7"), BackendType: "vxlan", BackendData: `{"VtepMAC":"02:00:00:00:00:07"}`}
	lease8  = lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.8.0/24"))}
)

var api = registrytest.API{Name: "v3", New: func(o etcdv3.Options) (registrytest.Closer, error) { return etcdv3.New(o) }}

// operator changes an etcd as other programs do.
type operator struct {
	registrytest.Operator
	*client.Client
}

func newOperator(t testing.TB, e *etcdtest.Etcd) *operator {
	t.Helper()
	keys := e.V3(t)
	c, err := keys.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &operator{registrytest.Operator{T: t, Store: keys, Prefix: prefix}, c}
}

func (o *operator) must(err error) {
	o.T.Helper()
	if err != nil {
		o.T.Error(err)
	}
}

func (o *operator) key(name string) string { return prefix + "/subnets/" + name }

// set writes any key.
func (o *operator) set(key, value string) {
	o.T.Helper()
	o.must(o.Store.Put(context.Background(), key, value, 0))
}

// leases returns the number of etcd leases.
func (o *operator) leases() int {
	o.T.Helper()
	resp, err := o.Leases(context.Background())
	o.must(err)
	return len(resp.Leases)
}

// at returns the value of a lease's key.
func (o *operator) at(name string) (value string, id client.LeaseID) {
	o.T.Helper()
	resp, err := o.Client.Get(context.Background(), o.key(name))
	o.must(err)
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

// at opens the registry of an etcd without credentials.
func at(t testing.TB, e *etcdtest.Etcd) *etcdv3.Registry {
	t.Helper()
	return open(t, etcdv3.Options{Endpoints: []string{e.URL}, Prefix: prefix})
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	api.Run(t)
}

func TestUnixSocket(t *testing.T) { api.RunUnixSocket(t) }

// A compaction between two pages restarts the listing, but not infinitely often.
func TestListDuringCompaction(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := at(t, etcd)
	const n = 10
	for i := range n {
		b.Put(fmt.Sprintf("10.42.%d.0-24", i), `{"PublicIP":"198.51.100.7"}`, 0)
	}
	r.SetPage(3)
	reads, most := 0, 4
	r.SetRead(func(*pb.RangeRequest) {
		if reads++; reads > 1 && reads <= most {
			b.Put("10.42.0.0-24", fmt.Sprintf(`{"PublicIP":"198.51.100.%d"}`, reads), 0)
			b.ForgetHistory()
		}
	})
	l := registrytest.List(t, r)
	if last := netip.AddrFrom4([4]byte{198, 51, 100, byte(most)}); len(l.Leases) != n || l.Leases[0].PublicIP != last {
		t.Errorf("listing %+v", l)
	}
	reads, most = 0, 1000
	if l, err := r.List(registrytest.Timeout(t)); err == nil || len(l.Leases) > 0 || reads > 10 {
		t.Errorf("listing %+v, %v after %d reads", l, err, reads)
	}
}

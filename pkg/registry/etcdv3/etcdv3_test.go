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
	lease7  = registrytest.Lease7()
	subnet7 = lease7.Subnets
	attrs7  = lease7.Attrs
	lease8  = lease.Lease{Subnets: lease.SubnetsOf(netip.MustParsePrefix("10.42.8.0/24"))}
)

var api = registrytest.API[*etcdv3.Registry]{Name: "v3", New: etcdv3.New}

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

// leases returns the number of etcd leases.
func (o *operator) leases() int {
	o.T.Helper()
	resp, err := o.Leases(context.Background())
	o.Must(err)
	return len(resp.Leases)
}

// at returns the value of a lease's key.
func (o *operator) at(name string) (value string, id client.LeaseID) {
	o.T.Helper()
	resp, err := o.Client.Get(context.Background(), o.Key(name))
	o.Must(err)
	if err != nil || len(resp.Kvs) == 0 {
		return "", 0
	}
	return string(resp.Kvs[0].Value), client.LeaseID(resp.Kvs[0].Lease)
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
	r := api.At(t, etcd)
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

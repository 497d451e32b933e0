package etcdv3_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/registrytest"
)

const good = `{"PublicIP":"198.51.100.9"}`

// startGenerous starts an etcd that accepts huge values and transactions.
func startGenerous(t *testing.T) (*etcdtest.Etcd, *operator) {
	t.Helper()
	etcd := etcdtest.StartEtcd(t, etcdtest.LargeRequests)
	return etcd, newOperator(t, etcd)
}

// putMany writes keys, in transactions that etcd finishes within its own time limit on a busy
// machine too.
func (o *operator) putMany(t *testing.T, puts []client.Op) {
	t.Helper()
	for some := range slices.Chunk(puts, 1000) {
		if _, err := o.Txn(context.Background()).Then(some...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHugeValuesTakeFewReads: values of 9 MB, alone and consecutive, and a huge key among leases do
// not make a listing of one key per read.
func TestHugeValuesTakeFewReads(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes much: not with -short")
	}
	t.Parallel()
	etcd, b := startGenerous(t)
	r := api.At(t, etcd)
	huge := strings.Repeat("x", 9<<20)
	for i := range 8 {
		b.Put(fmt.Sprintf("10.43.%d.0-24", 100+i), huge, 0)
	}
	b.Put(huge, "x", 0)
	const peers = 200
	for i := range peers {
		b.Put(fmt.Sprintf("10.44.%d.0-24", i), good, 0)
	}
	b.Put("10.45.7.0-24", huge, 0)
	reads := 0
	r.SetRead(func(*pb.RangeRequest) { reads++ })
	l := registrytest.List(t, r)
	if len(l.Leases) != peers || len(l.Invalid) != 10 || reads > 60 {
		t.Errorf("%d leases, %d bad, %d reads", len(l.Leases), len(l.Invalid), reads)
	}
	for _, bad := range l.Invalid {
		if !bad.Subnets.IsValid() && (len(bad.Key) > 200 || !strings.HasSuffix(bad.Key, "(9437184 bytes)")) {
			t.Errorf("key %.300s", bad.Key)
		}
	}
}

// TestHugeValuesAreNotRead: few of them fit in the memory, but each is held several times.
func TestHugeValuesAreNotRead(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	const leases = 200
	for i := range leases {
		value := good
		if i%90 == 50 {
			value = strings.Repeat("x", 1400<<10)
		}
		b.Put(fmt.Sprintf("10.42.%d.0-24", i), value, 0)
	}
	most := 0
	r.SetAnswer(func(resp *pb.RangeResponse) { most = max(most, resp.Size()) })
	if l := registrytest.List(t, r); len(l.Leases) != leases-2 || len(l.Invalid) != 2 || most > 200<<10 {
		t.Errorf("%d leases, %d bad, an answer of %d bytes", len(l.Leases), len(l.Invalid), most)
	}
}

// TestManyKeysAreNotNamed: of very many invalid keys a few are reported by name, and a subnet with
// as many keys below it still has its lease. (The number is a tenth, because etcd writes them
// slowly.)
func TestManyKeysAreNotNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes much: not with -short")
	}
	t.Parallel()
	etcd, b := startGenerous(t)
	r := api.At(t, etcd)
	const n = 100000
	var junk []client.Op
	for i := range n {
		junk = append(junk, client.OpPut(b.Key(fmt.Sprintf("junk\n%d", i)), "x"))
	}
	b.putMany(t, junk)
	b.Put("10.44.0.0-24", good, 0)
	made := registrytest.Create(t, r)
	var tails []client.Op
	for i := range 5000 {
		tails = append(tails, client.OpPut(b.Key(fmt.Sprintf("10.42.7.0-24&%d", i)), "x"))
	}
	b.putMany(t, tails)
	began := time.Now()
	l := registrytest.List(t, r)
	t.Logf("listed in %v", time.Since(began))
	if len(l.Leases) != 2 || len(l.Invalid) != registry.MaxInvalid || l.MoreInvalid != n+len(tails)-registry.MaxInvalid {
		t.Errorf("%d leases, %d bad, %d more", len(l.Leases), len(l.Invalid), l.MoreInvalid)
	}
	if ev, err := r.Get(registrytest.Timeout(t), subnet7); err != nil || !ev.Lease.SameAs(made) {
		t.Errorf("%+v, %v", ev, err)
	}
	if _, err := r.Update(registrytest.Timeout(t), made, attrs7, time.Hour); err != nil {
		t.Error(err)
	}
}

// TestLeaseOfManyKeysIsLeft: an etcd lease to which another program attaches a large number of keys
// does not prevent the renewal of the key.
func TestLeaseOfManyKeysIsLeft(t *testing.T) {
	t.Parallel()
	etcd, b := startGenerous(t)
	r := api.At(t, etcd)
	made := registrytest.Create(t, r)
	_, id := b.at("10.42.7.0-24")
	pad := strings.Repeat("k", 1000)
	var ops []client.Op
	for i := range 10000 {
		ops = append(ops, client.OpPut(fmt.Sprintf("/elsewhere/%s%d", pad, i), "x", client.WithLease(id)))
	}
	b.putMany(t, ops)
	made = registrytest.Update(t, r, made)
	if _, now := b.at("10.42.7.0-24"); now == id || now == 0 {
		t.Errorf("etcd lease %x, was %x", now, id)
	}
	if ev, err := r.Get(registrytest.Timeout(t), subnet7); err != nil || !ev.Lease.SameAs(made) {
		t.Errorf("%+v, %v", ev, err)
	}
}

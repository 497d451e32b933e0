package etcdv3_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
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

// sized reports whether the fault is a value of about a size.
func sized(err error, size int) bool {
	var f lease.Fault
	if !errors.As(err, &f) || f.Kind != "value is longer than 16384 bytes" {
		return false
	}
	n, err := strconv.Atoi(f.Detail)
	return err == nil && n >= size && n < size+1000
}

// TestHugeValuesAreSkippedAlone: values of 9 MB, alone and consecutive, and a huge key do not
// affect the leases next to them or a lease that is overwritten by one.
func TestHugeValuesAreSkippedAlone(t *testing.T) {
	t.Parallel()
	etcd, b := startGenerous(t)
	r := at(t, etcd)
	made, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	index := registrytest.List(t, r).Index
	huge := strings.Repeat("x", 9<<20)
	for i := range 8 {
		b.Put(fmt.Sprintf("10.43.%d.0-24", 100+i), huge, 0)
	}
	b.Put("10.43.120.0-24", strings.Repeat("x", 40000), 0)
	b.Put(strings.Repeat("k", 9<<20), "x", 0)
	const peers = 200
	for i := range peers {
		b.Put(fmt.Sprintf("10.44.%d.0-24", i), good, 0)
	}
	b.Put("10.42.7.0-24", huge, 0)

	reads := 0
	r.SetRead(func(*pb.RangeRequest) { reads++ })
	l := registrytest.List(t, r)
	if len(l.Leases) != peers || len(l.Invalid) != 11 {
		t.Errorf("%d leases, %d bad", len(l.Leases), len(l.Invalid))
	}
	if reads > 60 {
		t.Errorf("%d reads", reads)
	}
	for _, bad := range l.Invalid {
		want := 9 << 20
		switch {
		case bad.Key == "10.43.120.0-24":
			want = 40000
		case !bad.Subnets.IsValid():
			if len(bad.Key) > 200 || !strings.HasSuffix(bad.Key, "(9437184 bytes)") {
				t.Errorf("key %.300s", bad.Key)
			}
			continue
		}
		if !sized(bad.Err, want) {
			t.Errorf("%s: %v", bad.Key, bad.Err)
		}
	}
	// Events that are too large to receive one by one cause a listing, and the watch continues
	// after them.
	events, next, err := r.Watch(registrytest.Timeout(t), index)
	if !errors.Is(err, registry.ErrHistoryLost) || errors.Is(err, registry.ErrRevisionRollback) {
		t.Errorf("watch from before huge values: %+v, %d, %v", events, next, err)
	}
	b.Put("10.44.0.0-24", good, 0)
	if events, _, err := r.Watch(registrytest.Timeout(t), l.Index); err != nil || len(events) != 1 {
		t.Errorf("watch: %+v, %v", events, err)
	}

	ev, err := r.Get(registrytest.Timeout(t), subnet7)
	if err != nil || ev.Invalid == nil || !sized(ev.Invalid.Err, 9<<20) {
		t.Fatalf("%+v, %v", ev, err)
	}
	if _, err := r.Update(registrytest.Timeout(t), made, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("update of what was overwritten: %v", err)
	}
	if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create over what is there: %v", err)
	}
	back, err := r.Update(registrytest.Timeout(t), lease.Lease{Subnets: subnet7, Revision: ev.Invalid.Revision}, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := r.Get(registrytest.Timeout(t), subnet7); err != nil || !ev.Lease.SameAs(back) {
		t.Errorf("%+v, %v", ev, err)
	}
}

// TestManyKeysAreNotNamed: of very many invalid keys a few are reported by name, and a subnet with
// as many keys below it still has its lease. (The number is a tenth, because etcd writes them
// slowly.)
func TestManyKeysAreNotNamed(t *testing.T) {
	t.Parallel()
	etcd, b := startGenerous(t)
	r := at(t, etcd)
	const n = 100000
	var junk []client.Op
	for i := range n {
		junk = append(junk, client.OpPut(b.key(fmt.Sprintf("junk\n%d", i)), "x"))
	}
	b.putMany(t, junk)
	b.Put("10.44.0.0-24", good, 0)
	made, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var tails []client.Op
	for i := range 5000 {
		tails = append(tails, client.OpPut(b.key(fmt.Sprintf("10.42.7.0-24&%d", i)), "x"))
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
	r := at(t, etcd)
	made, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, id := b.at("10.42.7.0-24")
	pad := strings.Repeat("k", 1000)
	var ops []client.Op
	for i := range 10000 {
		ops = append(ops, client.OpPut(fmt.Sprintf("/elsewhere/%s%d", pad, i), "x", client.WithLease(id)))
	}
	b.putMany(t, ops)
	if made, err = r.Update(registrytest.Timeout(t), made, attrs7, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, now := b.at("10.42.7.0-24"); now == id || now == 0 {
		t.Errorf("etcd lease %x, was %x", now, id)
	}
	if ev, err := r.Get(registrytest.Timeout(t), subnet7); err != nil || !ev.Lease.SameAs(made) {
		t.Errorf("%+v, %v", ev, err)
	}
}

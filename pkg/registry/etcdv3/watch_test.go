package etcdv3_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/registrytest"
)

type result struct {
	events []registry.Event
	index  uint64
	err    error
}

// watching starts a Watch.
func watching(t *testing.T, r *etcdv3.Registry, index uint64) <-chan result {
	t.Helper()
	got := make(chan result, 1)
	go func() {
		events, next, err := r.Watch(context.Background(), index)
		got <- result{events, next, err}
	}()
	return got
}

// A pending watch of an etcd that no longer answers ends, and a new one fails.
func TestWatchOfABlackHole(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	index := registrytest.List(t, r).Index
	got := watching(t, r, index)
	etcd.Stall()
	start := time.Now()
	if res := <-got; res.err == nil || time.Since(start) > 25*time.Second {
		t.Errorf("watch ended after %v: %+v", time.Since(start), res)
	}
	r = api.At(t, etcd)
	start = time.Now()
	if _, _, err := r.Watch(registrytest.Timeout(t), index); err == nil || time.Since(start) > 12*time.Second {
		t.Errorf("watch of a black hole after %v: %v", time.Since(start), err)
	}
}

// Compaction does not affect a pending watch, and is reported to one that starts too late.
func TestCompaction(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	r.SetPoll(200 * time.Millisecond)
	index := registrytest.List(t, r).Index
	for range 5 {
		events, next, err := r.Watch(registrytest.Timeout(t), index)
		if err != nil || len(events) != 0 || next < index {
			t.Fatalf("watch after %d: %+v, %d, %v", index, events, next, err)
		}
		index = next
		for range 10 {
			b.SetConfig("{}")
		}
		b.ForgetHistory()
	}
	b.Put("10.42.7.0-24", "{}", 0)
	if events, _ := registrytest.Events(t, r, index, 1); events[0].Invalid == nil {
		t.Errorf("events %+v", events)
	}
	b.ForgetHistory()
	r.SetPoll(30 * time.Second)
	if _, _, err := r.Watch(registrytest.Timeout(t), index); !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch from before a compaction: %v", err)
	}
}

// Keys with more elements are not leases and do not affect the key that they extend.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.Open(t, etcdv3.Options{Endpoints: []string{etcd.URL}, Prefix: "/coreos.com//network/"})
	index := registrytest.List(t, r).Index
	made := registrytest.Create(t, r)
	foreign := []string{"10.42.7.0-24/notes", "10.42.7.0-24&fd42:0:0:7::-64/notes", "", "\xff\xfe", "10.42.7.0-24 old"}
	for _, name := range foreign {
		b.Put(name, `{"PublicIP":"198.51.100.9"}`, 0)
		_, err := b.Client.Delete(context.Background(), b.Key(name))
		b.Must(err)
		b.Put(name, `{"PublicIP":"198.51.100.9"}`, 0)
	}
	b.Set(prefix+"/subnets", "x", 0)
	b.Set(prefix+"/subnets2/10.42.9.0-24", `{"PublicIP":"198.51.100.9"}`, 0)
	b.Set(prefix[1:]+"/subnets/10.42.9.0-24", `{"PublicIP":"198.51.100.9"}`, 0)
	l := registrytest.List(t, r)
	if len(l.Leases) != 1 || len(l.Invalid) != len(foreign) || !l.Leases[0].SameAs(made) {
		t.Errorf("listing %+v", l)
	}
	events, _ := registrytest.Events(t, r, index, 1+3*len(foreign))
	for n, ev := range events {
		if n > 0 && (ev.Invalid == nil || ev.Invalid.Subnets.IsValid() || ev.Deleted != (n%3 == 2)) {
			t.Errorf("event %d %+v", n, ev)
		}
	}
	if ev, err := r.Get(registrytest.Timeout(t), subnet7); err != nil || !ev.Lease.SameAs(made) || ev.Lease.Revision != made.Revision {
		t.Errorf("read %+v, %v", ev, err)
	}
	made = registrytest.Update(t, r, made)
	if err := r.Release(registrytest.Timeout(t), made); err != nil {
		t.Error(err)
	}
	registrytest.Create(t, r) // beside foreign keys
}

// A transaction of another program on many leases arrives completely, however large it is.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	index := registrytest.List(t, r).Index
	const n = 20
	huge := strings.Repeat("x", 1<<20)
	for i := range n {
		b.Put(fmt.Sprintf("10.42.%d.0-24", i), huge, 0)
	}
	var ops []client.Op
	for i := range n {
		ops = append(ops, client.OpPut(b.Key(fmt.Sprintf("10.43.%d.0-24", i)), `{"PublicIP":"198.51.100.9"}`))
	}
	if _, err := b.Txn(context.Background()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	l := registrytest.List(t, r) // as one page it would exceed the maximum size of an answer
	if len(l.Leases) != n || len(l.Invalid) != n {
		t.Errorf("%d leases, %d bad", len(l.Leases), len(l.Invalid))
	}
	r.SetPage(7)
	if l := registrytest.List(t, r); len(l.Leases) != n || len(l.Invalid) != n {
		t.Errorf("by small pages: %d leases, %d bad", len(l.Leases), len(l.Invalid))
	}
	if _, index = registrytest.Events(t, r, index, 2*n); index != l.Index {
		t.Errorf("watched until %d, listed at %d", index, l.Index)
	}
}

// Concurrent watches do not receive each other's events.
func TestConcurrentWatches(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	index := registrytest.List(t, r).Index
	for range 5 {
		one, two := watching(t, r, index), watching(t, r, index)
		b.Put("10.42.7.0-24", "{}", 0)
		for _, got := range []<-chan result{one, two} {
			if res := <-got; res.err != nil || len(res.events) != 1 || res.index <= index {
				t.Errorf("%+v after %d", res, index)
			}
		}
		index = registrytest.List(t, r).Index
	}
}

package etcdv2_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/registrytest"
)

var (
	lease7  = registrytest.Lease7()
	subnet7 = lease7.Subnets
	attrs7  = lease7.Attrs
)

// etcd drops events by their number, including those of other keys. The watch itself shows that the
// leases did not change, so a store that is busy with other keys does not cause every host to list
// all leases.
func TestQuietAmongBusyKeys(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	r.SetPoll(300 * time.Millisecond)
	index := registrytest.List(t, r).Index
	for range 3 {
		for range 600 {
			b.Set("/coreos.com/elsewhere", "x", 0)
		}
		events, next, err := r.Watch(registrytest.Timeout(t), index)
		if err != nil || len(events) != 0 || next < index {
			t.Fatalf("watch after %d: %+v, %d, %v", index, events, next, err)
		}
		index = next
	}
	b.Put("10.42.7.0-24", "{}", 0)
	if events, _, err := r.Watch(registrytest.Timeout(t), index); err != nil || len(events) != 1 || events[0].Invalid == nil {
		t.Errorf("watch: %+v, %v", events, err)
	}
}

// There are directories in place of leases, and deletions of whole trees.
func TestDirectories(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	next := func(index uint64) ([]registry.Event, uint64) {
		t.Helper()
		for {
			events, next, err := r.Watch(registrytest.Timeout(t), index)
			if err != nil {
				t.Fatal(err)
			}
			if len(events) > 0 {
				return events, next
			}
			index = next
		}
	}
	index := registrytest.List(t, r).Index
	b.Put("10.42.7.0-24/nested/deep", "x", 0)
	events, index := next(index)
	if bad := events[0].Invalid; bad == nil || bad.Key != "10.42.7.0-24" || bad.Subnets != subnet7 {
		t.Errorf("event %+v", events[0])
	}
	if l := registrytest.List(t, r); len(l.Invalid) != 1 || l.Invalid[0].Key != "10.42.7.0-24" || l.Invalid[0].Subnets != subnet7 {
		t.Errorf("listing %+v", l)
	}
	if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create in place of a directory: %v", err)
	}
	b.delete(prefix+"/subnets/10.42.7.0-24/nested/deep", false)
	b.delete(prefix+"/subnets/10.42.7.0-24", true)
	events, index = next(index)
	if !events[0].Deleted || events[0].Lease.Subnets != subnet7 {
		t.Errorf("event %+v", events[0])
	}
	registrytest.Create(t, r)
	_, index = next(index)

	// Parent directories may be deleted too, also during a watch.
	b.delete("/coreos.com", true)
	if _, _, err := r.Watch(registrytest.Timeout(t), index); !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch after all was deleted: %v", err)
	}
	registrytest.Create(t, r)
	index = registrytest.List(t, r).Index
	lost := make(chan error, 1)
	go func() {
		_, _, err := r.Watch(context.Background(), index)
		lost <- err
	}()
	b.delete("/coreos.com", true)
	if err := <-lost; !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch while all was deleted: %v", err)
	}

	b.Set(prefix+"/config/dir", "x", 0)
	if _, err := r.Config(registrytest.Timeout(t)); !errors.Is(err, registry.ErrNoConfig) {
		t.Errorf("config that is a directory: %v", err)
	}
	b.Set(prefix+"/subnets", "a file", 0)
	if l := registrytest.List(t, r); len(l.Invalid) != 1 || l.Invalid[0].Key != "subnets" {
		t.Errorf("subnets that is a file: %+v", l)
	}
	if _, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour); err == nil || errors.Is(err, registry.ErrConflict) {
		t.Errorf("create below a file: %v", err)
	}
}

// A conditional deletion by another program ends a lease like any other.
func TestCompareAndDelete(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	b.Put("10.42.7.0-24", "x", 0)
	index := registrytest.List(t, r).Index
	if _, err := b.keys.Delete(registrytest.Timeout(t), prefix+"/subnets/10.42.7.0-24", &client.DeleteOptions{PrevValue: "x"}); err != nil {
		t.Fatal(err)
	}
	events, _, err := r.Watch(registrytest.Timeout(t), index)
	if err != nil || len(events) != 1 || !events[0].Deleted || events[0].Lease.Subnets != subnet7 {
		t.Errorf("watch: %+v, %v", events, err)
	}
}

// oldWatcher follows leases as the v2 clients of flannel 0.5 to 0.17 do: an expiry or a deletion
// ends a lease, and every other event must have a JSON value.
func oldWatcher(ctx context.Context, b operator, after uint64) (actions []string, err error) {
	w := b.keys.Watcher(prefix+"/subnets", &client.WatcherOptions{AfterIndex: after, Recursive: true})
	for {
		r, err := w.Next(ctx)
		if err != nil {
			return actions, err
		}
		actions = append(actions, r.Action)
		if r.Action == "expire" || r.Action == "delete" {
			return actions, nil
		}
		var value struct{ PublicIP string }
		if err := json.Unmarshal([]byte(r.Node.Value), &value); err != nil {
			return actions, fmt.Errorf("event %s of %q: %w", r.Action, r.Node.Value, err)
		}
	}
}

// TestOldClientsFollowEveryWrite: an old client can read every write from a lease's creation to its
// end, and sees the end within 2 s.
func TestOldClientsFollowEveryWrite(t *testing.T) {
	// It does not run in parallel, because it measures times.
	etcd := etcdtest.StartEtcd(t)
	b := newOperator(t, etcd)
	r := api.At(t, etcd)
	index := registrytest.List(t, r).Index
	l, err := r.Create(registrytest.Timeout(t), subnet7, attrs7, time.Hour)
	if err == nil {
		l, err = r.Update(registrytest.Timeout(t), l, attrs7, time.Hour)
	}
	if err == nil {
		err = r.Release(registrytest.Timeout(t), l)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	actions, err := oldWatcher(registrytest.Timeout(t), b, index)
	if want := []string{"create", "compareAndSwap", "compareAndSwap", "expire"}; err != nil || !slices.Equal(actions, want) {
		t.Errorf("events %q, %v, want %q", actions, err, want)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the lease ended %v after its release", took)
	}
}

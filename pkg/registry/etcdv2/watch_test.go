package etcdv2_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
)

var (
	subnet7 = netip.MustParsePrefix("10.42.7.0/24")
	attrs7  = lease.Attrs{PublicIP: netip.MustParseAddr("198.51.100.7"), BackendType: "vxlan", BackendData: `{"VtepMAC":"02:00:00:00:00:07"}`}
	lease7  = lease.Lease{Subnet: subnet7, Attrs: attrs7, Revision: 7}
)

// forward passes connections on until the test ends.
func forward(t *testing.T, l net.Listener, to string) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go func() { defer out.Close(); io.Copy(out, in) }()
			go func() { defer in.Close(); io.Copy(in, out) }()
		}
	}()
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func list(t *testing.T, r *etcdv2.Registry) registry.Listing {
	t.Helper()
	l, err := r.List(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// etcd forgets events by their number, whoever's they are. That the leases
// were quiet is known from the watch itself, so a store that is busy with
// something else does not make every host list everything.
func TestQuietAmongBusyKeys(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	b := openBackdoor(t, etcd.URL, prefix)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	r.SetPoll(300 * time.Millisecond)
	index := list(t, r).Index
	for range 3 {
		for range 600 {
			b.set("../elsewhere", "x", 0)
		}
		events, next, err := r.Watch(timeout(t), index)
		if err != nil || len(events) != 0 || next < index {
			t.Fatalf("watch after %d: %+v, %d, %v", index, events, next, err)
		}
		index = next
	}
	b.put("10.42.7.0-24", "{}", 0)
	if events, _, err := r.Watch(timeout(t), index); err != nil || len(events) != 1 || events[0].Bad == nil {
		t.Errorf("watch: %+v, %v", events, err)
	}
}

func TestRestartAndWipe(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	l7, err := r.Create(timeout(t), subnet7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		openBackdoor(t, etcd.URL, prefix).set("config", "{}", 0)
	}
	index := list(t, r).Index

	// Stopped and started, a watch goes on where it was.
	failed := make(chan error, 1)
	go func() {
		_, _, err := r.Watch(context.Background(), index)
		failed <- err
	}()
	etcd.Stop()
	if err := <-failed; err == nil || errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch of a stopped etcd: %v", err)
	}
	if _, err := r.List(timeout(t)); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(etcd.URL, "http://")) {
		t.Errorf("listing of a stopped etcd: %v", err)
	}
	etcd.Start(t)
	l7, err = r.Update(timeout(t), l7, attrs7, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	events, index, err := r.Watch(timeout(t), index)
	if err != nil || len(events) != 1 || events[0].Lease.Revision != l7.Revision {
		t.Errorf("watch after the restart: %+v, %v", events, err)
	}

	// A new etcd at the old address counts from below: the old index would never come.
	go func() {
		_, _, err := r.Watch(context.Background(), index)
		failed <- err
	}()
	etcd.Stop()
	if err := <-failed; err == nil {
		t.Error("watch of a stopped etcd ends well")
	}
	etcd.Wipe(t)
	etcd.Start(t)
	if _, _, err := r.Watch(timeout(t), index); !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch of a new etcd: %v", err)
	}
	l := list(t, r)
	if len(l.Leases) != 0 {
		t.Errorf("listing of a new etcd: %+v", l)
	}
	if l7, err = r.Create(timeout(t), subnet7, attrs7, time.Hour); err != nil {
		t.Fatal(err)
	}
	if events, _, err := r.Watch(timeout(t), l.Index); err != nil || len(events) != 1 || events[0].Lease.Revision != l7.Revision {
		t.Errorf("watch of a new etcd: %+v, %v", events, err)
	}
}

// Directories where leases should be, and deletions of whole trees.
func TestDirectories(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	b := openBackdoor(t, etcd.URL, prefix)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	next := func(index uint64) ([]registry.Event, uint64) {
		t.Helper()
		for {
			events, next, err := r.Watch(timeout(t), index)
			if err != nil {
				t.Fatal(err)
			}
			if len(events) > 0 {
				return events, next
			}
			index = next
		}
	}
	index := list(t, r).Index
	b.put("10.42.7.0-24/nested/deep", "x", 0)
	events, index := next(index)
	if bad := events[0].Bad; bad == nil || bad.Key != "10.42.7.0-24" || bad.Subnet != subnet7 {
		t.Errorf("event %+v", events[0])
	}
	if l := list(t, r); len(l.Bad) != 1 || l.Bad[0].Key != "10.42.7.0-24" || l.Bad[0].Subnet != subnet7 {
		t.Errorf("listing %+v", l)
	}
	if _, err := r.Create(timeout(t), subnet7, attrs7, time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("create in place of a directory: %v", err)
	}
	b.delete("subnets/10.42.7.0-24/nested/deep", false)
	b.delete("subnets/10.42.7.0-24", true)
	events, index = next(index)
	if !events[0].Deleted || events[0].Lease.Subnet != subnet7 {
		t.Errorf("event %+v", events[0])
	}
	if _, err := r.Create(timeout(t), subnet7, attrs7, time.Hour); err != nil {
		t.Fatal(err)
	}
	_, index = next(index)

	// Also from above, and also while a watch waits for it.
	b.delete("../../coreos.com", true)
	if _, _, err := r.Watch(timeout(t), index); !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch after all was deleted: %v", err)
	}
	if _, err := r.Create(timeout(t), subnet7, attrs7, time.Hour); err != nil {
		t.Fatal(err)
	}
	index = list(t, r).Index
	lost := make(chan error, 1)
	go func() {
		_, _, err := r.Watch(context.Background(), index)
		lost <- err
	}()
	b.delete("..", true)
	if err := <-lost; !errors.Is(err, registry.ErrHistoryLost) {
		t.Errorf("watch while all was deleted: %v", err)
	}

	b.set("config/dir", "x", 0)
	if _, err := r.Config(timeout(t)); !errors.Is(err, registry.ErrNoConfig) {
		t.Errorf("config that is a directory: %v", err)
	}
	b.set("subnets", "a file", 0)
	if l := list(t, r); len(l.Bad) != 1 || l.Bad[0].Key != "subnets" {
		t.Errorf("subnets that is a file: %+v", l)
	}
	if _, err := r.Create(timeout(t), subnet7, attrs7, time.Hour); err == nil || errors.Is(err, registry.ErrConflict) {
		t.Errorf("create below a file: %v", err)
	}
}

// The conditional deletion of other programs ends a lease like any other.
func TestCompareAndDelete(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	b := openBackdoor(t, etcd.URL, prefix)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	b.put("10.42.7.0-24", "x", 0)
	index := list(t, r).Index
	if _, err := b.keys.Delete(timeout(t), prefix+"/subnets/10.42.7.0-24", &client.DeleteOptions{PrevValue: "x"}); err != nil {
		t.Fatal(err)
	}
	events, _, err := r.Watch(timeout(t), index)
	if err != nil || len(events) != 1 || !events[0].Deleted || events[0].Lease.Subnet != subnet7 {
		t.Errorf("watch: %+v, %v", events, err)
	}
}

// oldWatcher follows leases as the v2 clients of flannel 0.5 to 0.17 do: an expiry or a
// deletion ends a lease, every other event must have a value that is JSON.
func oldWatcher(ctx context.Context, b *backdoor, after uint64) (actions []string, err error) {
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

// TestOldClientsFollowEveryWrite: from a lease's creation to its end nothing is written
// that an old client cannot read, and its end comes within 2 s.
func TestOldClientsFollowEveryWrite(t *testing.T) {
	etcd := etcdtest.StartEtcd(t)
	b := openBackdoor(t, etcd.URL, prefix)
	r := open(t, etcdv2.Options{Endpoints: []string{etcd.URL}, Prefix: prefix})
	index := list(t, r).Index
	l, err := r.Create(timeout(t), subnet7, attrs7, time.Hour)
	if err == nil {
		l, err = r.Update(timeout(t), l, attrs7, time.Hour)
	}
	if err == nil {
		err = r.Release(timeout(t), l)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	actions, err := oldWatcher(timeout(t), b, index)
	if want := []string{"create", "compareAndSwap", "compareAndSwap", "expire"}; err != nil || !slices.Equal(actions, want) {
		t.Errorf("events %q, %v, want %q", actions, err, want)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the lease ended %v after its release", took)
	}
}

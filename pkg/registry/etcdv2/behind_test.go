package etcdv2_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/registry"
)

// TestWatchOfWipedStore: if etcd was wiped while no request was waiting there, the next watch
// detects it, without a silence.
func TestWatchOfWipedStore(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	index := uint64(1000) // of the old store
	var err error
	for err == nil && ctx.Err() == nil {
		_, index, err = r.Watch(ctx, index)
	}
	if !errors.Is(err, registry.ErrRevisionRollback) {
		t.Errorf("watch ends with %v", err)
	}
}

// TestWatchOnAnotherConnection: between two watches, etcd was wiped and its index has passed that
// of the old store. The next watch detects it.
func TestWatchOnAnotherConnection(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartEtcd(t)
	r := api.At(t, etcd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := r.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	newOperator(t, etcd).Put("10.42.7.0-24", "x", 0)
	events, index, err := r.Watch(ctx, l.Index)
	if len(events) != 1 || err != nil {
		t.Fatalf("%+v, %v", events, err)
	}
	etcd.Stop()
	etcd.Wipe(t)
	etcd.Start(t)
	for range 20 {
		newOperator(t, etcd).Put("10.42.8.0-24", "x", 0)
	}
	if events, _, err := r.Watch(ctx, index); err != nil || len(events) > 0 {
		t.Errorf("the watch goes on with %+v, %v", events, err)
	}
	if events, _, err := r.Watch(ctx, index); err != nil || len(events) != 1 { // the watch was not asked to verify it
		t.Errorf("the watch then tells of %+v, %v", events, err)
	}
}

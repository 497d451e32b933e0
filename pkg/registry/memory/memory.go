// Package memory is a registry in this process for tests. It fulfils the contract of a real one
// (contract suite registrytest) and can be made to fail.
//
// It uses time.Now and time.AfterFunc, so testing/synctest controls expiry. It is not for a daemon:
// nothing outlives the process.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// Registry is an in-memory registry; New makes one.
type Registry struct {
	mu      sync.Mutex
	index   uint64
	config  []byte // nil: none
	written uint64 // revision of config
	entries map[string]*entry
	history []change
	keep    int           // length of history
	batch   int           // maximum number of events that one Watch returns; 0: all
	dropped uint64        // index of the last dropped event
	wake    chan struct{} // closed at each change
	fail    error
	hook    Hook
}

// Hook may make a call fail. It is called with the operation ("config", "write config", "list", "get", "watch",
// "create", "update", "release") and, for the last four except watch, the subnets: before the
// operation is done and afterwards, with done telling which. An error afterwards is a lost answer:
// the operation was done.
type Hook func(ctx context.Context, op string, subnets lease.Subnets, done bool) error

type entry struct {
	registry.Entry
	timer *time.Timer // ends it; nil: never
}

type change struct {
	index uint64
	event registry.Event
	all   bool // all leases were deleted
}

var _ registry.Registry = (*Registry)(nil)

// New returns an empty registry that keeps the last 1000 events, as etcd v2 does.
func New() *Registry {
	return &Registry{entries: map[string]*entry{}, keep: 1000, wake: make(chan struct{})}
}

// SetConfig writes the network config; nil removes it.
func (r *Registry) SetConfig(config []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	r.config, r.written = slices.Clone(config), r.index
}

// SetHistory sets how many events are kept.
func (r *Registry) SetHistory(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep = n
	r.trim()
}

// SetBatch sets how many events one Watch returns at most: 1 as in etcd v2, 0 without a limit.
func (r *Registry) SetBatch(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch = n
}

// SetHook sets the hook of each call; nil removes it.
func (r *Registry) SetHook(h Hook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = h
}

// Fail makes every call fail with err, including those that wait in Watch, until it is called with
// nil.
func (r *Registry) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
	r.wakeAll()
}

// Put writes any value to a key below subnets/, as an operator may. ttl 0 is forever.
func (r *Registry) Put(key, value string, ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(key, value, ttl, 0)
}

// Remove deletes a key below subnets/ if it exists.
func (r *Registry) Remove(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(key)
}

// RemoveAll deletes all leases in one event.
func (r *Registry) RemoveAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	r.index++
	r.record(change{index: r.index, all: true})
}

// Wipe empties the registry: no config, no leases, no history, and the given index.
func (r *Registry) Wipe(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	r.config, r.history, r.index, r.dropped = nil, nil, index, 0
	r.wakeAll()
}

func (r *Registry) clear() {
	for _, e := range r.entries {
		e.stop()
	}
	r.entries = map[string]*entry{}
}

// Config implements registry.Registry.
func (r *Registry) Config(ctx context.Context) ([]byte, error) {
	config, _, err := r.ReadConfig(ctx)
	return config, err
}

// WriteConfig implements registry.Registry.
func (r *Registry) WriteConfig(ctx context.Context, raw []byte, revision uint64) error {
	return r.call(ctx, "write config", lease.Subnets{}, func() error {
		if r.config == nil && revision != 0 || r.config != nil && revision != r.written {
			return registry.ErrConfigChanged
		}
		r.index++
		r.config, r.written = append([]byte{}, raw...), r.index
		return nil
	})
}

// ReadConfig implements registry.Registry.
func (r *Registry) ReadConfig(ctx context.Context) (config []byte, revision uint64, err error) {
	err = r.call(ctx, "config", lease.Subnets{}, func() error {
		if r.config == nil {
			return registry.ErrNoConfig
		}
		revision = r.written
		if len(r.config) > registry.MaxValue {
			return registry.LongConfig(int64(len(r.config)))
		}
		config = slices.Clone(r.config)
		return nil
	})
	return config, revision, err
}

// List implements registry.Registry.
func (r *Registry) List(ctx context.Context) (registry.Listing, error) {
	var l registry.Listing
	err := r.call(ctx, "list", lease.Subnets{}, func() error {
		l.Index = r.index
		for _, key := range slices.Sorted(maps.Keys(r.entries)) {
			l.Add(r.entries[key].Event())
		}
		return nil
	})
	return l, err
}

// Get implements registry.Registry.
func (r *Registry) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	var ev registry.Event
	err := r.call(ctx, "get", subnets, func() error {
		if e := r.holder(subnets); e != nil {
			ev = e.Event()
		} else {
			ev = registry.Event{Lease: lease.Lease{Subnets: subnets, Revision: r.index}, Deleted: true}
		}
		return nil
	})
	return ev, err
}

// Watch implements registry.Registry.
func (r *Registry) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	for {
		var events []registry.Event
		next := index
		var wake chan struct{}
		err := r.call(ctx, "watch", lease.Subnets{}, func() (err error) {
			wake = r.wake
			events, next, err = r.since(index)
			return err
		})
		if err != nil || next > index {
			return events, next, err
		}
		select {
		case <-ctx.Done():
			return nil, index, ctx.Err()
		case <-wake:
		}
	}
}

// since returns the events after index.
func (r *Registry) since(index uint64) ([]registry.Event, uint64, error) {
	if index > r.index {
		return nil, index, fmt.Errorf("index went back from %d to %d: %w", index, r.index, registry.ErrRevisionRollback)
	}
	if index < r.dropped {
		return nil, index, fmt.Errorf("events up to %d are forgotten: %w", r.dropped, registry.ErrHistoryLost)
	}
	var events []registry.Event
	next := index
	first, _ := slices.BinarySearchFunc(r.history, index+1, func(c change, index uint64) int { return cmp.Compare(c.index, index) })
	for _, c := range r.history[first:] {
		if c.all {
			return nil, index, fmt.Errorf("all leases were deleted: %w", registry.ErrHistoryLost)
		}
		if r.batch > 0 && len(events) == r.batch {
			break
		}
		events, next = append(events, c.event), c.index
	}
	return events, next, nil
}

// Create implements registry.Registry.
func (r *Registry) Create(ctx context.Context, subnets lease.Subnets, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	var l lease.Lease
	err := r.call(ctx, "create", subnets, func() (err error) {
		if r.holder(subnets) != nil {
			return registry.ErrConflict
		}
		l, err = r.write(lease.Key(subnets), a, ttl, 0)
		return err
	})
	return l, err
}

// Update implements registry.Registry.
func (r *Registry) Update(ctx context.Context, prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	var l lease.Lease
	err := r.call(ctx, "update", prev.Subnets, func() (err error) {
		l, err = r.rewrite(prev, a, ttl)
		return err
	})
	return l, err
}

// Release implements registry.Registry, as etcdv2 does.
func (r *Registry) Release(ctx context.Context, prev lease.Lease) error {
	a := prev.Attrs
	a.Leaving = true
	return r.call(ctx, "release", prev.Subnets, func() error {
		_, err := r.rewrite(prev, a, time.Second)
		return err
	})
}

// holder returns the entry of subnets, else of another lease with the same IPv4 subnet, or nil.
func (r *Registry) holder(subnets lease.Subnets) *entry {
	key := lease.Key(subnets)
	if e := r.entries[key]; e != nil {
		return e
	}
	plain := lease.Key(lease.SubnetsOf(subnets.V4()))
	for key, e := range r.entries {
		if (key == plain || strings.HasPrefix(key, plain+"&")) && e.Event().Invalid == nil {
			return e
		}
	}
	return nil
}

// rewrite writes a lease if it is at the revision of prev.
func (r *Registry) rewrite(prev lease.Lease, a lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	e := r.entries[lease.Key(prev.Subnets)]
	if e == nil || e.Revision != prev.Revision {
		return lease.Lease{}, registry.ErrConflict
	}
	return r.write(e.Key, a, ttl, e.Created)
}

// call runs do under the lock, with the failures that a test has set.
func (r *Registry) call(ctx context.Context, op string, subnets lease.Subnets, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	fail, hook := r.fail, r.hook
	r.mu.Unlock()
	if fail != nil {
		return fail
	}
	if hook != nil { // without the lock, because it may write
		if err := hook(ctx, op, subnets, false); err != nil {
			return err
		}
	}
	r.mu.Lock()
	err := do()
	r.mu.Unlock()
	if err == nil && hook != nil {
		err = hook(ctx, op, subnets, true)
	}
	return err
}

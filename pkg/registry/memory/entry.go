package memory

import (
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
)

// write stores a lease and returns it as stored.
func (r *Registry) write(key string, a lease.Attrs, ttl time.Duration, created uint64) (lease.Lease, error) {
	value, err := a.Encode()
	if err != nil {
		return lease.Lease{}, err
	}
	return r.put(key, string(value), ttl, created).event(key).Lease, nil
}

func (r *Registry) put(key, value string, ttl time.Duration, created uint64) *entry {
	if old, ok := r.entries[key]; ok {
		old.stop()
	}
	r.index++
	e := &entry{value: value, created: created, modified: r.index}
	if created == 0 {
		e.created = r.index
	}
	if ttl > 0 {
		ttl = (ttl + time.Second - 1).Truncate(time.Second)
		e.expires = time.Now().Add(ttl)
		e.timer = time.AfterFunc(ttl, func() { r.expire(key, e) })
	}
	r.entries[key] = e
	r.record(change{index: r.index, event: e.event(key)})
	return e
}

func (r *Registry) expire(key string, e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entries[key] == e {
		r.remove(key)
	}
}

func (r *Registry) remove(key string) {
	e, ok := r.entries[key]
	if !ok {
		return
	}
	e.stop()
	delete(r.entries, key)
	r.index++
	ev := registry.Event{Deleted: true}
	if subnets, err := lease.ParseKey(key); err == nil {
		ev.Lease = lease.Lease{Subnets: subnets, Revision: r.index}
	} else {
		ev.Invalid = &registry.InvalidEntry{Key: registry.ShortKey(key), Revision: r.index, Err: err}
	}
	r.record(change{index: r.index, event: ev})
}

// event converts an entry as etcd's adapters do.
func (e *entry) event(key string) registry.Event {
	subnets, err := lease.ParseKey(key)
	var a lease.Attrs
	if err == nil {
		a, err = lease.DecodeAttrs([]byte(e.value))
	}
	if err != nil {
		return registry.Event{Invalid: &registry.InvalidEntry{Key: registry.ShortKey(key), Subnets: subnets, Revision: e.modified, Err: err}}
	}
	return registry.Event{Lease: lease.Lease{Subnets: subnets, Attrs: a, Expires: e.expires, Revision: e.modified, Created: e.created}}
}

func (e *entry) stop() {
	if e.timer != nil {
		e.timer.Stop()
	}
}

// record adds a change to the history and wakes the watchers.
func (r *Registry) record(c change) {
	r.history = append(r.history, c)
	r.trim()
	r.wakeAll()
}

func (r *Registry) trim() {
	if n := len(r.history) - r.keep; n > 0 {
		r.dropped = r.history[n-1].index
		r.history = r.history[n:]
	}
}

func (r *Registry) wakeAll() {
	close(r.wake)
	r.wake = make(chan struct{})
}

package memory

import (
	"cmp"
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
	return r.put(key, string(value), ttl, created).Event().Lease, nil
}

func (r *Registry) put(key, value string, ttl time.Duration, created uint64) *entry {
	if old, ok := r.entries[key]; ok {
		old.stop()
	}
	r.index++
	e := &entry{Entry: registry.Entry{Key: key, Value: []byte(value), Created: cmp.Or(created, r.index), Revision: r.index}}
	if ttl > 0 {
		ttl = (ttl + time.Second - 1).Truncate(time.Second)
		e.Expires = time.Now().Add(ttl)
		e.timer = time.AfterFunc(ttl, func() { r.expire(key, e) })
	}
	r.entries[key] = e
	r.record(change{index: r.index, event: e.Event()})
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
	r.record(change{index: r.index, event: registry.Entry{Key: key, Revision: r.index}.Deletion()})
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

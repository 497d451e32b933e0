package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Apply executes operations in order and returns a result for each; nil means success. A failed
// operation does not prevent the others. Put replaces an existing object with the same key.
// Deleting a missing object is a success. Errors name the object and wrap a unix.Errno.
func (k *Kernel) Apply(ops []dataplane.Op) []error {
	a := applier{k: k, ops: ops, errs: make([]error, len(ops)), indexes: map[string]int{}}
	for i, op := range ops {
		switch h := handlers[op.Kind]; {
		case h == nil:
			a.errs[i] = unix.EOPNOTSUPP
		case h.apply == nil:
			a.queue(i, h)
		default:
			a.flush()
			a.errs[i] = ignoreHarmless(op, h, h.apply(k, op))
			clear(a.indexes) // links may have changed
		}
	}
	a.flush()
	for i, err := range a.errs {
		if err != nil {
			a.errs[i] = fmt.Errorf("%s %s: %w", ops[i].Verb, ops[i].Object(), explain(ops[i], err))
		}
	}
	return a.errs
}

// applier collects operations that can be sent in one batch.
type applier struct {
	k       *Kernel
	ops     []dataplane.Op
	errs    []error
	indexes map[string]int // of links by name; cleared whenever links may change

	pending   []queued
	requests  requests
	lockCache bool // the FDB cache is updated by some of the pending operations
}

type queued struct{ op, index int } // index into ops; index of the link

// queue adds an operation, and sends all pending ones once they fill a batch.
func (a *applier) queue(i int, h *handler) {
	op := a.ops[i]
	index := 0
	if link := op.Device(); link != "" {
		var err error
		if index, err = a.index(link); err != nil {
			a.errs[i] = ignoreHarmless(op, h, err)
			return
		}
	}
	a.pending = append(a.pending, queued{i, index})
	h.request(&a.requests, op, index)
	a.lockCache = a.lockCache || h.applied != nil
	if a.requests.Len() == a.k.conn.BatchSize() {
		a.flush()
	}
}

// index returns the index of a link. It looks up each name once, even if there is no such link.
func (a *applier) index(name string) (int, error) {
	index, known := a.indexes[name]
	if !known {
		d, err := a.k.byName(name)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return 0, err
		}
		index = d.index
		a.indexes[name] = index
	}
	if index == 0 {
		return 0, unix.ENODEV
	}
	return index, nil
}

func (a *applier) flush() {
	if a.requests.Len() == 0 {
		return
	}
	if a.lockCache { // for the whole exchange, see fdbCache
		a.k.fdbCache.mu.Lock()
		defer a.k.fdbCache.mu.Unlock()
	}
	for n, err := range a.k.conn.Batch(&a.requests.Requests) {
		q := a.pending[n]
		op := a.ops[q.op]
		h := handlers[op.Kind]
		if err != nil && h.retry != nil {
			err = h.retry(a.k, op, q.index, err)
		}
		err = ignoreHarmless(op, h, err)
		if err == nil && h.applied != nil {
			h.applied(a.k, op, q.index)
		}
		a.errs[q.op] = err
	}
	a.pending, a.lockCache = a.pending[:0], false
	a.requests.Reset()
}

// ignoreHarmless returns nil for errors which mean that the object is as wanted already.
func ignoreHarmless(op dataplane.Op, h *handler, err error) error {
	harmless := h.existsErrs
	if op.Verb == dataplane.Del {
		harmless = []unix.Errno{unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EADDRNOTAVAIL}
	}
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}

// explain adds the kernel limit that a Put has reached to its error.
func explain(op dataplane.Op, err error) error {
	if h := handlers[op.Kind]; h != nil && h.limit != nil && op.Verb == dataplane.Put {
		if errno, limit := h.limit(op); errors.Is(err, errno) {
			return fmt.Errorf("%w (%s)", err, limit)
		}
	}
	return err
}

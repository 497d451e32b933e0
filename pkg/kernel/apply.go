package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Apply carries out operations in order and gives one result for each; nil:
// done. One that fails does not keep the others from being tried. Put replaces
// whatever stands under the same key; to delete what is not there is success.
// Errors name the object and wrap a unix.Errno.
func (k *Kernel) Apply(ops []dataplane.Op) []error {
	a := applier{k: k, ops: ops, errs: make([]error, len(ops)), indexes: map[string]int{}}
	for i := range ops {
		op := &ops[i]
		switch op.Kind {
		case dataplane.KindLink:
			a.flush()
			a.errs[i] = k.applyLink(op)
			clear(a.indexes)
		case dataplane.KindSysctl:
			a.flush()
			a.errs[i] = k.setSysctl(dataplane.KindSysctl.Of(*op))
		default:
			a.queue(i)
		}
	}
	a.flush()
	for i, err := range a.errs {
		if err != nil {
			a.errs[i] = fmt.Errorf("%s %s: %w", ops[i].Verb, ops[i].Object(), explain(&ops[i], err))
		}
	}
	return a.errs
}

// applier collects the operations that need no answer before the next one.
type applier struct {
	k       *Kernel
	ops     []dataplane.Op
	errs    []error
	indexes map[string]int // of links by name; links come and go in between

	waiting  []queued
	requests requests
	fdb      bool // some of them are about FDB entries
}

type queued struct{ op, index int } // into ops; of the link

// queue sends what is waiting as soon as one exchange is full of it, so that
// there is never more.
func (a *applier) queue(i int) {
	op := &a.ops[i]
	index := 0
	if link := op.Device(); link != "" {
		var err error
		if index, err = a.index(link); err != nil {
			a.errs[i] = settle(op, err)
			return
		}
	}
	a.waiting = append(a.waiting, queued{i, index})
	a.requests.op(op, index)
	a.fdb = a.fdb || op.Kind == dataplane.KindFDB
	if a.requests.Len() == a.k.conn.BatchSize() {
		a.flush()
	}
}

// index finds a link; one that is missing is asked for once.
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

func (r *requests) op(op *dataplane.Op, index int) {
	switch op.Kind {
	case dataplane.KindAddr:
		addr, _ := dataplane.KindAddr.Of(*op)
		r.addr(op.Verb, addr, index)
	case dataplane.KindFDB:
		entry, _ := dataplane.KindFDB.Of(*op)
		r.fdb(op.Verb, entry, index)
	case dataplane.KindNeigh:
		k, mac := dataplane.KindNeigh.Of(*op)
		r.neigh(op.Verb, k, mac, index)
	case dataplane.KindNextHop:
		id, hop := dataplane.KindNextHop.Of(*op)
		r.nextHop(op.Verb, id, hop, index)
	default:
		k, route := dataplane.KindRoute.Of(*op)
		r.route(op.Verb, k, route, index)
	}
}

func (a *applier) flush() {
	if a.requests.Len() == 0 {
		return
	}
	if a.fdb { // see forwarding for why all the time
		a.k.forwarding.mu.Lock()
		defer a.k.forwarding.mu.Unlock()
	}
	for n, err := range a.k.conn.Batch(&a.requests.Requests) {
		q := a.waiting[n]
		op := &a.ops[q.op]
		if op.Kind == dataplane.KindRoute && op.Verb == dataplane.Put && errors.Is(err, unix.EEXIST) {
			err = a.unshadow(op, q.index)
		}
		err = settle(op, err)
		if op.Kind == dataplane.KindFDB && err == nil {
			entry, _ := dataplane.KindFDB.Of(*op)
			a.k.forwarding.note(op.Verb, entry, q.index)
		}
		a.errs[q.op] = err
	}
	a.waiting, a.fdb = a.waiting[:0], false
	a.requests.Reset()
}

// unshadow replaces a route where several have the same destination and metric.
// The kernel then replaces the first only, and refuses when the wanted one
// stands behind it; with that one gone, it becomes the first.
func (a *applier) unshadow(op *dataplane.Op, index int) error {
	var r requests
	k, route := dataplane.KindRoute.Of(*op)
	r.route(dataplane.Del, k, route, index)
	r.route(dataplane.Put, k, route, index)
	return a.k.conn.Batch(&r.Requests)[1]
}

// settle drops the errors that say that an operation had nothing to do.
func settle(op *dataplane.Op, err error) error {
	var harmless []unix.Errno
	switch {
	case op.Verb == dataplane.Del:
		harmless = []unix.Errno{unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EADDRNOTAVAIL}
	case op.Kind == dataplane.KindAddr:
		harmless = []unix.Errno{unix.EEXIST}
	}
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}

func (k *Kernel) applyLink(op *dataplane.Op) error {
	name, link := dataplane.KindLink.Of(*op)
	var err error
	switch op.Verb {
	case dataplane.Del:
		return settle(op, k.deleteLink(name))
	case dataplane.Set:
		err = k.changeLink(name, link)
	default:
		err = k.createLink(name, link)
	}
	if err != nil {
		return err
	}
	d, err := k.verify(name, link)
	if err == nil && op.Verb == dataplane.Put { // a new one forwards to nobody
		k.forwarding.mu.Lock()
		defer k.forwarding.mu.Unlock()
		k.forwarding.learn(d.index, map[dataplane.MAC]netip.Addr{})
	}
	return err
}

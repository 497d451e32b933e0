package dataplane

import (
	"iter"
	"slices"
)

// Conflict is a wanted object that is not created, because it would replace something that is not
// ours.
type Conflict struct {
	Op     Op
	Reason string
}

// Delta is the result of Diff: operations in an order that avoids interruptions, and conflicts.
type Delta struct {
	Conflicts []Conflict

	put, del []list // of the kinds that have any, in order of creation
}

// list is operations on objects of one kind, in order.
type list interface {
	size() int
	each(yield func(Op) bool) bool // reports whether yield returned true for all
}

// Len returns the number of operations.
func (d *Delta) Len() (n int) {
	for _, lists := range [][]list{d.put, d.del} {
		for _, l := range lists {
			n += l.size()
		}
	}
	return n
}

// Ops returns the operations in order: links, sysctls and addresses, FDB entries, neighbours and
// routes; then deletions in reverse order, so that replacements exist before the old objects are
// deleted.
func (d *Delta) Ops() iter.Seq[Op] {
	return func(yield func(Op) bool) {
		for _, l := range d.put {
			if !l.each(yield) {
				return
			}
		}
		for _, l := range slices.Backward(d.del) {
			if !l.each(yield) {
				return
			}
		}
	}
}

// Diff returns the operations that change have into want. Nothing outside scope is changed, and
// nothing is deleted unless prune is set.
func Diff(want, have State, scope Scope, prune bool) *Delta {
	d := differ{
		Delta: &Delta{}, want: want, have: have, scope: scope, prune: prune,
		blocked: map[string]bool{}, recreated: map[string]bool{}, newMAC: map[string]bool{},
	}
	for _, k := range kinds {
		put, del := k.diff(&d)
		if put != nil {
			d.put = append(d.put, put)
		}
		if del != nil {
			d.del = append(d.del, del)
		}
	}
	return d.Delta
}

// differ is the state that the kinds share during a Diff.
type differ struct {
	*Delta
	want, have State
	scope      Scope
	prune      bool

	blocked   map[string]bool    // names of links that a foreign device has
	recreated map[string]bool    // links that are recreated, without the objects that they had
	newMAC    map[string]bool    // links whose MAC changes: the kernel flushes their neighbours
	taken     map[slot]string    // where no route may be created, with the reason
	hops      map[uint32]NextHop // needed by the wanted routes
}

func (d *Descriptor[K, V]) diff(by *differ) (put, del list) {
	if d.diffFunc != nil {
		return d.diffFunc(by, d)
	}
	want := d.in(by.want)
	return d.list(Put, d.missing(by, want, nil)), d.list(Del, d.surplus(by, want))
}

// missing returns, sorted, the objects of want that do not exist on links that are not blocked.
// form returns the form in which an object is created; if it is nil, objects are created as wanted.
func (d *Descriptor[K, V]) missing(by *differ, want map[K]V, form func(K, V) V) (all []object[K, V]) {
	have := d.in(by.have)
	for k, v := range want {
		if form != nil {
			v = form(k, v)
		}
		link := d.link(k, v)
		gone := by.recreated[link] || d.perMAC && by.newMAC[link]
		if h, ok := have[k]; by.blocked[link] || ok && h == v && !gone {
			continue
		}
		if all == nil {
			all = make([]object[K, V], 0, max(1, len(want)-len(have))) // at least as many, if none is blocked
		}
		all = append(all, object[K, V]{v, k})
	}
	d.sort(all)
	return all
}

// surplus returns, sorted, the existing objects that are ours and not wanted.
func (d *Descriptor[K, V]) surplus(by *differ, want map[K]V) (all []object[K, V]) {
	if !by.prune || d.owns == nil {
		return nil
	}
	have := d.in(by.have)
	for k, v := range have {
		link := d.link(k, v)
		if _, ok := want[k]; ok || by.recreated[link] || by.blocked[link] || !d.owns(by.scope, k, v) {
			continue
		}
		if len(all) == cap(all) {
			all = slices.Grow(all, max(8, len(all))) // double the size: append grows more slowly
		}
		all = append(all, object[K, V]{v, k})
	}
	d.sort(all)
	return all
}

func (d *Descriptor[K, V]) sort(all []object[K, V]) {
	slices.SortFunc(all, func(a, b object[K, V]) int { return d.compare(a.key, b.key) })
}

func (d *Descriptor[K, V]) list(v Verb, all []object[K, V]) list {
	if len(all) == 0 {
		return nil
	}
	return &objects[K, V]{d, v, all}
}

// objects is a list whose operations are allocated only during iteration.
type objects[K, V comparable] struct {
	kind *Descriptor[K, V]
	verb Verb
	all  []object[K, V]
}

func (l *objects[K, V]) size() int { return len(l.all) }

func (l *objects[K, V]) each(yield func(Op) bool) bool {
	for i := range l.all {
		if !yield(Op{l.verb, l.kind, &l.all[i], nil}) {
			return false
		}
	}
	return true
}

// ops is a list of arbitrary operations.
type ops []Op

func (l ops) size() int { return len(l) }

func (l ops) each(yield func(Op) bool) bool {
	for _, op := range l {
		if !yield(op) {
			return false
		}
	}
	return true
}

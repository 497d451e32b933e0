package dataplane

import (
	"iter"
	"slices"
)

// Conflict is something wanted that is left undone because it would destroy
// what is not ours.
type Conflict struct {
	Op     Op
	Reason string
}

// Delta is what Diff finds: operations in an order that leaves no gap, and what
// must be left undone.
type Delta struct {
	Conflicts []Conflict

	put, del []list // of the kinds that have any, in the order of writing
}

// list is operations on objects of one kind, in order.
type list interface {
	size() int
	each(yield func(Op) bool) bool // reports whether yield wants more
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

// Ops returns the operations in order: links, sysctls and addresses, FDB entries,
// neighbours, routes; then deletions in reverse order, so that what replaces
// them stands before they go.
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

// Diff returns the operations that turn have into want. Nothing outside scope is
// changed, and nothing is deleted unless prune is set.
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

// differ is what the kinds leave for those after them.
type differ struct {
	*Delta
	want, have State
	scope      Scope
	prune      bool

	blocked   map[string]bool    // link names that somebody else's device bears
	recreated map[string]bool    // links made anew: what have says of them is gone
	newMAC    map[string]bool    // links that get another MAC: the kernel empties their neighbour table
	taken     map[slot]string    // where a route must not be put, and why
	hops      map[uint32]NextHop // that the wanted routes need
}

func (d *Descriptor[K, V]) diff(by *differ) (put, del list) {
	if d.diffFunc != nil {
		return d.diffFunc(by, d)
	}
	want := d.in(by.want)
	return d.list(Put, d.missing(by, want, nil)), d.list(Del, d.surplus(by, want))
}

// missing lists, in order, what is wanted on links that are ours to fill and does not stand
// there. form returns the form that an object is to have; nil: as it is wanted.
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
			all = make([]object[K, V], 0, max(1, len(want)-len(have))) // as many at least, if none is blocked
		}
		all = append(all, object[K, V]{v, k})
	}
	d.sort(all)
	return all
}

// surplus lists, in order, what stands there, is ours, and is not wanted.
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
			all = slices.Grow(all, max(8, len(all))) // twice as many: append takes smaller steps
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

// objects is a list whose operations take no room before they are asked for.
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

// ops is a list of whatever operations.
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

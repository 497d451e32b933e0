package dataplane

import (
	"iter"
	"slices"
	"sort"
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

	lists []list // in order
}

// list is operations on objects of one kind, in order.
type list interface{ each(yield func(Op) bool) }

// ops is a list of any operations.
type ops []Op

func (l ops) each(yield func(Op) bool) { slices.Values(l)(yield) }

// Len returns the number of operations.
func (d *Delta) Len() (n int) {
	for range d.Ops() {
		n++
	}
	return n
}

// Ops returns the operations in order: links, sysctls and addresses, FDB entries, neighbours and
// routes; then deletions in reverse order, so that replacements exist before the old objects are
// deleted.
func (d *Delta) Ops() iter.Seq[Op] {
	return func(yield func(Op) bool) {
		more := true
		each := func(op Op) bool { more = yield(op); return more }
		for i := 0; more && i < len(d.lists); i++ {
			d.lists[i].each(each)
		}
	}
}

// Diff returns the operations that change have into want. Nothing outside scope is changed, and
// nothing is deleted unless prune is set.
func Diff(want, have State, scope Scope, prune bool) *Delta {
	d := differ{
		Delta: &Delta{lists: make([]list, 0, 2*len(kinds))}, want: want, have: have, scope: scope, prune: prune,
		links: map[string]linkChange{},
	}
	for i, k := range kinds { // the first i lists create objects, the others delete some
		put, del := k.diff(&d)
		d.lists = slices.Insert(d.lists, i, put, del)
	}
	return d.Delta
}

// Compare is Diff with routes in the form that suits the kernel, of which have must be a whole
// reading. It returns the scope with that form.
func Compare(want, have State, scope Scope, prune bool) (*Delta, Scope) {
	scope.NextHops, scope.Spread = want.UseNextHops(have), want.UseSpread(have)
	return Diff(want, have, scope, prune), scope
}

// differ is the state that the kinds share during a Diff.
type differ struct {
	*Delta
	want, have State
	scope      Scope
	prune      bool

	links map[string]linkChange // by name
	taken map[slot]string       // where no route may be created, with the reason
	hops  map[uint32]NextHop    // needed by the wanted routes
}

// linkChange is what a change of a link means for the objects on it.
type linkChange int

const (
	linkKept      linkChange = iota // nothing
	linkNewMAC                      // the kernel flushes the neighbours
	linkRecreated                   // the link is recreated, without the objects that it had
	linkBlocked                     // a foreign device has the name: objects are neither created nor deleted
)

func (d *Descriptor[K, V]) diff(by *differ) (put, del list) {
	if d.diffFunc != nil {
		return d.diffFunc(by, d)
	}
	want := d.in(by.want)
	return d.missing(by, want, nil), d.surplus(by, want)
}

// missing returns the objects of want that do not exist on links that are not blocked. form returns
// the form in which an object is created; if it is nil, objects are created as wanted.
func (d *Descriptor[K, V]) missing(by *differ, want map[K]V, form func(K, V) V) *objects[K, V] {
	have := d.in(by.have)
	atLeast := len(want) - len(have) // if no link is blocked
	return d.list(Put, want, atLeast, func(k K, v V) (V, bool) {
		if form != nil {
			v = form(k, v)
		}
		h, ok := have[k]
		return v, by.creates(d.linkOf(k, v), ok && h == v, d.perMAC)
	})
}

// creates reports whether an object on a link has to be created. exists is whether it exists as
// wanted.
func (d *differ) creates(link string, exists, perMAC bool) bool {
	l := d.links[link]
	return l != linkBlocked && (!exists || l == linkRecreated || perMAC && l == linkNewMAC)
}

// surplus returns the existing objects that are ours and not wanted.
func (d *Descriptor[K, V]) surplus(by *differ, want map[K]V) *objects[K, V] {
	if !by.prune {
		return nil
	}
	const atLeast = 8
	return d.list(Del, d.in(by.have), atLeast, func(k K, v V) (V, bool) {
		if _, ok := want[k]; ok {
			return v, false
		}
		link := d.linkOf(k, v)
		ours := d.owns == nil && by.scope.OwnsLink(link) || d.owns != nil && d.owns(by.scope, k, v)
		return v, ours && by.links[link] < linkRecreated
	})
}

// objects is a list of operations on objects of one kind, which are allocated only during
// iteration. It implements sort.Interface, for which package sort has one compiled function, while
// package slices has one per type. A nil list is empty.
type objects[K, V comparable] struct {
	kind *Descriptor[K, V]
	verb Verb
	list []object[K, V]
}

// list returns, in order, the objects of a map that are selected, with the values that selected
// returns. The first one allocates room for atLeast objects.
func (d *Descriptor[K, V]) list(verb Verb, from map[K]V, atLeast int, selected func(K, V) (V, bool)) (l *objects[K, V]) {
	for k, v := range from {
		v, ok := selected(k, v)
		if !ok {
			continue
		}
		if l == nil {
			l = &objects[K, V]{d, verb, make([]object[K, V], 0, max(1, atLeast))}
		}
		if len(l.list) == cap(l.list) {
			l.list = slices.Grow(l.list, max(8, len(l.list))) // double the size: append grows more slowly
		}
		l.list = append(l.list, object[K, V]{v, k})
	}
	if l != nil {
		sort.Sort(l)
	}
	return l
}

// remove removes the objects that match.
func (l *objects[K, V]) remove(match func(object[K, V]) bool) {
	if l != nil {
		l.list = slices.DeleteFunc(l.list, match)
	}
}

func (l *objects[K, V]) Len() int           { return len(l.list) }
func (l *objects[K, V]) Less(i, j int) bool { return l.kind.compare(l.list[i].key, l.list[j].key) < 0 }
func (l *objects[K, V]) Swap(i, j int)      { l.list[i], l.list[j] = l.list[j], l.list[i] }

func (l *objects[K, V]) each(yield func(Op) bool) {
	if l == nil {
		return
	}
	for i := range l.list {
		if !yield(Op{l.verb, l.kind, &l.list[i], nil}) {
			return
		}
	}
}

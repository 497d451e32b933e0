package dataplane

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Kind is a kind of object as those see it who do not care which one it is. Every Kind is
// a *Descriptor; the table of all is in kinds.go.
type Kind interface {
	// String returns the name of one object of the kind, as in a report: "route".
	String() string

	// Of states: each does for the map of the kind what a method of State does for all.
	count(State) int
	objects(s State, yield func(Op) bool)
	equal(a, b State) bool
	copyTo(to, from State)
	removeFrom(s, keys State)
	pickTo(to, from, keys State)
	printTo(*strings.Builder, State)

	// diff finds what is to be put and what is to be deleted; nil: nothing.
	diff(*differ) (put, del list)

	// Of an operation on an object of the kind: each is a method of Op or of State.
	objectOf(Op) string
	deviceOf(Op) string
	commandOf(Op) string
	basicOf(op Op, own netip.Prefix) bool
	clone(Op) Op
	update(State, Op)
	has(State, Op) bool
}

// Descriptor is all that there is to know of a kind whose objects have keys K and values V.
// Diff, State, Op, reports and the loop that has operations applied walk the table of
// descriptors and name no kind. How objects are read and written is known by a driver.
type Descriptor[K, V comparable] struct {
	name  string // of one object in reports: "address"
	label string // that its text begins with: "addr"

	in      func(State) map[K]V // where a State has the objects
	compare func(a, b K) int    // the order of writing among objects of the kind

	// link is the link that an object is on, and goes with; "" if it is on none.
	link func(K, V) string
	// perMAC says that the kernel removes the objects of a link that gets another MAC.
	perMAC bool
	// owns reports whether an object is ours to delete, which takes a proof; nil: none is.
	owns func(Scope, K, V) bool
	// basic reports whether a host with the subnet own needs an object for itself, whoever
	// the peers are; nil: none.
	basic func(k K, v V, own netip.Prefix) bool

	title   func(K, V) string                  // what the object is called, the same for every attempt
	text    func(K, V) string                  // in the notation of ip(8), behind the label
	command func(verb string, k K, v V) string // that puts ("replace") or deletes ("del") it
	change  func(k K, v, was V) string         // that sets it; nil: nothing does

	// special is for a kind with rules of its own in place of those of missing and surplus.
	diffFunc func(*differ, *Descriptor[K, V]) (put, del list)
}

// object is one object of a kind, as operations refer to it. The value comes first: it may
// have no size.
type object[K, V comparable] struct {
	value V
	key   K
}

// String returns the name of an object of the kind.
func (d *Descriptor[K, V]) String() string { return d.name }

// Put returns the operation that makes an object be so.
func (d *Descriptor[K, V]) Put(k K, v V) Op { return Op{Put, d, &object[K, V]{v, k}, nil} }

// Del returns the operation that removes an object, of which as much is said as is known.
func (d *Descriptor[K, V]) Del(k K, v V) Op { return Op{Del, d, &object[K, V]{v, k}, nil} }

// Set returns the operation that turns an object that is there, and is as was, into what is
// wanted. Only links have it.
func (d *Descriptor[K, V]) Set(k K, v, was V) Op { return Op{Set, d, &object[K, V]{v, k}, &was} }

// Of returns key and value of an operation's object; nothing if that is of another kind.
func (d *Descriptor[K, V]) Of(op Op) (k K, v V) {
	if o, ok := op.object.(*object[K, V]); ok && op.Kind == Kind(d) {
		return o.key, o.value
	}
	return k, v
}

func (d *Descriptor[K, V]) objects(s State, yield func(Op) bool) {
	for k, v := range d.in(s) {
		if !yield(d.Put(k, v)) {
			return
		}
	}
}

func (d *Descriptor[K, V]) count(s State) int     { return len(d.in(s)) }
func (d *Descriptor[K, V]) equal(a, b State) bool { return maps.Equal(d.in(a), d.in(b)) }
func (d *Descriptor[K, V]) copyTo(to, from State) { maps.Copy(d.in(to), d.in(from)) }

func (d *Descriptor[K, V]) removeFrom(s, keys State) {
	for k := range d.in(keys) {
		delete(d.in(s), k)
	}
}

func (d *Descriptor[K, V]) pickTo(to, from, keys State) {
	for k := range d.in(keys) {
		if v, ok := d.in(from)[k]; ok {
			d.in(to)[k] = v
		}
	}
}

func (d *Descriptor[K, V]) printTo(b *strings.Builder, s State) {
	all := d.in(s)
	for _, k := range slices.SortedFunc(maps.Keys(all), d.compare) {
		b.WriteString(d.label + " " + d.text(k, all[k]) + "\n")
	}
}

func (d *Descriptor[K, V]) objectOf(op Op) string { return d.title(d.Of(op)) }
func (d *Descriptor[K, V]) deviceOf(op Op) string { return d.link(d.Of(op)) }

func (d *Descriptor[K, V]) commandOf(op Op) string {
	k, v := d.Of(op)
	if was, ok := op.was.(*V); ok && op.Verb == Set {
		return d.change(k, v, *was)
	}
	if op.Verb == Del {
		return d.command("del", k, v)
	}
	return d.command("replace", k, v)
}

func (d *Descriptor[K, V]) basicOf(op Op, own netip.Prefix) bool {
	k, v := d.Of(op)
	return d.basic != nil && d.basic(k, v, own)
}

func (d *Descriptor[K, V]) clone(op Op) Op {
	k, v := d.Of(op)
	op.object = &object[K, V]{v, k}
	return op
}

func (d *Descriptor[K, V]) update(s State, op Op) {
	if k, v := d.Of(op); op.Verb == Del {
		delete(d.in(s), k)
	} else {
		d.in(s)[k] = v
	}
}

func (d *Descriptor[K, V]) has(s State, op Op) bool {
	k, _ := d.Of(op)
	_, ok := d.in(s)[k]
	return ok
}

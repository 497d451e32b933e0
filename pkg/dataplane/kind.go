package dataplane

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Kind is a type-independent view of a kind of objects. Every Kind is a *Descriptor; kinds.go has
// the table of all.
type Kind interface {
	// String returns the name of one object of the kind for reports, such as "route".
	String() string

	// These methods operate on states. Each implements the State method of a similar name for one
	// kind.
	count(State) int
	objects(s State, yield func(Op) bool)
	equal(a, b State) bool
	copyTo(to, from State)
	removeFrom(s, keys State)
	pickTo(to, from, keys State)
	printTo(*strings.Builder, State)

	// diff returns the objects to create and to delete, or nil if there are none.
	diff(*differ) (put, del list)

	// These methods implement the methods of Op and State that take an operation on an object of
	// the kind.
	objectOf(Op) string
	deviceOf(Op) string
	commandOf(Op) string
	basicOf(op Op, own netip.Prefix) bool
	clone(Op) Op
	update(State, Op)
	has(State, Op) bool
}

// Descriptor defines a kind whose objects have keys of type K and values of type V. Diff, State,
// Op, reports and the reconcile loop iterate over the table of descriptors and depend on no
// particular kind. A driver implements reading and writing the objects.
type Descriptor[K, V comparable] struct {
	name  string // of one object in reports, such as "address"
	label string // first word of its text, such as "addr"

	in      func(State) map[K]V // returns the map of a State that has the objects
	compare func(a, b K) int    // order of creation within the kind

	// link returns the link that an object is on and is removed with, or "" if it is on none.
	link func(K, V) string
	// perMAC is set if the kernel removes the objects of a link when its MAC changes.
	perMAC bool
	// owns reports whether an object is ours and may be deleted. If it is nil, objects are never
	// deleted.
	owns func(Scope, K, V) bool
	// basic reports whether a host with the subnet own needs an object independently of its peers.
	// If it is nil, none is needed.
	basic func(k K, v V, own netip.Prefix) bool

	title   func(K, V) string                  // name of the object, the same for every attempt
	text    func(K, V) string                  // notation of ip(8), after the label
	command func(verb string, k K, v V) string // command that creates ("replace") or deletes ("del") the object
	change  func(k K, v, was V) string         // command that changes the object in place; nil if there is none

	// diffFunc replaces the comparison by missing and surplus for kinds with their own rules.
	diffFunc func(*differ, *Descriptor[K, V]) (put, del list)
}

// object is one object of a kind, as operations refer to it. The value comes first, because a
// zero-size field at the end of a struct is padded.
type object[K, V comparable] struct {
	value V
	key   K
}

// String returns the name of one object of the kind.
func (d *Descriptor[K, V]) String() string { return d.name }

// Put returns the operation that creates or replaces an object.
func (d *Descriptor[K, V]) Put(k K, v V) Op { return Op{Put, d, &object[K, V]{v, k}, nil} }

// Del returns the operation that deletes an object. The value is for reports only, as far as it is
// known.
func (d *Descriptor[K, V]) Del(k K, v V) Op { return Op{Del, d, &object[K, V]{v, k}, nil} }

// Set returns the operation that changes an existing object from was to v in place. Only links
// support it.
func (d *Descriptor[K, V]) Set(k K, v, was V) Op { return Op{Set, d, &object[K, V]{v, k}, &was} }

// Of returns the key and value of an operation's object, or zero values if it is of another kind.
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

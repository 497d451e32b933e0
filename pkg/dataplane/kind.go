package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
)

// Kind is a type-independent view of a kind of objects. Every Kind is a *Descriptor; kinds.go has
// the table of all. What can be done without the types of an object is done by the callers, because
// every method of a Descriptor is compiled once per kind.
type Kind interface {
	// String returns the name of one object of the kind for reports, such as "route".
	String() string

	// These methods are about the objects of the kind in states.
	all(State) list // operations that create them, in order
	diff(*differ) (put, del list)
	equal(a, b State) bool
	copy(to, from, keys State) // copies the objects of from with the keys of keys
	remove(from, keys State)   // removes the objects with the keys of keys

	// These methods take the object of an operation of the kind.
	has(s State, object any) bool // reports whether there is an object with its key
	put(s State, object any)
	del(s State, object any)
	title(object any) string
	link(object any) string
	text(object any) string
	command(verb string, object any) string
	basic(object any, own netip.Prefix) bool
	clone(object any) any
}

// Descriptor defines a kind whose objects have keys of type K and values of type V. Diff, State,
// Op, reports and the reconcile loop iterate over the table of descriptors and depend on no
// particular kind. A driver implements reading and writing the objects.
type Descriptor[K, V comparable] struct {
	name  string // of one object in reports, such as "address"
	label string // first word of its text, such as "addr", if it is not the name

	in      func(State) map[K]V // returns the map of a State that has the objects
	compare func(a, b K) int    // order of creation within the kind

	// linkOf returns the link that an object is on and is removed with, or "" if it is on none.
	linkOf func(K, V) string
	// perMAC is set if the kernel removes the objects of a link when its MAC changes.
	perMAC bool
	// owns reports whether an object is ours and may be deleted. If it is nil, all objects on our
	// links are.
	owns func(Scope, K, V) bool
	// isBasic reports whether a host with the subnet own needs an object independently of its
	// peers. If it is nil, none is needed.
	isBasic func(k K, v V, own netip.Prefix) bool

	// titleOf returns the name of an object, the same for every attempt. If it is nil, the name is
	// that of the kind, and the key.
	titleOf func(K, V) string
	textOf  func(K, V) string // notation of ip(8), after the label
	// commandOf returns the command that creates ("replace") or deletes ("del") an object. If it is
	// nil, the command is the tool, such as "ip addr", the verb, and the text.
	commandOf func(verb string, k K, v V) string
	tool      string

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

// Of returns the key and value of an operation's object, or zero values if it is of another kind.
func (d *Descriptor[K, V]) Of(op Op) (k K, v V) {
	if op.Kind == Kind(d) {
		return d.split(op.object)
	}
	return k, v
}

func (*Descriptor[K, V]) split(of any) (K, V) {
	o := of.(*object[K, V])
	return o.key, o.value
}

func (d *Descriptor[K, V]) title(of any) string {
	if d.titleOf == nil {
		return d.name + " " + fmt.Sprint(of.(*object[K, V]).key)
	}
	return d.titleOf(d.split(of))
}

func (d *Descriptor[K, V]) link(of any) string { return d.linkOf(d.split(of)) }

func (d *Descriptor[K, V]) text(of any) string {
	return cmp.Or(d.label, d.name) + " " + d.textOf(d.split(of))
}

func (d *Descriptor[K, V]) command(verb string, of any) string {
	k, v := d.split(of)
	if d.commandOf == nil {
		return d.tool + " " + verb + " " + d.textOf(k, v)
	}
	return d.commandOf(verb, k, v)
}

func (d *Descriptor[K, V]) basic(of any, own netip.Prefix) bool {
	k, v := d.split(of)
	return d.isBasic != nil && d.isBasic(k, v, own)
}

func (d *Descriptor[K, V]) clone(of any) any {
	o := *of.(*object[K, V])
	return &o
}

func (d *Descriptor[K, V]) all(s State) list {
	objects := d.in(s)
	return d.list(Put, objects, len(objects), func(_ K, v V) (V, bool) { return v, true })
}

func (d *Descriptor[K, V]) equal(a, b State) bool { return maps.Equal(d.in(a), d.in(b)) }

func (d *Descriptor[K, V]) copy(to, from, keys State) {
	all := d.in(from)
	for k := range d.in(keys) {
		if v, ok := all[k]; ok {
			d.in(to)[k] = v
		}
	}
}

func (d *Descriptor[K, V]) remove(from, keys State) {
	for k := range d.in(keys) {
		delete(d.in(from), k)
	}
}

func (d *Descriptor[K, V]) has(s State, of any) bool {
	_, ok := d.in(s)[of.(*object[K, V]).key]
	return ok
}

func (d *Descriptor[K, V]) put(s State, of any) {
	o := of.(*object[K, V])
	d.in(s)[o.key] = o.value
}

func (d *Descriptor[K, V]) del(s State, of any) { delete(d.in(s), of.(*object[K, V]).key) }

package dataplane

import "net/netip"

// Kind is a type-independent view of a kind of objects. Every Kind is a *Descriptor; kinds.go has
// the table of all. What can be done without the types of an object is done by the callers, because
// every method of a Descriptor is compiled once per kind.
type Kind interface {
	// String returns the name of one object of the kind for reports, such as "route".
	String() string

	table(State) table // the objects of the kind in a state
	all(State) list    // operations that create them, in order
	diff(*differ) (put, del list)

	// These methods take the object of an operation of the kind.
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
	label string // first word of its text, such as "addr"

	in      func(State) map[K]V // returns the map of a State that has the objects
	compare func(a, b K) int    // order of creation within the kind

	// linkOf returns the link that an object is on and is removed with, or "" if it is on none.
	linkOf func(K, V) string
	// perMAC is set if the kernel removes the objects of a link when its MAC changes.
	perMAC bool
	// owns reports whether an object is ours and may be deleted. If it is nil, objects are never
	// deleted.
	owns func(Scope, K, V) bool
	// isBasic reports whether a host with the subnet own needs an object independently of its
	// peers. If it is nil, none is needed.
	isBasic func(k K, v V, own netip.Prefix) bool

	titleOf   func(K, V) string                  // name of the object, the same for every attempt
	textOf    func(K, V) string                  // notation of ip(8), after the label
	commandOf func(verb string, k K, v V) string // command that creates ("replace") or deletes ("del") the object

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
	if o, ok := op.object.(*object[K, V]); ok && op.Kind == Kind(d) {
		return o.key, o.value
	}
	return k, v
}

func (d *Descriptor[K, V]) title(of any) string {
	o := of.(*object[K, V])
	return d.titleOf(o.key, o.value)
}

func (d *Descriptor[K, V]) link(of any) string {
	o := of.(*object[K, V])
	return d.linkOf(o.key, o.value)
}

func (d *Descriptor[K, V]) text(of any) string {
	o := of.(*object[K, V])
	return d.label + " " + d.textOf(o.key, o.value)
}

func (d *Descriptor[K, V]) command(verb string, of any) string {
	o := of.(*object[K, V])
	return d.commandOf(verb, o.key, o.value)
}

func (d *Descriptor[K, V]) basic(of any, own netip.Prefix) bool {
	o := of.(*object[K, V])
	return d.isBasic != nil && d.isBasic(o.key, o.value, own)
}

func (d *Descriptor[K, V]) clone(of any) any {
	o := *of.(*object[K, V])
	return &o
}

func (d *Descriptor[K, V]) table(s State) table { return tableOf[K, V](d.in(s)) }

func (d *Descriptor[K, V]) all(s State) list {
	objects := d.in(s)
	return d.list(Put, objects, len(objects), func(_ K, v V) (V, bool) { return v, true })
}

// table is the objects of one kind in a State.
type table interface {
	size() int
	has(object any) (key, value bool) // reports whether an object has the key, and whether it has the value too
	put(object any)
	del(object any)
	copy(from, keys table) // copies the objects of from with the keys of keys
	delAll(keys table)     // deletes the objects with the keys of keys
}

// tableOf is a map of a State.
type tableOf[K, V comparable] map[K]V

func (t tableOf[K, V]) size() int { return len(t) }

func (t tableOf[K, V]) has(of any) (key, value bool) {
	o := of.(*object[K, V])
	v, key := t[o.key]
	return key, key && v == o.value
}

func (t tableOf[K, V]) put(of any) {
	o := of.(*object[K, V])
	t[o.key] = o.value
}

func (t tableOf[K, V]) del(of any) { delete(t, of.(*object[K, V]).key) }

func (t tableOf[K, V]) copy(from, keys table) {
	all := from.(tableOf[K, V])
	for k := range keys.(tableOf[K, V]) {
		if v, ok := all[k]; ok {
			t[k] = v
		}
	}
}

func (t tableOf[K, V]) delAll(keys table) {
	for k := range keys.(tableOf[K, V]) {
		delete(t, k)
	}
}

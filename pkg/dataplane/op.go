package dataplane

import "net/netip"

// Verb is what an operation does to its object.
type Verb int

// Put creates or replaces an object, Del deletes it, and Set changes a link in place.
const (
	Put Verb = iota
	Set
	Del
)

func (v Verb) String() string {
	return [...]string{Put: "replace", Set: "change", Del: "delete"}[v]
}

// Op is one change of one object: a verb, a kind, a key and a value. The methods of its Kind
// construct it and return its key and value. It is only a few words long, because it points to its
// object, which is immutable.
type Op struct {
	Verb Verb
	Kind Kind

	object any   // *object[K, V] of the kind
	was    *Link // the present value with Set
}

// SetLink returns the operation that changes an existing link from was to l in place.
func SetLink(name string, l, was Link) Op {
	return KindLink.Put(name, l).changing(was)
}

// changing turns the creation of a link into a change of the existing one.
func (o Op) changing(was Link) Op {
	o.Verb, o.was = Set, &was
	return o
}

// Object returns the name of the object, which is the same for every attempt. It is the key for the
// backoff.
func (o Op) Object() string { return o.Kind.title(o.object) }

// Device returns the link of the object, or "" if it has none, such as a blackhole route.
func (o Op) Device() string { return o.Kind.link(o.object) }

// Basic reports whether the operation creates something that a host with the subnet own needs
// independently of its peers, and without which it reaches none of them.
func (o Op) Basic(own netip.Prefix) bool { return o.Verb != Del && o.Kind.basic(o.object, own) }

// Clone returns a copy that can be retained. An operation of a Delta keeps the whole Delta in
// memory.
func (o Op) Clone() Op {
	o.object = o.Kind.clone(o.object)
	return o
}

// String returns the operation as a command that can be pasted into a shell.
func (o Op) String() string {
	switch o.Verb {
	case Del:
		return o.Kind.command("del", o.object)
	case Set:
		name, l := KindLink.Of(o)
		return changeCommand(name, l, *o.was)
	}
	return o.Kind.command("replace", o.object)
}

package dataplane

import "net/netip"

// Verb is what an operation does to its object.
type Verb int

// Put makes the object be as given, whether or not something stands under its
// key; Del removes it. Set changes a link in place.
const (
	Put Verb = iota
	Set
	Del
)

func (v Verb) String() string {
	switch v {
	case Del:
		return "delete"
	case Set:
		return "change"
	}
	return "replace"
}

// Op is one change of one object: a verb, a kind, a key and a value. The methods of its
// Kind make it and tell key and value. It is as large as a few words, since it points to
// its object, which is immutable.
type Op struct {
	Verb Verb
	Kind Kind

	object any // *object[K, V] of the kind
	was    any // *V with Set: as the object is
}

// Object names what the operation is about, the same for every attempt: the
// key for back-off.
func (o Op) Object() string { return o.Kind.objectOf(o) }

// Device returns the link that the operation is on; empty for what is on none, as a
// blackhole.
func (o Op) Device() string { return o.Kind.deviceOf(o) }

// Basic reports whether the operation makes what a host with the subnet own needs for
// itself, whoever the peers are, and without which it reaches none.
func (o Op) Basic(own netip.Prefix) bool { return o.Verb != Del && o.Kind.basicOf(o, own) }

// Clone returns an operation to keep: one of a Delta keeps all of that.
func (o Op) Clone() Op { return o.Kind.clone(o) }

// String returns the operation as a command that a person can paste.
func (o Op) String() string { return o.Kind.commandOf(o) }

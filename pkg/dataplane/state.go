package dataplane

import (
	"iter"
	"net/netip"
	"strings"
)

// Empty reports whether there is nothing in s.
func (s State) Empty() bool {
	for _, k := range kinds {
		if k.count(s) > 0 {
			return false
		}
	}
	return true
}

// Equal reports whether two states hold the same objects.
func (s State) Equal(o State) bool {
	for _, k := range kinds {
		if !k.equal(s, o) {
			return false
		}
	}
	return true
}

// Add puts the objects of o into s.
func (s State) Add(o State) {
	for _, k := range kinds {
		k.copyTo(s, o)
	}
}

// Remove takes the objects at the keys of o out of s.
func (s State) Remove(o State) {
	for _, k := range kinds {
		k.removeFrom(s, o)
	}
}

// Update keeps a reading up with an operation that was done. What goes with a link is not known from
// that: another reading shows it.
func (s State) Update(o Op) { o.Kind.update(s, o) }

// Has reports whether s has something at the key of an operation's object.
func (s State) Has(o Op) bool { return o.Kind.has(s, o) }

// Objects returns the objects of a kind, in no order, as the operations that put them.
func (s State) Objects(k Kind) iter.Seq[Op] {
	return func(yield func(Op) bool) { k.objects(s, yield) }
}

// Text prints the state in the notation of ip(8), bridge(8) and sysctl(8), one
// object a line, in order of creation.
func (s State) Text() string {
	var b strings.Builder
	for _, k := range kinds {
		k.printTo(&b, s)
	}
	return b.String()
}

// What belongs to a few peers among many is compared by itself: the parts of two
// states at the same keys have the same difference there as the whole. What is wanted
// at one destination must be in one part.

// Part returns what s holds at the keys of others, and, since they stand in the way, all
// routes to the same destinations, with the nexthops that go with these.
func (s State) Part(others ...State) State {
	p := NewState()
	destinations := map[netip.Prefix]bool{}
	for _, o := range others {
		for _, k := range kinds {
			k.pickTo(p, s, o)
		}
		for k := range o.Routes {
			destinations[k.Dst] = true
			id := NextHopID(k.Dst)
			if h, ok := s.NextHops[id]; ok {
				p.NextHops[id] = h
			}
		}
	}
	if len(destinations) > 0 {
		for k, r := range s.Routes {
			if destinations[k.Dst] {
				p.Routes[k] = r
			}
		}
	}
	return p
}

package dataplane

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Empty reports whether s has no objects.
func (s State) Empty() bool { return s.Equal(State{}) }

// Equal reports whether both states have the same objects.
func (s State) Equal(o State) bool {
	return !slices.ContainsFunc(kinds, func(k Kind) bool { return !k.equal(s, o) })
}

// Clear removes all objects.
func (s State) Clear() {
	for _, k := range kinds {
		k.remove(s, s)
	}
}

// Add adds the objects of o to s.
func (s State) Add(o State) {
	for _, k := range kinds {
		k.copy(s, o, o)
	}
}

// Remove removes the objects with the keys of o from s.
func (s State) Remove(o State) {
	for _, k := range kinds {
		k.remove(s, o)
	}
}

// Update applies a completed operation to s. It does not account for objects that the kernel
// removes together with a link; the next read of the kernel shows those.
func (s State) Update(o Op) {
	if o.Verb == Del {
		o.Kind.del(s, o.object)
	} else {
		o.Kind.put(s, o.object)
	}
}

// Has reports whether s has an object with the key of o's object.
func (s State) Has(o Op) bool { return o.Kind.has(s, o.object) }

// Objects returns the objects of a kind in order, as operations that create them.
func (s State) Objects(k Kind) iter.Seq[Op] { return k.all(s).each }

// Text returns the state in the notation of ip(8), bridge(8) and sysctl(8), one object per line, in
// order of creation.
func (s State) Text() string {
	var b strings.Builder
	for _, k := range kinds {
		for op := range s.Objects(k) {
			b.WriteString(k.text(op.object) + "\n")
		}
	}
	return b.String()
}

// The objects of a few peers can be compared separately: the parts of two states with the same keys
// have the same difference as the whole states have there. All wanted routes to one destination
// must be in the same part.

// Part returns the objects of s with the keys of others, and all routes to the same destinations
// with their nexthops, because these conflict with the routes of others.
func (s State) Part(others ...State) State {
	p := NewState()
	destinations := map[netip.Prefix]bool{}
	for _, o := range others {
		for _, k := range kinds {
			k.copy(p, s, o)
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

package dataplane

import (
	"iter"
	"net/netip"
	"strings"
)

// Empty reports whether s has no objects.
func (s State) Empty() bool {
	for _, k := range kinds {
		if k.table(s).size() > 0 {
			return false
		}
	}
	return true
}

// Equal reports whether both states have the same objects.
func (s State) Equal(o State) bool {
	for _, k := range kinds {
		others := k.table(o)
		same := func(op Op) bool {
			_, same := others.has(op.object)
			return same
		}
		if k.table(s).size() != others.size() || !k.all(s).each(same) {
			return false
		}
	}
	return true
}

// Add adds the objects of o to s.
func (s State) Add(o State) {
	for _, k := range kinds {
		added := k.table(o)
		k.table(s).copy(added, added)
	}
}

// Remove removes the objects with the keys of o from s.
func (s State) Remove(o State) {
	for _, k := range kinds {
		k.table(s).delAll(k.table(o))
	}
}

// Update applies a completed operation to s. It does not account for objects that the kernel
// removes together with a link; the next read of the kernel shows those.
func (s State) Update(o Op) {
	if t := o.Kind.table(s); o.Verb == Del {
		t.del(o.object)
	} else {
		t.put(o.object)
	}
}

// Has reports whether s has an object with the key of o's object.
func (s State) Has(o Op) bool {
	key, _ := o.Kind.table(s).has(o.object)
	return key
}

// Objects returns the objects of a kind in order, as operations that create them.
func (s State) Objects(k Kind) iter.Seq[Op] {
	return func(yield func(Op) bool) { k.all(s).each(yield) }
}

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
			k.table(p).copy(k.table(s), k.table(o))
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

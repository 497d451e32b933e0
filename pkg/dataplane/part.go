package dataplane

import (
	"maps"
	"net/netip"
)

// What belongs to a few peers among many is compared by itself: the parts of two
// states at the same keys have the same difference there as the whole. What is wanted
// at one destination must be in one part.

// Part gives what s holds at the keys of others: FDB entries, neighbours, tunnel
// entries, and routes with the nexthops that go with their destinations. Routes
// to these destinations by other links are in it, too, for they stand in the way.
func (s State) Part(others ...State) State {
	p := NewState()
	destinations := map[netip.Prefix]bool{}
	for _, o := range others {
		for f := range o.FDB {
			pick(p.FDB, s.FDB, f)
		}
		for k := range o.Neighs {
			pick(p.Neighs, s.Neighs, k)
		}
		for k := range o.Tunnel {
			pick(p.Tunnel, s.Tunnel, k)
		}
		for k := range o.Routes {
			destinations[k.Dst] = true
			if k.Dst.Addr().Is4() {
				pick(p.NextHops, s.NextHops, number(k.Dst.Addr()))
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

func pick[K comparable, V any](to, from map[K]V, k K) {
	if v, ok := from[k]; ok {
		to[k] = v
	}
}

// Add puts the objects of o into s.
func (s State) Add(o State) {
	maps.Copy(s.Links, o.Links)
	maps.Copy(s.Addrs, o.Addrs)
	maps.Copy(s.FDB, o.FDB)
	maps.Copy(s.Neighs, o.Neighs)
	maps.Copy(s.Tunnel, o.Tunnel)
	maps.Copy(s.NextHops, o.NextHops)
	maps.Copy(s.Routes, o.Routes)
	maps.Copy(s.Sysctls, o.Sysctls)
}

// Remove takes the objects at the keys of o out of s.
func (s State) Remove(o State) {
	without(s.Links, o.Links)
	without(s.Addrs, o.Addrs)
	without(s.FDB, o.FDB)
	without(s.Neighs, o.Neighs)
	without(s.Tunnel, o.Tunnel)
	without(s.NextHops, o.NextHops)
	without(s.Routes, o.Routes)
	without(s.Sysctls, o.Sysctls)
}

func without[K comparable, V any](m, keys map[K]V) {
	for k := range keys {
		delete(m, k)
	}
}

// Note keeps a reading up with an operation that was done. Of links, with all that
// goes with them, only another reading tells.
func (s State) Note(o Op) {
	put := o.Verb == Put
	switch o.Kind {
	case KindFDB:
		note(s.FDB, o.FDB, struct{}{}, put)
	case KindNeigh:
		note(s.Neighs, o.NeighKey, o.MAC, put)
	case KindTunnel:
		note(s.Tunnel, o.TunnelKey, o.Peer, put)
	case KindNextHop:
		note(s.NextHops, o.ID, o.NextHop, put)
	case KindRoute:
		note(s.Routes, o.RouteKey, o.Route, put)
	}
}

func note[K comparable, V any](m map[K]V, k K, v V, put bool) {
	if put {
		m[k] = v
	} else {
		delete(m, k)
	}
}

// About tells whether s has something at the key of an operation's object; nexthops
// are not asked for, they come and go with routes.
func (s State) About(o Op) (ok bool) {
	switch o.Kind {
	case KindLink:
		_, ok = s.Links[o.Name]
	case KindSysctl:
		_, ok = s.Sysctls[o.Name]
	case KindAddr:
		_, ok = s.Addrs[o.Addr]
	case KindFDB:
		_, ok = s.FDB[o.FDB]
	case KindNeigh:
		_, ok = s.Neighs[o.NeighKey]
	case KindTunnel:
		_, ok = s.Tunnel[o.TunnelKey]
	default:
		_, ok = s.Routes[o.RouteKey]
	}
	return ok
}

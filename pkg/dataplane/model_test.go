package dataplane

import (
	"fmt"
	"maps"
	"strings"
)

// model is a kernel in memory, with the habits of the real one that matter
// here: what goes when a link or its last address goes, what replaces what.
type model struct {
	State
}

func newModel(s State) *model {
	return &model{State: State{
		Links: maps.Clone(s.Links), Addrs: maps.Clone(s.Addrs), FDB: maps.Clone(s.FDB),
		Neighs: maps.Clone(s.Neighs), Routes: maps.Clone(s.Routes), Sysctls: maps.Clone(s.Sysctls),
		Tunnel: maps.Clone(s.Tunnel), NextHops: maps.Clone(s.NextHops),
	}}
}

// apply carries out one operation as Linux does. An error is something that no
// well-ordered batch runs into.
func (m *model) apply(o Op) error {
	if link := o.Device(); link != "" && o.Kind != KindLink && o.Verb != Del {
		if _, ok := m.Links[link]; !ok {
			return fmt.Errorf("%s: link %s is not there yet", o, link)
		}
	}
	switch o.Kind {
	case KindLink:
		return m.applyLink(o)
	case KindSysctl:
		if _, ok := m.Sysctls[o.Name]; !ok {
			return fmt.Errorf("%s: no such sysctl", o)
		}
		m.Sysctls[o.Name] = o.Value
	case KindAddr:
		m.applyAddr(o)
	case KindFDB:
		// A unicast MAC has one remote: a replacement takes its place.
		if o.Verb == Put {
			maps.DeleteFunc(m.FDB, func(f FDB, _ struct{}) bool { return f.Link == o.FDB.Link && f.MAC == o.FDB.MAC })
			m.FDB[o.FDB] = struct{}{}
		} else {
			delete(m.FDB, o.FDB)
		}
	case KindNeigh:
		if o.Verb == Put {
			m.Neighs[o.NeighKey] = o.MAC
		} else {
			delete(m.Neighs, o.NeighKey)
		}
	case KindNextHop:
		return m.applyNextHop(o)
	case KindRoute:
		return m.applyRoute(o)
	}
	return nil
}

func (m *model) applyLink(o Op) error {
	was, exists := m.Links[o.Name]
	switch o.Verb {
	case Put:
		if exists {
			return fmt.Errorf("%s: file exists", o)
		}
		m.Links[o.Name] = o.Link
		m.Sysctls[sysctlOf(o.Name)] = "1"
	case Set:
		if !exists {
			return fmt.Errorf("%s: no such device", o)
		}
		if o.Link.MAC == (MAC{}) {
			o.Link.MAC = was.MAC
		}
		m.Links[o.Name] = o.Link
		if o.Link.MAC != was.MAC || !o.Link.Up {
			m.flushNeighs(o.Name)
		}
		if !o.Link.Up {
			m.flushRoutes(o.Name)
		}
	case Del:
		delete(m.Links, o.Name)
		delete(m.Sysctls, sysctlOf(o.Name))
		maps.DeleteFunc(m.Addrs, func(a Addr, _ struct{}) bool { return a.Link == o.Name })
		maps.DeleteFunc(m.FDB, func(f FDB, _ struct{}) bool { return f.Link == o.Name })
		m.flushNeighs(o.Name)
		m.flushRoutes(o.Name)
	}
	return nil
}

func sysctlOf(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

func (m *model) flushNeighs(link string) {
	maps.DeleteFunc(m.Neighs, func(k NeighKey, _ MAC) bool { return k.Link == link })
}

func (m *model) flushRoutes(link string) {
	maps.DeleteFunc(m.Routes, func(k RouteKey, _ Route) bool { return k.Link == link })
	maps.DeleteFunc(m.NextHops, func(_ uint32, h NextHop) bool { return h.Link == link })
}

// applyNextHop: what routes say of a gateway follows the object; without it
// they are gone.
func (m *model) applyNextHop(o Op) error {
	if have, ok := m.NextHops[o.ID]; ok && have.Proto != ProtoFlannel {
		return fmt.Errorf("%s: takes the place of somebody else's", o)
	}
	if o.Verb == Del {
		delete(m.NextHops, o.ID)
		maps.DeleteFunc(m.Routes, func(_ RouteKey, r Route) bool { return r.NextHop == o.ID })
		return nil
	}
	m.NextHops[o.ID] = o.NextHop
	for k, r := range m.Routes {
		if r.NextHop == o.ID {
			delete(m.Routes, k)
			k.Link, r.Via, r.OnLink = o.NextHop.Link, o.NextHop.Via, o.NextHop.OnLink
			m.Routes[k] = r
		}
	}
	return nil
}

// connected is the route that the kernel makes of an address.
func connected(a Addr) (RouteKey, bool) {
	return RouteKey{Dst: a.Prefix.Masked(), Link: a.Link}, a.Prefix.Bits() < a.Prefix.Addr().BitLen()
}

func (m *model) applyAddr(o Op) {
	k, has := connected(o.Addr)
	if o.Verb == Put {
		m.Addrs[o.Addr] = struct{}{}
		if has {
			m.Routes[k] = Route{Proto: ProtoKernel}
		}
		return
	}
	if _, ok := m.Addrs[o.Addr]; !ok {
		return
	}
	delete(m.Addrs, o.Addr)
	if has && m.Routes[k].Proto == ProtoKernel {
		delete(m.Routes, k)
	}
	for a := range m.Addrs {
		if a.Link == o.Addr.Link {
			return
		}
	}
	m.flushNeighs(o.Addr.Link)
	m.flushRoutes(o.Addr.Link)
}

func (m *model) applyRoute(o Op) error {
	if o.Verb == Del {
		maps.DeleteFunc(m.Routes, func(k RouteKey, r Route) bool {
			if o.Route.NextHop != 0 { // such a deletion cannot name the link
				return k.Dst == o.RouteKey.Dst && k.Metric == o.RouteKey.Metric && r.NextHop == o.Route.NextHop && r.Proto == o.Route.Proto
			}
			return k == o.RouteKey && r == o.Route
		})
		return nil
	}
	if id := o.Route.NextHop; id != 0 {
		if h, ok := m.NextHops[id]; !ok || h.Link != o.RouteKey.Link || h.Via != o.Route.Via {
			return fmt.Errorf("%s: no such nexthop", o)
		}
	}
	for k, r := range m.Routes {
		if k.Dst == o.RouteKey.Dst && k.Metric == o.RouteKey.Metric {
			if k.Link == "" && !r.Blackhole || r.Proto == ProtoKernel && !strings.HasPrefix(k.Link, "flannel") {
				return fmt.Errorf("%s: takes the place of %s, which is not ours", o, routeText(k, r))
			}
			delete(m.Routes, k)
		}
	}
	m.Routes[o.RouteKey] = o.Route
	return nil
}

// ordered tells whether o comes too early, or too late, for traffic: no route
// before its neighbour and no neighbour before its FDB entry; the other way round
// when they go.
func (m *model) ordered(o Op, want State, scope Scope) error {
	switch {
	case o.Kind == KindRoute && o.Verb == Put:
		gw := NeighKey{Link: o.RouteKey.Link, IP: o.Route.Via}
		if mac, wanted := want.Neighs[gw]; wanted && m.Neighs[gw] != mac {
			return fmt.Errorf("%s: the neighbour entry of its gateway is missing", o)
		}
	case o.Kind == KindNeigh && o.Verb == Put:
		for f := range want.FDB {
			if _, there := m.FDB[f]; f.Link == o.NeighKey.Link && f.MAC == o.MAC && !there {
				return fmt.Errorf("%s: the FDB entry of its MAC is missing", o)
			}
		}
	case o.Kind == KindNeigh:
		for k, r := range m.Routes {
			if k.Link == o.NeighKey.Link && r.Via == o.NeighKey.IP && want.Routes[k] != r && scope.OwnsRoute(k, r) {
				return fmt.Errorf("%s: route %s still needs it", o, routeText(k, r))
			}
		}
	case o.Kind == KindFDB && o.Verb == Del:
		for k, mac := range m.Neighs {
			if wanted, ok := want.Neighs[k]; k.Link == o.FDB.Link && mac == o.FDB.MAC && (!ok || wanted != mac) {
				return fmt.Errorf("%s: neighbour %s still needs it", o, neighText(k, mac))
			}
		}
	}
	return nil
}

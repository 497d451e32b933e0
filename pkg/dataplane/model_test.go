package dataplane

import (
	"fmt"
	"maps"
	"strings"
)

// model is a kernel in memory that behaves like the real one in what matters here: which objects
// are removed together with a link or its last address, and which objects replace others.
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

// apply performs one operation as Linux does. It returns an error that no well-ordered batch
// causes.
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
		if !m.Has(o) {
			return fmt.Errorf("%s: no such sysctl", o)
		}
		m.Update(o)
	case KindAddr:
		m.applyAddr(o)
	case KindFDB:
		// A unicast MAC has one remote, which a replace operation replaces.
		if put, _ := KindFDB.Of(o); o.Verb == Put {
			maps.DeleteFunc(m.FDB, func(f FDB, _ struct{}) bool { return f.Link == put.Link && f.MAC == put.MAC })
		}
		m.Update(o)
	case KindNextHop:
		return m.applyNextHop(o)
	case KindRoute:
		return m.applyRoute(o)
	default:
		m.Update(o)
	}
	return nil
}

func (m *model) applyLink(o Op) error {
	name, link := KindLink.Of(o)
	was, exists := m.Links[name]
	switch o.Verb {
	case Put:
		if exists {
			return fmt.Errorf("%s: file exists", o)
		}
		m.Links[name] = link
		m.Sysctls[sysctlOf(name)] = "1"
	case Set:
		if !exists {
			return fmt.Errorf("%s: no such device", o)
		}
		if link.MAC == (MAC{}) {
			link.MAC = was.MAC
		}
		m.Links[name] = link
		if link.MAC != was.MAC || !link.Up {
			m.flushNeighs(name)
		}
		if !link.Up {
			m.flushRoutes(name)
		}
	case Del:
		delete(m.Links, name)
		delete(m.Sysctls, sysctlOf(name))
		maps.DeleteFunc(m.Addrs, func(a Addr, _ struct{}) bool { return a.Link == name })
		maps.DeleteFunc(m.FDB, func(f FDB, _ struct{}) bool { return f.Link == name })
		m.flushNeighs(name)
		m.flushRoutes(name)
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

// applyNextHop changes or removes an object together with the routes that refer to it.
func (m *model) applyNextHop(o Op) error {
	id, hop := KindNextHop.Of(o)
	if have, ok := m.NextHops[id]; ok && have.Proto != ProtoFlannel {
		return fmt.Errorf("%s: takes the place of somebody else's", o)
	}
	if o.Verb == Del {
		delete(m.NextHops, id)
		maps.DeleteFunc(m.Routes, func(_ RouteKey, r Route) bool { return r.NextHop == id })
		return nil
	}
	m.NextHops[id] = hop
	for k, r := range m.Routes {
		if r.NextHop == id {
			delete(m.Routes, k)
			k.Link, r.Via, r.OnLink = hop.Link, hop.Via, hop.OnLink
			m.Routes[k] = r
		}
	}
	return nil
}

// connected returns the route that the kernel adds for an address.
func connected(a Addr) (RouteKey, bool) {
	return RouteKey{Dst: a.Prefix.Masked(), Link: a.Link}, a.Prefix.Bits() < a.Prefix.Addr().BitLen()
}

func (m *model) applyAddr(o Op) {
	addr, _ := KindAddr.Of(o)
	k, has := connected(addr)
	if o.Verb == Put {
		m.Addrs[addr] = struct{}{}
		if has {
			m.Routes[k] = Route{Proto: ProtoKernel}
		}
		return
	}
	if _, ok := m.Addrs[addr]; !ok {
		return
	}
	delete(m.Addrs, addr)
	if has && m.Routes[k].Proto == ProtoKernel {
		delete(m.Routes, k)
	}
	for a := range m.Addrs {
		if a.Link == addr.Link {
			return
		}
	}
	m.flushNeighs(addr.Link)
	m.flushRoutes(addr.Link)
}

func (m *model) applyRoute(o Op) error {
	key, route := KindRoute.Of(o)
	if o.Verb == Del {
		maps.DeleteFunc(m.Routes, func(k RouteKey, r Route) bool {
			if route.NextHop != 0 { // such a deletion cannot name the link
				return k.Dst == key.Dst && k.Metric == key.Metric && r.NextHop == route.NextHop && r.Proto == route.Proto
			}
			return k == key && r == route
		})
		return nil
	}
	if id := route.NextHop; id != 0 {
		if h, ok := m.NextHops[id]; !ok || h.Link != key.Link || h.Via != route.Via {
			return fmt.Errorf("%s: no such nexthop", o)
		}
	}
	for k, r := range m.Routes {
		if k.Dst == key.Dst && k.Metric == key.Metric {
			if k.Link == "" && !r.Blackhole || r.Proto == ProtoKernel && !strings.HasPrefix(k.Link, "flannel") {
				return fmt.Errorf("%s: takes the place of %s, which is not ours", o, routeText(k, r))
			}
			delete(m.Routes, k)
		}
	}
	m.Routes[key] = route
	return nil
}

// ordered returns an error if o comes too early or too late for traffic: no route may be added
// before its neighbour, and no neighbour before its FDB entry. Removals use the reverse order.
func (m *model) ordered(o Op, want State, scope Scope) error {
	key, route := KindRoute.Of(o)
	neigh, to := KindNeigh.Of(o)
	entry, _ := KindFDB.Of(o)
	switch {
	case o.Kind == KindRoute && o.Verb == Put:
		gw := NeighKey{Link: key.Link, IP: route.Via}
		if mac, wanted := want.Neighs[gw]; wanted && m.Neighs[gw] != mac {
			return fmt.Errorf("%s: the neighbour entry of its gateway is missing", o)
		}
	case o.Kind == KindNeigh && o.Verb == Put:
		for f := range want.FDB {
			if _, there := m.FDB[f]; f.Link == neigh.Link && f.MAC == to && !there {
				return fmt.Errorf("%s: the FDB entry of its MAC is missing", o)
			}
		}
	case o.Kind == KindNeigh:
		for k, r := range m.Routes {
			if k.Link == neigh.Link && r.Via == neigh.IP && want.Routes[k] != r && scope.OwnsRoute(k, r) {
				return fmt.Errorf("%s: route %s still needs it", o, routeText(k, r))
			}
		}
	case o.Kind == KindFDB && o.Verb == Del:
		for k, mac := range m.Neighs {
			if wanted, ok := want.Neighs[k]; k.Link == entry.Link && mac == entry.MAC && (!ok || wanted != mac) {
				return fmt.Errorf("%s: neighbour %s still needs it", o, neighText(k, mac))
			}
		}
	}
	return nil
}

package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Snapshot reads what lies in scope: the links it names with their addresses,
// permanent neighbours and permanent FDB entries; the unicast routes of the
// main table to anywhere inside its network, by any link, and our blackholes
// there; nexthop objects, whoever made them, with an id in its range; its
// sysctls. What does not exist is absent. A route by several links is there without
// a link, and a nexthop that is not a gateway on a link without one and without
// our stamp, so that nobody replaces them unawares.
//
// What a Snapshot has told of an FDB is not told by a Watch of the same Kernel
// again; so both are for one reader, who repeats a Snapshot that failed.
func (k *Kernel) Snapshot(scope dataplane.Scope) (dataplane.State, error) {
	s := dataplane.NewState()
	err := k.read(scope, &s)
	return s, err
}

// read adds what a Snapshot has to a State that has no such objects.
func (k *Kernel) read(scope dataplane.Scope, s *dataplane.State) error {
	n := names{k: k, known: map[int]string{}}
	for _, name := range scope.Links {
		d, err := k.byName(name)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read link %s: %w", name, err)
		}
		if d.link.Parent, err = parentName(n, d.parent); err != nil {
			return err
		}
		n.known[d.index] = name
		s.Links[name] = d.link
		if err := k.readLink(*s, name, d.index); err != nil {
			return err
		}
	}
	k.forwarding.keep(n.known)
	if err := k.readPaths(s, scope, n); err != nil {
		return err
	}
	values, err := k.Sysctls(scope.Sysctls)
	maps.Copy(s.Sysctls, values)
	return err
}

// readLink reads what a link carries. A link that went away meanwhile carries
// nothing.
func (k *Kernel) readLink(s dataplane.State, name string, index int) error {
	if err := k.readAddrs(s, name, index); gone(err) != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	if err := k.readNeighs(s, name, index); gone(err) != nil {
		return fmt.Errorf("list neighbours of %s: %w", name, err)
	}
	if err := k.readFDB(s, name, index); gone(err) != nil {
		return fmt.Errorf("list fdb of %s: %w", name, err)
	}
	return nil
}

func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// addrsRequest asks for the addresses of a link; 0: of all.
func addrsRequest(index int) *requests {
	r := one(unix.RTM_GETADDR, 0)
	r.addrHeader(unix.AF_UNSPEC, 0, index)
	return r
}

func (k *Kernel) readAddrs(s dataplane.State, name string, index int) error {
	var found []netip.Prefix
	err := k.conn.Dump(&addrsRequest(index).Requests, func() { found = nil }, func(b []byte) {
		if p, i, _, ok := parseAddr(b); ok && i == index {
			found = append(found, p)
		}
	})
	for _, p := range found {
		s.Addrs[dataplane.Addr{Link: name, Prefix: p}] = struct{}{}
	}
	return err
}

func (k *Kernel) readNeighs(s dataplane.State, name string, index int) error {
	reset := func() {
		maps.DeleteFunc(s.Neighs, func(k dataplane.NeighKey, _ dataplane.MAC) bool { return k.Link == name })
	}
	return k.neighbors(unix.AF_UNSPEC, index, reset, func(n neighbor) {
		if n.permanent() && n.dst.IsValid() && n.family != unix.AF_BRIDGE {
			s.Neighs[dataplane.NeighKey{Link: name, IP: n.dst}] = n.mac
		}
	})
}

func (k *Kernel) readFDB(s dataplane.State, name string, index int) error {
	var known map[dataplane.MAC]netip.Addr
	reset := func() {
		known = make(map[dataplane.MAC]netip.Addr, len(k.forwarding.links[index]))
		maps.DeleteFunc(s.FDB, func(f dataplane.FDB, _ struct{}) bool { return f.Link == name })
	}
	k.forwarding.mu.Lock()
	defer k.forwarding.mu.Unlock()
	err := k.neighbors(unix.AF_BRIDGE, index, reset, func(n neighbor) {
		if n.family != unix.AF_BRIDGE || !n.self {
			return
		}
		addRemote(known, n)
		if n.forwards() {
			s.FDB[dataplane.FDB{Link: name, MAC: n.mac, Dst: n.dst}] = struct{}{}
		}
	})
	if err == nil {
		k.forwarding.learn(index, known)
	}
	return err
}

// neighbors lists the neighbour tables, or the FDB, of one link.
func (k *Kernel) neighbors(family uint8, index int, reset func(), each func(neighbor)) error {
	r := one(unix.RTM_GETNEIGH, 0)
	r.neighHeader(unix.NdMsg{Family: family})
	r.Uint32(unix.NDA_IFINDEX, uint32(index))
	return k.conn.Dump(&r.Requests, reset, func(b []byte) {
		if n, ok := parseNeighbor(b); ok && n.index == index {
			each(n)
		}
	})
}

// routes lists the routes of the main table to where wanted says that they matter, of those
// that parseRoute knows. typ is the only type there is to be, or RTN_UNSPEC.
func (k *Kernel) routes(family, typ uint8, reset func(), wanted func(netip.Prefix) bool, each func(routeEntry)) error {
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN, Type: typ})
	err := k.conn.Dump(&r.Requests, reset, func(b []byte) {
		// A kernel without this family answers with every other.
		dst, ok := mainRoute(b)
		if !ok || b[0] != family || !wanted(dst) {
			return
		}
		if e, ok := parseRoute(dst, b); ok {
			each(e)
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // no such table: no routes yet
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

// readPaths reads nexthops and routes. The nexthops come first: routes may say
// no more than which one they go through.
func (k *Kernel) readPaths(s *dataplane.State, scope dataplane.Scope, n names) error {
	if !scope.Network.IsValid() {
		return nil
	}
	for _, name := range scope.Carriers {
		d, err := k.byName(name)
		if err == nil {
			n.known[d.index] = name
		} else if !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("read link %s: %w", name, err)
		}
	}
	var h hops
	if scope.Network.Addr().Is4() {
		var err error
		if h, err = k.readNextHops(scope, n); err != nil {
			return err
		}
		s.NextHops = h.in
	}
	return k.readRoutes(s, scope, n, h)
}

func (k *Kernel) readRoutes(s *dataplane.State, scope dataplane.Scope, n names, h hops) error {
	put := func(e routeEntry) {
		if e.route.NextHop != 0 && e.index == 0 {
			e.through(h)
		}
		if e.key.Dst.Addr().Is6() && e.key.Metric == defaultMetric6 {
			e.key.Metric = 0
		}
		// Of several under one key, the first is the one that works.
		if _, shadowed := s.Routes[e.key]; !shadowed {
			s.Routes[e.key] = e.route
		}
	}
	var unnamed []routeEntry // by links that must be asked for, which cannot be done meanwhile
	ownHops := true
	reset := func() { clear(s.Routes); s.Others, unnamed, ownHops = 0, nil, true }
	inside := func(dst netip.Prefix) bool {
		if scope.Inside(dst) {
			return true
		}
		s.Others++
		return false
	}
	err := k.routes(family(scope.Network.Addr()), unix.RTN_UNSPEC, reset, inside, func(e routeEntry) {
		ownHops = ownHops && (e.route.NextHop == 0 || scope.InRange(e.route.NextHop))
		var named bool
		e.key.Link, named = n.known[e.index]
		if named || e.index == 0 {
			put(e)
		} else {
			unnamed = append(unnamed, e)
		}
	})
	k.ownHops.Store(ownHops && err == nil)
	if err != nil {
		return err
	}
	for _, e := range unnamed {
		if e.key.Link, err = n.of(e.index); err != nil {
			return err
		}
		if e.key.Link != "" {
			put(e)
		}
	}
	return nil
}

// through says of a route what its nexthop object says. One by an object that is
// not a gateway on a link stays without, as do all routes by several links.
func (e *routeEntry) through(h hops) {
	if hop, ok := h.of(e.route.NextHop); ok && hop.Link != "" {
		e.key.Link, e.route.Via, e.route.OnLink = hop.Link, hop.Via, hop.OnLink
	}
}

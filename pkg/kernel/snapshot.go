package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Snapshot reads what lies in scope: the links it names with their addresses,
// permanent neighbours and permanent FDB entries; the unicast routes of the
// main table to anywhere inside its network, by any link, and our blackholes
// there; nexthop objects that have its addresses for ids; its sysctls. What does not
// exist is absent. A route by several links is there without a link, so that
// nobody replaces it unawares.
func (k *Kernel) Snapshot(scope dataplane.Scope) (dataplane.State, error) {
	s := dataplane.NewState()
	n := names{k: k, known: map[int]string{}}
	for _, name := range scope.Links {
		d, err := k.byName(name)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return s, fmt.Errorf("read link %s: %w", name, err)
		}
		if d.link.Parent, err = parentName(n, d.parent); err != nil {
			return s, err
		}
		n.known[d.index] = name
		s.Links[name] = d.link
		if err := k.readLink(s, name, d.index); err != nil {
			return s, err
		}
	}
	others, err := k.readNextHops(&s, scope, n)
	if err != nil {
		return s, err
	}
	if err := k.readRoutes(s, others, scope, n); err != nil {
		return s, err
	}
	s.Sysctls, err = k.Sysctls(scope.Sysctls)
	return s, err
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

func (k *Kernel) readAddrs(s dataplane.State, name string, index int) error {
	m := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	m.Index = uint32(index)
	var found []netip.Prefix
	err := k.conn.dump(request(unix.RTM_GETADDR, 0, m), func() { found = nil }, func(b []byte) {
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
	found, err := k.neighbors(unix.AF_UNSPEC, index)
	for _, n := range found {
		if n.permanent() && n.dst.IsValid() && n.family != unix.AF_BRIDGE {
			s.Neighs[dataplane.NeighKey{Link: name, IP: n.dst}] = n.mac
		}
	}
	return err
}

func (k *Kernel) readFDB(s dataplane.State, name string, index int) error {
	found, err := k.neighbors(unix.AF_BRIDGE, index)
	for _, n := range found {
		// An entry with a port or VNI of its own is not what a dataplane.FDB
		// says; left out, it is replaced where one is wanted.
		if n.permanent() && n.self && n.dst.IsValid() && !n.other && n.family == unix.AF_BRIDGE {
			s.FDB[dataplane.FDB{Link: name, MAC: n.mac, Dst: n.dst}] = struct{}{}
		}
	}
	return err
}

// neighbors lists the neighbour tables, or the FDB, of one link.
func (k *Kernel) neighbors(family, index int) ([]neighbor, error) {
	r := request(unix.RTM_GETNEIGH, 0, &netlink.Ndmsg{Family: uint8(family)})
	add(r, unix.NDA_IFINDEX, nl.Uint32Attr(uint32(index)))
	var all []neighbor
	err := k.conn.dump(r, func() { all = nil }, func(b []byte) {
		if n, ok := parseNeighbor(b); ok && n.index == index {
			all = append(all, n)
		}
	})
	return all, err
}

type routeEntry struct {
	key   dataplane.RouteKey
	route dataplane.Route
	index int
}

// routes lists the routes of the main table that parseRoute knows and that match; nil: all.
func (k *Kernel) routes(family int, match func(dataplane.RouteKey) bool) ([]routeEntry, error) {
	m := &nl.RtMsg{}
	m.Family = uint8(family)
	m.Table = unix.RT_TABLE_MAIN
	var all []routeEntry
	err := k.conn.dump(request(unix.RTM_GETROUTE, 0, m), func() { all = nil }, func(b []byte) {
		// A kernel without this family answers with every other.
		if key, r, index, ok := parseRoute(b); ok && int(b[0]) == family && (match == nil || match(key)) {
			all = append(all, routeEntry{key, r, index})
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // no such table: no routes yet
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return all, nil
}

func (k *Kernel) readRoutes(s dataplane.State, others map[uint32]dataplane.NextHop, scope dataplane.Scope, n names) error {
	if !scope.Network.IsValid() {
		return nil
	}
	all, err := k.routes(family(scope.Network.Addr()), func(key dataplane.RouteKey) bool { return scope.Inside(key.Dst) })
	if err != nil {
		return err
	}
	for _, e := range all {
		if id := e.route.NextHop; id != 0 && e.index == 0 {
			h, ok := s.NextHops[id]
			if !ok {
				h = others[id]
			}
			// Without a gateway it is a group, and so a route by several links.
			e.key.Link, e.route.Via, e.route.OnLink = h.Link, h.Via, h.OnLink
		}
		if e.index != 0 {
			if e.key.Link, err = n.of(e.index); err != nil {
				return err
			}
			if e.key.Link == "" {
				continue
			}
		}
		if e.key.Dst.Addr().Is6() && e.key.Metric == defaultMetric6 {
			e.key.Metric = 0
		}
		// Of several under one key, the first is the one that works.
		if _, shadowed := s.Routes[e.key]; !shadowed {
			s.Routes[e.key] = e.route
		}
	}
	return nil
}

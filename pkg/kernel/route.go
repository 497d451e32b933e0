package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/netlink"
)

func init() {
	register(dataplane.KindRoute, &handler{
		read:    (*reader).routes,
		request: (*requests).route,
		retry:   (*Kernel).replaceShadowed,
		limit:   limitOfRoutes,

		groups:   []int{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE},
		messages: []uint16{unix.RTM_NEWROUTE, unix.RTM_DELROUTE},
		event:    (*Watch).routeEvent,
	})
}

// limitOfRoutes explains that there are too many IPv6 routes (net/ipv6/route.c, ip6_dst_gc). Since
// Linux 4.17 these routes are not counted.
func limitOfRoutes(op dataplane.Op) (refused unix.Errno, limit string) {
	if k, _ := dataplane.KindRoute.Of(op); k.Dst.Addr().Is6() {
		refused = unix.ENOMEM
	}
	return refused, "sysctl net.ipv6.route.max_size limits the routes of IPv6"
}

const rtaNextHop = 30 // RTA_NH_ID of linux/rtnetlink.h

func (r *requests) route(op dataplane.Op, index int) {
	k, route := dataplane.KindRoute.Of(op)
	m := unix.RtMsg{
		Family:   family(k.Dst.Addr()),
		Dst_len:  uint8(k.Dst.Bits()),
		Table:    unix.RT_TABLE_MAIN,
		Type:     unix.RTN_UNICAST,
		Protocol: uint8(route.Proto),
		Scope:    route.Scope,
	}
	if route.Blackhole {
		m.Type = unix.RTN_BLACKHOLE
	}
	if route.OnLink && route.NextHop == 0 {
		m.Flags = unix.RTNH_F_ONLINK
	}
	if op.Verb == dataplane.Del {
		// The kernel deletes the first route that matches, so a deletion is as specific as
		// possible. Only the scope is not known here.
		m.Scope = unix.RT_SCOPE_NOWHERE
		m.Flags = 0
	}
	r.verb(op.Verb, unix.RTM_NEWROUTE, unix.RTM_DELROUTE)
	r.routeHeader(m)
	r.Addr(unix.RTA_DST, k.Dst.Masked().Addr())
	if k.Metric != 0 {
		r.Uint32(unix.RTA_PRIORITY, k.Metric)
	}
	switch {
	case route.Blackhole:
	case route.NextHop != 0: // the kernel accepts no other attribute with it
		r.Uint32(rtaNextHop, route.NextHop)
	default:
		r.Uint32(unix.RTA_OIF, uint32(index))
		switch via := route.Via; {
		case !via.IsValid():
		case via.Is4() == k.Dst.Addr().Is4():
			r.Addr(unix.RTA_GATEWAY, via)
		default: // struct rtvia
			at := r.Open(unix.RTA_VIA)
			r.Put16(uint16(family(via)))
			r.PutAddr(via)
			r.Close(at)
		}
	}
}

// routeHeader writes struct rtmsg.
func (r *requests) routeHeader(m unix.RtMsg) {
	r.Put8(m.Family, m.Dst_len, m.Src_len, m.Tos, m.Table, m.Protocol, m.Scope, m.Type)
	r.Put32(m.Flags)
}

// defaultMetric6 is the kernel's metric of an IPv6 route that is added with metric 0.
const defaultMetric6 = 1024

// routeEntry is a route as the kernel reports it, with its link by index.
type routeEntry struct {
	key    dataplane.RouteKey
	route  dataplane.Route
	index  int
	source netip.Addr // default source address of packets; invalid if the kernel chooses one
}

// parseRoute parses a route to a destination from mainRoute, if it is unicast or one of our
// blackholes. The index is 0 for blackholes, for multipath routes, and if the kernel reports only
// the nexthop object (net.ipv4.nexthop_compat_mode=0). Blackholes of other programs are ignored
// until they are in the place of a route of ours.
func parseRoute(dst netip.Prefix, b []byte) (e routeEntry, ok bool) {
	m := nl.DeserializeRtMsg(b)
	r := &e.route
	// Routes with a TOS or a source prefix have no key in this program.
	r.Blackhole = m.Type == unix.RTN_BLACKHOLE && m.Protocol == dataplane.ProtoFlannel
	if m.Type != unix.RTN_UNICAST && !r.Blackhole || m.Flags&unix.RTM_F_CLONED != 0 || m.Tos != 0 || m.Src_len != 0 {
		return e, false
	}
	several, _ := e.parseAttrs(b)
	e.key.Dst, r.Proto, r.OnLink = dst, int(m.Protocol), m.Flags&unix.RTNH_F_ONLINK != 0
	several = several || r.NextHop != 0 && e.index == 0
	switch {
	case several:
		e.index, r.Via = 0, netip.Addr{}
	case !r.Via.IsValid():
		r.LinkScope = m.Scope == unix.RT_SCOPE_LINK
	case m.Family == unix.AF_INET:
		r.Scope = m.Scope
	}
	return e, several || e.index != 0 || r.Blackhole
}

// parseAttrs parses the attributes of a message about a route of any type.
func (e *routeEntry) parseAttrs(b []byte) (several bool, table int) {
	for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		switch kind {
		case unix.RTA_OIF:
			e.index = v.Number()
		case unix.RTA_PRIORITY:
			e.key.Metric = uint32(v.Number())
		case unix.RTA_GATEWAY:
			e.route.Via = v.Addr()
		case unix.RTA_VIA:
			e.route.Via = v[min(2, len(v)):].Addr()
		case unix.RTA_PREFSRC:
			e.source = v.Addr()
		case unix.RTA_MULTIPATH:
			several = true
		case unix.RTA_TABLE:
			table = v.Number()
		case rtaNextHop:
			e.route.NextHop = uint32(v.Number())
		}
	}
	return several, table
}

// mainRoute returns the destination of a route of the main table, of any type.
func mainRoute(b []byte) (netip.Prefix, bool) {
	if len(b) < unix.SizeofRtMsg {
		return netip.Prefix{}, false
	}
	family, bits, table := b[0], b[1], b[4] // of struct rtmsg
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return netip.Prefix{}, false
	}
	for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		if kind == unix.RTA_DST {
			dst = v.Addr()
			break
		}
	}
	p := netip.PrefixFrom(dst, int(bits))
	return p, p.IsValid() && table == unix.RT_TABLE_MAIN
}

// routes lists the routes of the main table whose destination is wanted. typ is the type of routes
// to list, or RTN_UNSPEC for all.
func (k *Kernel) routes(family, typ uint8, reset func(), wanted func(netip.Prefix) bool, each func(dst netip.Prefix, b []byte)) error {
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN, Type: typ})
	err := k.conn.Dump(&r.Requests, reset, func(b []byte) {
		// A kernel without this family returns routes of all others.
		if dst, ok := mainRoute(b); ok && b[0] == family && wanted(dst) {
			each(dst, b)
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // no such table: no routes yet
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

// routes reads the routes of the scope. Nexthops must be read before: the kernel may report nothing
// but the nexthop of a route.
func (g *reader) routes() error {
	for _, f := range families(g.scope.Networks) {
		if err := g.familyRoutes(f); err != nil {
			g.k.onlyOwnHops.Store(false)
			return err
		}
	}
	g.k.onlyOwnHops.Store(!g.foreignHops)
	return nil
}

// familyRoutes reads the routes of one family.
func (g *reader) familyRoutes(f uint8) error {
	s, scope := g.s, g.scope
	put := func(e routeEntry) {
		if e.route.NextHop != 0 && e.index == 0 {
			e.resolveNextHop(g)
		}
		if e.key.Dst.Addr().Is6() && e.key.Metric == defaultMetric6 {
			e.key.Metric = 0
		}
		// Of several routes with one key, the first is effective.
		if _, shadowed := s.Routes[e.key]; !shadowed {
			s.Routes[e.key] = e.route
		}
	}
	var unnamed []routeEntry // by links whose names cannot be read during the list
	others := s.Others
	reset := func() {
		maps.DeleteFunc(s.Routes, func(k dataplane.RouteKey, _ dataplane.Route) bool { return family(k.Dst.Addr()) == f })
		s.Others, unnamed = others, nil
	}
	inside := func(dst netip.Prefix) bool {
		if scope.Inside(dst) {
			return true
		}
		s.Others++
		return false
	}
	err := g.k.routes(f, unix.RTN_UNSPEC, reset, inside, func(dst netip.Prefix, b []byte) {
		e, ok := parseRoute(dst, b)
		if !ok {
			return
		}
		g.foreignHops = g.foreignHops || e.route.NextHop != 0 && !scope.InRange(e.route.NextHop)
		var named bool
		e.key.Link, named = g.names[e.index]
		if named || e.index == 0 {
			put(e)
		} else {
			unnamed = append(unnamed, e)
		}
	})
	if err != nil {
		return err
	}
	for _, e := range unnamed {
		if e.key.Link, err = g.nameOf(e.index); err != nil {
			return err
		}
		if e.key.Link != "" {
			put(e)
		}
	}
	return nil
}

// resolveNextHop fills in link and gateway from the route's nexthop object. They stay empty if the
// object is not a gateway on a link, as for all multipath routes.
func (e *routeEntry) resolveNextHop(g *reader) {
	hop, ok := g.s.NextHops[e.route.NextHop]
	if !ok {
		hop = g.otherHops[e.route.NextHop]
	}
	if hop.Link != "" {
		e.key.Link, e.route.Via, e.route.OnLink = hop.Link, hop.Via, hop.OnLink
	}
}

// replaceShadowed replaces a route if several have the same destination and metric. The kernel then
// replaces only the first, and refuses if the wanted one follows it; after that one is deleted, the
// replacement succeeds.
func (k *Kernel) replaceShadowed(op dataplane.Op, index int, refused error) error {
	if op.Verb != dataplane.Put || !errors.Is(refused, unix.EEXIST) {
		return refused
	}
	var r requests
	del := op
	del.Verb = dataplane.Del
	r.route(del, index)
	r.route(op, index)
	return k.conn.Batch(&r.Requests)[1]
}

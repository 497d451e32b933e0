package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Routes are by a link and a gateway, by a nexthop object that says both, or, if there are
// many, of different scopes; and a route must not take the place of what is not ours.

// slot is what only one route can have: a replace takes the place of whatever
// has the same destination and metric, on any link.
type slot struct {
	dst    netip.Prefix
	metric uint32
}

// takenSlots looks for what a wanted route must not take the place of, and says why.
func (d *differ) takenSlots() map[slot]string {
	taken := map[slot]string{}
	for k, r := range d.have.Routes {
		switch {
		case k.Link == "" && !r.Blackhole:
			taken[slot{k.Dst, k.Metric}] = "a foreign multipath route exists there"
		case r.Proto == ProtoKernel && !d.scope.OwnsRoute(k, r):
			taken[slot{k.Dst, k.Metric}] = "an interface address of dev " + k.Link + " covers the same destination"
		}
	}
	return taken
}

// diffRoutes comes after diffNextHops.
func diffRoutes(d *differ, kind *Descriptor[RouteKey, Route]) (list, list) {
	put := kind.missing(d, d.want.Routes, d.route)
	put = slices.DeleteFunc(put, func(o object[RouteKey, Route]) bool {
		reason, ok := d.taken[slot{o.key.Dst, o.key.Metric}]
		if ok {
			d.Conflicts = append(d.Conflicts, Conflict{kind.Put(o.key, o.value), reason})
		}
		return ok
	})
	del := kind.surplus(d, d.want.Routes)
	del = slices.DeleteFunc(del, func(o object[RouteKey, Route]) bool {
		// The wanted route through the same nexthop has taken its place, and would
		// be hit: the deletion of such a route cannot name the link.
		_, replaced := d.hops[o.value.NextHop]
		return replaced && o.key.Metric == 0
	})
	return kind.list(Put, put), kind.list(Del, del)
}

// route returns a wanted route in the form that it is to have.
func (d *differ) route(k RouteKey, r Route) Route {
	if through, hop, ok := r.nextHop(k); ok && d.hops[through.NextHop] == hop {
		return through
	}
	if d.scope.Spread {
		return r.spread(k)
	}
	return r
}

// DelRoutesTo returns the deletions after which no route of ours leads to an address: of those
// that the kernel would take for it, one after the other, all up to the first that is not
// ours.
func DelRoutesTo(have State, scope Scope, addr netip.Addr) (ops []Op) {
	var leads []RouteKey
	for k := range have.Routes {
		if k.Dst.Contains(addr) {
			leads = append(leads, k)
		}
	}
	slices.SortFunc(leads, func(a, b RouteKey) int {
		return cmp.Or(b.Dst.Bits()-a.Dst.Bits(), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Link, b.Link))
	})
	for _, k := range leads {
		r := have.Routes[k]
		if !KindRoute.owns(scope, k, r) {
			break
		}
		ops = append(ops, KindRoute.Del(k, r))
	}
	return ops
}

// routeCommand is a route as ip(8) takes it: by way of a nexthop object, or
// with a gateway and a link of its own.
func routeCommand(k RouteKey, r Route) string {
	if r.NextHop == 0 {
		return routeText(k, r)
	}
	s := fmt.Sprintf("%s nhid %d", k.Dst, r.NextHop)
	if r.Proto != ProtoBoot {
		s += " proto " + strconv.Itoa(r.Proto)
	}
	return s
}

func routeText(k RouteKey, r Route) string {
	s := k.Dst.String()
	if r.NextHop != 0 {
		s += fmt.Sprintf(" nhid %d", r.NextHop)
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	switch {
	case r.Blackhole:
		s = "blackhole " + s
	case k.Link == "":
		s += " multipath"
	default:
		s += " dev " + k.Link
	}
	switch r.Proto {
	case ProtoBoot:
	case ProtoKernel:
		s += " proto kernel"
	default:
		s += " proto " + strconv.Itoa(r.Proto)
	}
	if k.Metric != 0 {
		s += " metric " + strconv.FormatUint(uint64(k.Metric), 10)
	}
	if k.Dst.Addr().Is4() && k.Link != "" && !r.Via.IsValid() && !r.LinkScope && r.Proto != ProtoKernel {
		s += " scope global" // ip(8) would make it of scope link
	}
	if r.Scope != 0 {
		s += " scope " + strconv.Itoa(int(r.Scope))
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

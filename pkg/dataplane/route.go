package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"sort"
	"strconv"

	"flanneld/pkg/shell"
)

// A route specifies a link and a gateway, or refers to a nexthop object that does. Large numbers of
// routes are spread over different scopes. A route must not replace one that is not ours.

// slot identifies what a replace operation replaces: the kernel has one route per destination and
// metric, on whatever link.
type slot struct {
	dst    netip.Prefix
	metric uint32
}

// takenSlots returns the slots of foreign routes that a wanted route must not replace, with the
// reason.
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

// diffRoutes requires that diffNextHops was called before.
func diffRoutes(d *differ, kind *Descriptor[RouteKey, Route]) (list, list) {
	put := kind.missing(d, d.want.Routes, d.route)
	put.remove(func(o object[RouteKey, Route]) bool {
		reason, ok := d.taken[slot{o.key.Dst, o.key.Metric}]
		if ok {
			d.Conflicts = append(d.Conflicts, Conflict{kind.Put(o.key, o.value), reason})
		}
		return ok
	})
	del := kind.surplus(d, d.want.Routes)
	del.remove(func(o object[RouteKey, Route]) bool {
		// The wanted route with the same nexthop has replaced this one. The deletion would remove
		// the new route, because it cannot specify the link.
		_, replaced := d.hops[o.value.NextHop]
		return replaced && o.key.Metric == 0
	})
	return put, del
}

// route returns a wanted route in the form in which it is created.
func (d *differ) route(k RouteKey, r Route) Route {
	if through, hop, ok := r.nextHop(k); ok && d.hops[through.NextHop] == hop {
		return through
	}
	if d.scope.Spread {
		return r.spread(k)
	}
	return r
}

// DelRoutesTo returns the deletions of our routes that the kernel would use for an address: in
// order of preference, up to the first route that is not ours.
func DelRoutesTo(have State, scope Scope, addr netip.Addr) (ops []Op) {
	var leads []RouteKey
	for k := range have.Routes {
		if k.Dst.Contains(addr) {
			leads = append(leads, k)
		}
	}
	sort.Slice(leads, func(i, j int) bool {
		a, b := leads[i], leads[j]
		return cmp.Or(b.Dst.Bits()-a.Dst.Bits(), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Link, b.Link)) < 0
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

// routeCommand returns a route as arguments for ip(8), with a nexthop object or with its own
// gateway and link.
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
		s += " dev " + shell.Word(k.Link)
	}
	switch r.Proto {
	case ProtoBoot:
	case ProtoKernel:
		s += " proto kernel"
	default:
		s += " proto " + strconv.Itoa(r.Proto)
	}
	if k.Metric != 0 {
		s += fmt.Sprintf(" metric %d", k.Metric)
	}
	if k.Dst.Addr().Is4() && k.Link != "" && !r.Via.IsValid() && !r.LinkScope && r.Proto != ProtoKernel {
		s += " scope global" // the default of ip(8) would be scope link
	}
	if r.Scope != 0 {
		s += " scope " + strconv.Itoa(int(r.Scope))
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

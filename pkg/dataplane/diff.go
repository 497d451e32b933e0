package dataplane

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Conflict is something wanted that is left undone because it would destroy
// what is not ours.
type Conflict struct {
	Op     Op
	Reason string
}

// Delta is what Diff finds: operations in an order that leaves no gap, and what
// must be left undone.
type Delta struct {
	Conflicts []Conflict

	want, have State
	first      []Op // on links and sysctls
	put, del   objects
	hops       map[uint32]NextHop // that the wanted routes need
	spread     bool               // routes without are of different scopes
}

// objects are keys, which take a fraction of the room of operations.
type objects struct {
	addrs  []Addr
	fdb    []FDB
	neighs []NeighKey
	tunnel []TunnelKey
	hops   []uint32
	routes []RouteKey
}

func (o objects) len() int {
	return len(o.addrs) + len(o.fdb) + len(o.neighs) + len(o.tunnel) + len(o.hops) + len(o.routes)
}

// Len is the number of operations.
func (d *Delta) Len() int { return len(d.first) + d.put.len() + d.del.len() }

// Ops gives the operations in order: links, sysctls and addresses, FDB entries,
// neighbours, routes; then deletions in reverse order, so that what replaces
// them stands before they go.
func (d *Delta) Ops() iter.Seq[Op] {
	return func(yield func(Op) bool) {
		_ = each(d.first, func(o Op) Op { return o }, yield) &&
			each(d.put.addrs, func(a Addr) Op { return Op{Kind: KindAddr, Addr: a} }, yield) &&
			each(d.put.fdb, func(f FDB) Op { return Op{Kind: KindFDB, FDB: f} }, yield) &&
			each(d.put.neighs, func(k NeighKey) Op { return Op{Kind: KindNeigh, NeighKey: k, MAC: d.want.Neighs[k]} }, yield) &&
			each(d.put.tunnel, func(k TunnelKey) Op { return Op{Kind: KindTunnel, TunnelKey: k, Peer: d.want.Tunnel[k]} }, yield) &&
			each(d.put.hops, func(id uint32) Op { return Op{Kind: KindNextHop, ID: id, NextHop: d.hops[id]} }, yield) &&
			each(d.put.routes, func(k RouteKey) Op { return Op{Kind: KindRoute, RouteKey: k, Route: d.route(k)} }, yield) &&
			each(d.del.routes, func(k RouteKey) Op { return Op{Verb: Del, Kind: KindRoute, RouteKey: k, Route: d.have.Routes[k]} }, yield) &&
			each(d.del.hops, func(id uint32) Op { return Op{Verb: Del, Kind: KindNextHop, ID: id, NextHop: d.have.NextHops[id]} }, yield) &&
			each(d.del.tunnel, func(k TunnelKey) Op { return Op{Verb: Del, Kind: KindTunnel, TunnelKey: k, Peer: d.have.Tunnel[k]} }, yield) &&
			each(d.del.neighs, func(k NeighKey) Op { return Op{Verb: Del, Kind: KindNeigh, NeighKey: k, MAC: d.have.Neighs[k]} }, yield) &&
			each(d.del.fdb, func(f FDB) Op { return Op{Verb: Del, Kind: KindFDB, FDB: f} }, yield) &&
			each(d.del.addrs, func(a Addr) Op { return Op{Verb: Del, Kind: KindAddr, Addr: a} }, yield)
	}
}

// each yields an operation for each key, and tells whether to go on.
func each[K any](keys []K, op func(K) Op, yield func(Op) bool) bool {
	for _, k := range keys {
		if !yield(op(k)) {
			return false
		}
	}
	return true
}

// route gives a wanted route in the form that it is to have.
func (d *Delta) route(k RouteKey) Route {
	r := d.want.Routes[k]
	if through, hop, ok := r.nextHop(k); ok && d.hops[through.NextHop] == hop {
		return through
	}
	if d.spread {
		return r.spread(k)
	}
	return r
}

// Diff gives the operations that turn have into want. Nothing outside scope is
// changed, and nothing is deleted unless prune is set. want and have must not
// change as long as the Delta is in use.
func Diff(want, have State, scope Scope, prune bool) *Delta {
	d := differ{
		Delta: &Delta{want: want, have: have, hops: map[uint32]NextHop{}, spread: scope.Spread},
		scope: scope, blocked: map[string]bool{}, fresh: map[string]bool{}, readdress: map[string]bool{},
	}
	d.links()
	d.sysctls()
	d.putAll()
	d.takenSlots()
	d.nextHops()
	d.routes()
	if prune {
		d.delAll()
	}
	return d.Delta
}

type differ struct {
	*Delta
	scope     Scope
	blocked   map[string]bool // link names that somebody else's device bears
	fresh     map[string]bool // links made anew: what have says of them is gone
	readdress map[string]bool // links that get another MAC: the kernel empties their neighbour table
	taken     map[slot]string // where a route must not be put, and why
}

// slot is what only one route can have: a replace takes the place of whatever
// has the same destination and metric, on any link.
type slot struct {
	dst    netip.Prefix
	metric uint32
}

func (d *differ) links() {
	for _, name := range slices.Sorted(maps.Keys(d.want.Links)) {
		want := d.want.Links[name]
		have, exists := d.have.Links[name]
		switch {
		case !exists:
			d.fresh[name] = true
			d.first = append(d.first, Op{Kind: KindLink, Name: name, Link: want})
		case have.Kind != want.Kind:
			d.blocked[name] = true
			d.Conflicts = append(d.Conflicts, Conflict{
				Op:     Op{Kind: KindLink, Name: name, Link: want},
				Reason: fmt.Sprintf("a device of that name and of type %s exists; it is not ours to delete", have.Kind),
			})
		case !have.reusable(want):
			d.fresh[name] = true
			d.first = append(d.first, Op{Verb: Del, Kind: KindLink, Name: name, Link: have}, Op{Kind: KindLink, Name: name, Link: want})
		case !have.satisfies(want):
			d.readdress[name] = want.MAC != MAC{} && want.MAC != have.MAC
			d.first = append(d.first, Op{Verb: Set, Kind: KindLink, Name: name, Link: want, Was: have})
		}
	}
}

// reusable tells whether the kernel can turn l into want in place.
func (l Link) reusable(want Link) bool {
	return l.VNI == want.VNI && l.Parent == want.Parent && l.Local == want.Local && l.Port == want.Port && l.GBP == want.GBP
}

func (l Link) satisfies(want Link) bool {
	if want.MAC == (MAC{}) {
		want.MAC = l.MAC
	}
	return l == want
}

// held tells whether link carries what have says of it.
func (d *differ) held(link string) bool { return !d.fresh[link] }

// linkOf gives the wanted link that a sysctl belongs to, "" when it belongs to
// none.
func (d *differ) linkOf(sysctl string) string {
	for name := range d.want.Links {
		if strings.Contains(sysctl, "/"+name+"/") {
			return name
		}
	}
	return ""
}

func (d *differ) sysctls() {
	for _, path := range slices.Sorted(maps.Keys(d.want.Sysctls)) {
		v, link := d.want.Sysctls[path], d.linkOf(path)
		if have, ok := d.have.Sysctls[path]; !d.blocked[link] && !(ok && have == v && d.held(link)) {
			d.first = append(d.first, Op{Kind: KindSysctl, Name: path, Value: v})
		}
	}
}

// differs gives the keys, sorted, of what is wanted on links that are ours to
// fill and does not stand there.
func differs[K, V comparable](d *differ, want, have map[K]V, link func(K) string, compare func(a, b K) int) (keys []K) {
	for k, v := range want {
		if h, ok := have[k]; !d.blocked[link(k)] && !(ok && h == v && d.held(link(k))) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compare)
	return keys
}

func (d *differ) putAll() {
	d.put.addrs = differs(d, d.want.Addrs, d.have.Addrs, linkOfAddr, compareAddr)
	d.put.fdb = differs(d, d.want.FDB, d.have.FDB, linkOfFDB, compareFDB)
	neighs := d.have.Neighs
	if len(d.readdress) > 0 {
		neighs = maps.Clone(neighs)
		maps.DeleteFunc(neighs, func(k NeighKey, _ MAC) bool { return d.readdress[k.Link] })
	}
	d.put.neighs = differs(d, d.want.Neighs, neighs, linkOfNeigh, compareNeigh)
	d.put.tunnel = differs(d, d.want.Tunnel, d.have.Tunnel, linkOfTunnel, compareTunnel)
}

// nextHops finds out which nexthop objects the wanted routes need. Where
// somebody else's has the id, the route does without.
func (d *differ) nextHops() {
	if !d.scope.NextHops {
		return
	}
	for k, r := range d.want.Routes {
		through, hop, ok := r.nextHop(k)
		if _, taken := d.taken[slot{k.Dst, k.Metric}]; !ok || taken || d.blocked[k.Link] {
			continue
		}
		have, exists := d.have.NextHops[through.NextHop]
		exists = exists && d.held(have.Link)
		if exists && !d.scope.OwnsNextHop(through.NextHop, have) {
			continue
		}
		d.hops[through.NextHop] = hop
		if !exists || have != hop {
			d.put.hops = append(d.put.hops, through.NextHop)
		}
	}
	slices.Sort(d.put.hops)
}

// takenSlots looks for what a wanted route must not take the place of.
func (d *differ) takenSlots() {
	d.taken = map[slot]string{}
	for k, r := range d.have.Routes {
		switch {
		case k.Link == "" && !r.Blackhole:
			d.taken[slot{k.Dst, k.Metric}] = "somebody has set a route by several links there"
		case r.Proto == ProtoKernel && !d.scope.OwnsRoute(k, r):
			d.taken[slot{k.Dst, k.Metric}] = "an interface address of dev " + k.Link + " covers the same destination"
		}
	}
}

func (d *differ) routes() {
	for k := range d.want.Routes {
		r := d.route(k)
		if have, ok := d.have.Routes[k]; d.blocked[k.Link] || ok && have == r && d.held(k.Link) {
			continue
		}
		d.put.routes = append(d.put.routes, k)
	}
	slices.SortFunc(d.put.routes, compareRoute)
	d.put.routes = slices.DeleteFunc(d.put.routes, func(k RouteKey) bool {
		reason, ok := d.taken[slot{k.Dst, k.Metric}]
		if ok {
			d.Conflicts = append(d.Conflicts, Conflict{Op{Kind: KindRoute, RouteKey: k, Route: d.route(k)}, reason})
		}
		return ok
	})
}

// surplus gives the keys, sorted, of what stands there, is ours, and is not
// wanted.
func surplus[K, V comparable](d *differ, want, have map[K]V, link func(K) string, compare func(a, b K) int, ours func(K, V) bool) (keys []K) {
	for k, v := range have {
		if _, ok := want[k]; !ok && d.held(link(k)) && !d.blocked[link(k)] && ours(k, v) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compare)
	return keys
}

func (d *differ) delAll() {
	s := d.scope
	d.del.routes = surplus(d, d.want.Routes, d.have.Routes, linkOfRoute, compareRoute, func(k RouteKey, r Route) bool {
		// The wanted route through the same nexthop has taken its place, and would
		// be hit: the deletion of such a route cannot name the link.
		_, replaced := d.hops[r.NextHop]
		// The kernel's own routes come and go with the addresses they follow from.
		return s.OwnsRoute(k, r) && r.Proto != ProtoKernel && !(replaced && k.Metric == 0)
	})
	d.del.hops = surplus(d, d.hops, d.have.NextHops, func(id uint32) string { return d.have.NextHops[id].Link }, cmp.Compare[uint32], s.OwnsNextHop)
	d.del.tunnel = surplus(d, d.want.Tunnel, d.have.Tunnel, linkOfTunnel, compareTunnel, func(k TunnelKey, _ netip.AddrPort) bool { return s.OwnsLink(k.Link) })
	d.del.neighs = surplus(d, d.want.Neighs, d.have.Neighs, linkOfNeigh, compareNeigh, func(k NeighKey, _ MAC) bool { return s.OwnsLink(k.Link) })
	d.del.fdb = surplus(d, d.want.FDB, d.have.FDB, linkOfFDB, compareFDB, func(f FDB, _ struct{}) bool { return s.OwnsLink(f.Link) })
	d.del.addrs = surplus(d, d.want.Addrs, d.have.Addrs, linkOfAddr, compareAddr, func(a Addr, _ struct{}) bool { return s.OwnsAddr(a) })
}

func linkOfAddr(a Addr) string        { return a.Link }
func linkOfFDB(f FDB) string          { return f.Link }
func linkOfNeigh(k NeighKey) string   { return k.Link }
func linkOfTunnel(k TunnelKey) string { return k.Link }
func linkOfRoute(k RouteKey) string   { return k.Link }

package dataplane

import (
	"cmp"
	"fmt"
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

// Diff gives the operations that turn have into want, in an order that leaves
// no gap: links, sysctls and addresses, FDB entries, neighbours, routes; then
// deletions in reverse order, so that what replaces them stands before they go.
// Nothing outside scope is changed, and nothing is deleted unless prune is set.
func Diff(want, have State, scope Scope, prune bool) ([]Op, []Conflict) {
	d := differ{want: want, have: have, scope: scope, blocked: map[string]bool{}, fresh: map[string]bool{}, readdress: map[string]bool{}}
	d.links()
	d.put()
	if prune {
		d.del()
	}
	return d.ops, d.conflicts
}

type differ struct {
	want, have State
	scope      Scope
	blocked    map[string]bool // link names that somebody else's device bears
	fresh      map[string]bool // links made anew: what have says of them is gone
	readdress  map[string]bool // links that get another MAC: the kernel empties their neighbour table
	ops        []Op
	conflicts  []Conflict
}

func (d *differ) add(o Op) { d.ops = append(d.ops, o) }

func (d *differ) links() {
	for _, name := range slices.Sorted(maps.Keys(d.want.Links)) {
		want := d.want.Links[name]
		have, exists := d.have.Links[name]
		switch {
		case !exists:
			d.fresh[name] = true
			d.add(Op{Kind: KindLink, Name: name, Link: want})
		case have.Kind != want.Kind:
			d.blocked[name] = true
			d.conflicts = append(d.conflicts, Conflict{
				Op:     Op{Kind: KindLink, Name: name, Link: want},
				Reason: fmt.Sprintf("a device of that name and of type %s exists; it is not ours to delete", have.Kind),
			})
		case !have.reusable(want):
			d.fresh[name] = true
			d.add(Op{Verb: Del, Kind: KindLink, Name: name, Link: have})
			d.add(Op{Kind: KindLink, Name: name, Link: want})
		case !have.satisfies(want):
			d.readdress[name] = want.MAC != MAC{} && want.MAC != have.MAC
			d.add(Op{Verb: Set, Kind: KindLink, Name: name, Link: want, Was: have})
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

func (d *differ) put() {
	for _, path := range slices.Sorted(maps.Keys(d.want.Sysctls)) {
		v, link := d.want.Sysctls[path], d.linkOf(path)
		if have, ok := d.have.Sysctls[path]; !d.blocked[link] && !(ok && have == v && d.held(link)) {
			d.add(Op{Kind: KindSysctl, Name: path, Value: v})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(d.want.Addrs), compareAddr) {
		if _, ok := d.have.Addrs[a]; !d.blocked[a.Link] && !(ok && d.held(a.Link)) {
			d.add(Op{Kind: KindAddr, Addr: a})
		}
	}
	for _, f := range slices.SortedFunc(maps.Keys(d.want.FDB), compareFDB) {
		if _, ok := d.have.FDB[f]; !d.blocked[f.Link] && !(ok && d.held(f.Link)) {
			d.add(Op{Kind: KindFDB, FDB: f})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.want.Neighs), compareNeigh) {
		m := d.want.Neighs[k]
		if have, ok := d.have.Neighs[k]; !d.blocked[k.Link] && !(ok && have == m && d.held(k.Link) && !d.readdress[k.Link]) {
			d.add(Op{Kind: KindNeigh, NeighKey: k, MAC: m})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.want.Tunnel), compareTunnel) {
		peer := d.want.Tunnel[k]
		if have, ok := d.have.Tunnel[k]; !d.blocked[k.Link] && !(ok && have == peer && d.held(k.Link)) {
			d.add(Op{Kind: KindTunnel, TunnelKey: k, Peer: peer})
		}
	}
	d.putRoutes()
}

func (d *differ) putRoutes() {
	// A replace takes the place of whatever has the same destination and
	// metric, on any link; so look for what must not be replaced.
	type slot struct {
		dst    netip.Prefix
		metric uint32
	}
	taken := map[slot]string{}
	for k, r := range d.have.Routes {
		switch {
		case k.Link == "" && !r.Blackhole:
			taken[slot{k.Dst, k.Metric}] = "somebody has set a route by several links there"
		case r.Proto == ProtoKernel && !d.scope.OwnsRoute(k, r):
			taken[slot{k.Dst, k.Metric}] = "an interface address of dev " + k.Link + " covers the same destination"
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.want.Routes), compareRoute) {
		r := d.want.Routes[k]
		if have, ok := d.have.Routes[k]; d.blocked[k.Link] || ok && have == r && d.held(k.Link) {
			continue
		}
		op := Op{Kind: KindRoute, RouteKey: k, Route: r}
		if reason, ok := taken[slot{k.Dst, k.Metric}]; ok {
			d.conflicts = append(d.conflicts, Conflict{op, reason})
			continue
		}
		d.add(op)
	}
}

func (d *differ) del() {
	first := len(d.ops)
	for k, r := range d.have.Routes {
		// The kernel's own routes come and go with the addresses they follow from.
		if _, ok := d.want.Routes[k]; !ok && d.held(k.Link) && d.scope.OwnsRoute(k, r) && r.Proto != ProtoKernel && !d.blocked[k.Link] {
			d.add(Op{Verb: Del, Kind: KindRoute, RouteKey: k, Route: r})
		}
	}
	for k, peer := range d.have.Tunnel {
		if _, ok := d.want.Tunnel[k]; !ok && d.held(k.Link) && d.scope.OwnsLink(k.Link) && !d.blocked[k.Link] {
			d.add(Op{Verb: Del, Kind: KindTunnel, TunnelKey: k, Peer: peer})
		}
	}
	for k, m := range d.have.Neighs {
		if _, ok := d.want.Neighs[k]; !ok && d.held(k.Link) && d.scope.OwnsLink(k.Link) && !d.blocked[k.Link] {
			d.add(Op{Verb: Del, Kind: KindNeigh, NeighKey: k, MAC: m})
		}
	}
	for f := range d.have.FDB {
		if _, ok := d.want.FDB[f]; !ok && d.held(f.Link) && d.scope.OwnsLink(f.Link) && !d.blocked[f.Link] {
			d.add(Op{Verb: Del, Kind: KindFDB, FDB: f})
		}
	}
	for a := range d.have.Addrs {
		if _, ok := d.want.Addrs[a]; !ok && d.held(a.Link) && d.scope.OwnsAddr(a) && !d.blocked[a.Link] {
			d.add(Op{Verb: Del, Kind: KindAddr, Addr: a})
		}
	}
	slices.SortFunc(d.ops[first:], func(a, b Op) int {
		return cmp.Or(cmp.Compare(b.Kind, a.Kind), compareRoute(a.RouteKey, b.RouteKey), compareTunnel(a.TunnelKey, b.TunnelKey), compareNeigh(a.NeighKey, b.NeighKey), compareFDB(a.FDB, b.FDB), compareAddr(a.Addr, b.Addr))
	})
}

package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// State is a set of kernel objects, with one map per kind.
type State struct {
	Links   map[string]Link
	Sysctls map[string]string // path below /proc/sys, with slashes, to value
	Addrs   map[Addr]struct{}
	FDB     map[FDB]struct{}
	Neighs  map[NeighKey]MAC
	Tunnel  map[TunnelKey]netip.AddrPort
	// NextHops are keyed by ID. Backends do not put any here: Diff adds the ones that the wanted
	// routes need. It is nil in a state read from a kernel without nexthop objects.
	NextHops map[uint32]NextHop
	Routes   map[RouteKey]Route

	// Others is the number of other routes in the main table when the state was read.
	Others int
}

// NewState returns an empty State.
func NewState() State {
	return State{
		Links:    map[string]Link{},
		Sysctls:  map[string]string{},
		Addrs:    map[Addr]struct{}{},
		FDB:      map[FDB]struct{}{},
		Neighs:   map[NeighKey]MAC{},
		Tunnel:   map[TunnelKey]netip.AddrPort{},
		NextHops: map[uint32]NextHop{},
		Routes:   map[RouteKey]Route{},
	}
}

// kinds has all kinds in order of creation, which is the order of dependency. Routes come last,
// because the kernel would otherwise send packets to neighbours that do not exist yet. Deletions
// use the reverse order.
var kinds = []Kind{KindLink, KindSysctl, KindAddr, KindFDB, KindNeigh, KindTunnel, KindNextHop, KindRoute}

// Kinds returns all kinds in order of creation.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindLink is the kind of our devices, keyed by name.
var KindLink = &Descriptor[string, Link]{
	name:      "link",
	in:        func(s State) map[string]Link { return s.Links },
	compare:   strings.Compare,
	linkOf:    func(name string, _ Link) string { return name },
	isBasic:   func(string, Link, netip.Prefix) bool { return true },
	textOf:    func(name string, l Link) string { return linkText(name, l) + " " + upText(l.Up) },
	commandOf: linkCommand,
	diffFunc:  diffLinks,
}

// KindSysctl is the kind of sysctls, keyed by path.
var KindSysctl = &Descriptor[string, string]{
	name:      "sysctl",
	in:        func(s State) map[string]string { return s.Sysctls },
	compare:   strings.Compare,
	linkOf:    linkOfSysctl,
	owns:      func(Scope, string, string) bool { return false }, // they exist with their link
	textOf:    func(path, value string) string { return path + " = " + value },
	commandOf: func(_, path, value string) string { return "sysctl -w " + path + "=" + value },
}

// KindAddr is the kind of addresses on links.
var KindAddr = &Descriptor[Addr, struct{}]{
	name: "address", label: "addr",
	in: func(s State) map[Addr]struct{} { return s.Addrs },
	compare: func(a, b Addr) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), a.Prefix.Compare(b.Prefix))
	},
	linkOf:  func(a Addr, _ struct{}) string { return a.Link },
	owns:    func(s Scope, a Addr, _ struct{}) bool { return s.OwnsAddr(a) },
	isBasic: func(Addr, struct{}, netip.Prefix) bool { return true },
	textOf:  func(a Addr, _ struct{}) string { return a.String() },
	tool:    "ip addr",
}

// KindFDB is the kind of forwarding entries.
var KindFDB = &Descriptor[FDB, struct{}]{
	name: "fdb",
	in:   func(s State) map[FDB]struct{} { return s.FDB },
	compare: func(a, b FDB) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), slices.Compare(a.MAC[:], b.MAC[:]), a.Dst.Compare(b.Dst))
	},
	linkOf: func(f FDB, _ struct{}) string { return f.Link },
	textOf: fdbText,
	tool:   "bridge fdb",
}

// KindNeigh is the kind of neighbour entries.
var KindNeigh = &Descriptor[NeighKey, MAC]{
	name: "neighbour", label: "neigh",
	in: func(s State) map[NeighKey]MAC { return s.Neighs },
	compare: func(a, b NeighKey) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), a.IP.Compare(b.IP))
	},
	linkOf: func(k NeighKey, _ MAC) string { return k.Link },
	perMAC: true,
	textOf: neighText,
	commandOf: func(verb string, k NeighKey, m MAC) string {
		if verb == "del" {
			return "ip neigh del " + k.String()
		}
		return "ip neigh " + verb + " " + neighText(k, m)
	},
}

// KindTunnel is the kind of entries in the forwarding tables of TUN links. No command changes them,
// because the tables are internal to the daemon.
var KindTunnel = &Descriptor[TunnelKey, netip.AddrPort]{
	name: "tunnel entry", label: "tunnel",
	in: func(s State) map[TunnelKey]netip.AddrPort { return s.Tunnel },
	compare: func(a, b TunnelKey) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), a.Subnet.Compare(b.Subnet))
	},
	linkOf:  func(k TunnelKey, _ netip.AddrPort) string { return k.Link },
	isBasic: func(k TunnelKey, _ netip.AddrPort, own netip.Prefix) bool { return k.Subnet == own },
	textOf:  tunnelText,
	tool:    "tunnel",
}

// KindNextHop is the kind of nexthop objects, keyed by ID.
var KindNextHop = &Descriptor[uint32, NextHop]{
	name:    "nexthop",
	in:      func(s State) map[uint32]NextHop { return s.NextHops },
	compare: cmp.Compare[uint32],
	linkOf:  func(_ uint32, h NextHop) string { return h.Link },
	owns:    Scope.OwnsNextHop,
	titleOf: func(id uint32, h NextHop) string { return fmt.Sprintf("nexthop %d dev %s", id, h.Link) },
	textOf:  nextHopText,
	commandOf: func(verb string, id uint32, h NextHop) string {
		if verb == "del" {
			return fmt.Sprintf("ip nexthop del id %d", id)
		}
		return "ip nexthop " + verb + " " + nextHopText(id, h)
	},
	diffFunc: diffNextHops,
}

// KindRoute is the kind of routes of the main table.
var KindRoute = &Descriptor[RouteKey, Route]{
	name: "route",
	in:   func(s State) map[RouteKey]Route { return s.Routes },
	compare: func(a, b RouteKey) int {
		return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Link, b.Link), cmp.Compare(a.Metric, b.Metric))
	},
	linkOf: func(k RouteKey, _ Route) string { return k.Link },
	// The kernel adds and removes its own routes together with their addresses.
	owns: func(s Scope, k RouteKey, r Route) bool { return s.OwnsRoute(k, r) && r.Proto != ProtoKernel },
	// Routes to the network or to the own subnet, but not to a peer's.
	isBasic: func(k RouteKey, _ Route, own netip.Prefix) bool {
		return own.IsValid() && k.Dst.Bits() <= own.Bits() && k.Dst.Contains(own.Addr())
	},
	titleOf: func(k RouteKey, r Route) string {
		if r.Blackhole {
			return fmt.Sprintf("blackhole route %s", k.Dst)
		}
		return fmt.Sprintf("route %s dev %s", k.Dst, k.Link)
	},
	textOf:    routeText,
	commandOf: func(verb string, k RouteKey, r Route) string { return "ip route " + verb + " " + routeCommand(k, r) },
	diffFunc:  diffRoutes,
}

// linkOfSysctl returns the link of a sysctl such as net/ipv6/conf/flannel.1/accept_ra, or "" if it
// has none.
func linkOfSysctl(path, _ string) string {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return ""
	}
	return parts[3]
}

func fdbText(f FDB, _ struct{}) string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Link, f.Dst)
}

func neighText(k NeighKey, m MAC) string {
	return fmt.Sprintf("%s lladdr %s dev %s nud permanent", k.IP, m, k.Link)
}

func tunnelText(k TunnelKey, peer netip.AddrPort) string {
	if !peer.IsValid() {
		return k.String() + " local"
	}
	return fmt.Sprintf("%s to %s", k, peer)
}

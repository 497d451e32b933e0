package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Text prints the state in the notation of ip(8), bridge(8) and sysctl(8), one
// object a line, in order of creation.
func (s State) Text() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.Links)) {
		l := s.Links[name]
		fmt.Fprintf(&b, "link %s %s\n", linkText(name, l), upText(l.Up))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Sysctls)) {
		fmt.Fprintf(&b, "sysctl %s = %s\n", k, s.Sysctls[k])
	}
	for _, a := range slices.SortedFunc(maps.Keys(s.Addrs), compareAddr) {
		fmt.Fprintf(&b, "addr %s\n", a.text())
	}
	for _, f := range slices.SortedFunc(maps.Keys(s.FDB), compareFDB) {
		fmt.Fprintf(&b, "fdb %s\n", f.text())
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Neighs), compareNeigh) {
		fmt.Fprintf(&b, "neigh %s\n", neighText(k, s.Neighs[k]))
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Tunnel), compareTunnel) {
		fmt.Fprintf(&b, "tunnel %s\n", tunnelText(k, s.Tunnel[k]))
	}
	for _, id := range slices.Sorted(maps.Keys(s.NextHops)) {
		fmt.Fprintf(&b, "nexthop %s\n", nextHopText(id, s.NextHops[id]))
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Routes), compareRoute) {
		fmt.Fprintf(&b, "route %s\n", routeText(k, s.Routes[k]))
	}
	return b.String()
}

func linkText(name string, l Link) string {
	s := name
	if l.MTU > 0 {
		s += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.MAC != (MAC{}) {
		s += " address " + l.MAC.String()
	}
	switch l.Kind {
	case KindVXLAN:
	case KindTUN:
		s += " type tun"
		if l.Local.IsValid() { // the kernel does not know what is behind it
			s += fmt.Sprintf(" local %s port %d", l.Local, l.Port)
		}
		if l.Open {
			s += " open"
		}
		if l.Plain {
			s += " plain"
		}
		return s
	default:
		return s + " type " + l.Kind
	}
	s += fmt.Sprintf(" type vxlan id %d local %s dev %s dstport %d %s", l.VNI, l.Local, l.Parent, l.Port, learningText(l.Learning))
	if l.GBP {
		s += " gbp"
	}
	return s
}

func upText(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func learningText(on bool) string {
	if on {
		return "learning"
	}
	return "nolearning"
}

func (a Addr) text() string { return a.Prefix.String() + " dev " + a.Link }

func (f FDB) text() string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Link, f.Dst)
}

func neighText(k NeighKey, m MAC) string {
	return fmt.Sprintf("%s lladdr %s dev %s nud permanent", k.IP, m, k.Link)
}

func tunnelText(k TunnelKey, peer netip.AddrPort) string {
	if !peer.IsValid() {
		return k.Subnet.String() + " dev " + k.Link + " local"
	}
	return fmt.Sprintf("%s dev %s to %s", k.Subnet, k.Link, peer)
}

func nextHopText(id uint32, h NextHop) string {
	s := fmt.Sprintf("id %d via %s dev %s", id, h.Via, h.Link)
	if h.OnLink {
		s += " onlink"
	}
	return s + " proto " + strconv.Itoa(h.Proto)
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

func compareAddr(a, b Addr) int {
	return cmp.Or(cmp.Compare(a.Link, b.Link), comparePrefix(a.Prefix, b.Prefix))
}

func compareFDB(a, b FDB) int {
	return cmp.Or(cmp.Compare(a.Link, b.Link), slices.Compare(a.MAC[:], b.MAC[:]), a.Dst.Compare(b.Dst))
}

func compareNeigh(a, b NeighKey) int {
	return cmp.Or(cmp.Compare(a.Link, b.Link), a.IP.Compare(b.IP))
}

func compareTunnel(a, b TunnelKey) int {
	return cmp.Or(cmp.Compare(a.Link, b.Link), comparePrefix(a.Subnet, b.Subnet))
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareRoute(a, b RouteKey) int {
	return cmp.Or(comparePrefix(a.Dst, b.Dst), cmp.Compare(a.Link, b.Link), cmp.Compare(a.Metric, b.Metric))
}

package dataplane

import (
	"fmt"
	"net/netip"
	"strings"
)

// Verb is what an operation does to its object.
type Verb int

// Put makes the object be as given, whether or not something stands under its
// key; Del removes it. Set changes a link in place.
const (
	Put Verb = iota
	Set
	Del
)

// Kind is the kind of an operation's object; its order is the order of
// creation: a route comes last, or the kernel would ask for the neighbour that is
// still missing.
type Kind int

// Kinds in order of dependency.
const (
	KindLink Kind = iota
	KindSysctl
	KindAddr
	KindFDB
	KindNeigh
	KindTunnel
	KindNextHop
	KindRoute
)

// Op is one change of one object. It is comparable; only the fields of its
// Kind are set.
type Op struct {
	Verb Verb
	Kind Kind

	Name string // link name, or sysctl path
	Link Link   // KindLink: as wanted
	Was  Link   // KindLink with Set: as it is

	Value    string // KindSysctl
	Addr     Addr
	FDB      FDB
	NeighKey NeighKey
	MAC      MAC

	TunnelKey TunnelKey
	Peer      netip.AddrPort // KindTunnel

	ID      uint32 // KindNextHop
	NextHop NextHop

	RouteKey RouteKey
	Route    Route
}

// Object names what the operation is about, the same for every attempt: the
// key for back-off.
func (o Op) Object() string {
	switch o.Kind {
	case KindLink:
		return "link " + o.Name
	case KindSysctl:
		return "sysctl " + o.Name
	case KindAddr:
		return fmt.Sprintf("address %s dev %s", o.Addr.Prefix, o.Addr.Link)
	case KindFDB:
		return fmt.Sprintf("fdb %s dst %s dev %s", o.FDB.MAC, o.FDB.Dst, o.FDB.Link)
	case KindNeigh:
		return fmt.Sprintf("neighbour %s dev %s", o.NeighKey.IP, o.NeighKey.Link)
	case KindTunnel:
		return fmt.Sprintf("tunnel entry %s dev %s", o.TunnelKey.Subnet, o.TunnelKey.Link)
	case KindNextHop:
		return fmt.Sprintf("nexthop %d dev %s", o.ID, o.NextHop.Link)
	default:
		if o.Route.Blackhole {
			return fmt.Sprintf("blackhole route %s", o.RouteKey.Dst)
		}
		return fmt.Sprintf("route %s dev %s", o.RouteKey.Dst, o.RouteKey.Link)
	}
}

// Device names the link that the operation is on; empty for a sysctl or a
// blackhole.
func (o Op) Device() string {
	switch o.Kind {
	case KindLink:
		return o.Name
	case KindSysctl:
		return ""
	case KindAddr:
		return o.Addr.Link
	case KindFDB:
		return o.FDB.Link
	case KindNeigh:
		return o.NeighKey.Link
	case KindTunnel:
		return o.TunnelKey.Link
	case KindNextHop:
		return o.NextHop.Link
	default:
		return o.RouteKey.Link
	}
}

// String is the operation as a command that a person can paste.
func (o Op) String() string {
	verb := "replace"
	if o.Verb == Del {
		verb = "del"
	}
	switch o.Kind {
	case KindLink:
		return o.linkCommand()
	case KindSysctl:
		return fmt.Sprintf("sysctl -w %s=%s", o.Name, o.Value)
	case KindAddr:
		return fmt.Sprintf("ip addr %s %s", verb, o.Addr.text())
	case KindFDB:
		return fmt.Sprintf("bridge fdb %s %s", verb, o.FDB.text())
	case KindNeigh:
		if o.Verb == Del {
			return fmt.Sprintf("ip neigh del %s dev %s", o.NeighKey.IP, o.NeighKey.Link)
		}
		return fmt.Sprintf("ip neigh replace %s", neighText(o.NeighKey, o.MAC))
	case KindTunnel:
		// There is no command for it: the table is the daemon's own.
		return fmt.Sprintf("tunnel %s %s", verb, tunnelText(o.TunnelKey, o.Peer))
	case KindNextHop:
		if o.Verb == Del {
			return fmt.Sprintf("ip nexthop del id %d", o.ID)
		}
		return fmt.Sprintf("ip nexthop replace %s", nextHopText(o.ID, o.NextHop))
	default:
		return fmt.Sprintf("ip route %s %s", verb, routeCommand(o.RouteKey, o.Route))
	}
}

func (o Op) linkCommand() string {
	set := "ip link set " + o.Name
	switch o.Verb {
	case Del:
		return "ip link del " + o.Name
	case Set:
		return o.changeCommand(set)
	}
	s := "ip link add " + linkText(o.Name, o.Link)
	if o.Link.Up {
		s += " && " + set + " up"
	}
	return s
}

func (o Op) changeCommand(set string) string {
	var parts []string
	general := ""
	if o.Link.MAC != (MAC{}) && o.Link.MAC != o.Was.MAC {
		general += " address " + o.Link.MAC.String()
	}
	if o.Link.MTU != o.Was.MTU {
		general += fmt.Sprintf(" mtu %d", o.Link.MTU)
	}
	if o.Link.Up != o.Was.Up {
		general += " " + upText(o.Link.Up)
	}
	if general != "" {
		parts = append(parts, set+general)
	}
	if o.Link.Learning != o.Was.Learning { // ip(8) takes nothing behind the type
		parts = append(parts, set+" type vxlan "+learningText(o.Link.Learning))
	}
	return strings.Join(parts, " && ")
}

package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/netlink"
)

// Wanted selects the content of an Inventory.
type Wanted struct {
	// Names are names of interfaces that are always included, if they exist.
	Names []string
	// Routes includes the routes of the underlay, without those that only an overlay of Network
	// needs.
	Routes  bool
	Network netip.Prefix
	// Targets are addresses whose routes are all included.
	Targets []netip.Addr
}

// Inventory reads the interfaces that an uplink can be chosen from: those with IPv4 addresses,
// those of routes that are read, and those named. It also reads IPv4 routes of the main table:
// default routes, or all from which can be derived how peers are reached. Interfaces are sorted by
// index, everything else is in the order of the kernel.
//
// It does not look for interfaces in a list of all: a host with many containers has thousands,
// which change faster than the list can be read. Nor does it store a million routes of a routing
// daemon.
func (k *Kernel) Inventory(w Wanted) (inv host.Inventory, err error) {
	// Without IPv6, for example with ipv6.disable=1, there is no such sysctl.
	values, err := k.Sysctls([]string{"net/ipv6/conf/all/disable_ipv6"})
	if err != nil {
		return inv, err
	}
	inv.IPv6 = len(values) > 0
	w.Targets = slices.SortedFunc(slices.Values(w.Targets), netip.Addr.Compare)
	routes, err := k.wantedRoutes(w)
	if err != nil {
		return inv, err
	}
	addrs, err := k.addrs()
	if err != nil {
		return inv, err
	}
	links, err := k.inventoryLinks(w, addrs, routes)
	if err != nil {
		return inv, err
	}
	var at map[int]int
	inv.Ifaces, at = ifaces(links, addrs)
	for _, r := range routes {
		route := host.Route{
			Dst: r.key.Dst, Gateway: r.route.Via, Source: r.source, Metric: r.key.Metric,
			Kernel: r.route.Proto == dataplane.ProtoKernel, Stamped: r.route.Proto == dataplane.ProtoFlannel,
		}
		if i, ok := at[r.index]; ok {
			route.Iface = inv.Ifaces[i].Name
		} else if r.index != 0 {
			continue // the interface is gone, or cannot be an uplink
		}
		inv.Routes = append(inv.Routes, route)
	}
	return inv, nil
}

// inventoryLinks returns the interfaces that have addresses, routes of interest, or one of the
// wanted names, by index.
func (k *Kernel) inventoryLinks(w Wanted, addrs []addrEntry, routes []routeEntry) (map[int]device, error) {
	named, err := k.existing(w.Names)
	if err != nil {
		return nil, err
	}
	links := map[int]device{}
	for _, d := range named {
		links[d.index] = d
	}
	wanted := map[int]bool{}
	for _, a := range addrs {
		wanted[a.index] = true
	}
	for _, r := range routes {
		if r.key.Dst.Bits() == 0 {
			wanted[r.index] = true
		}
	}
	for _, r := range routes {
		// Routes into the overlay's network matter only for uplinks and for the targets.
		_, known := links[r.index]
		if !known && (!dataplane.Inside(w.Network, r.key.Dst) || containsAny(r.key.Dst, w.Targets)) {
			wanted[r.index] = true
		}
	}
	return links, k.find(links, wanted)
}

// ifaces returns interfaces with their IPv4 addresses, sorted by index, and the position of each by
// index.
func ifaces(links map[int]device, addrs []addrEntry) (all []host.Iface, at map[int]int) {
	at = map[int]int{}
	for _, index := range slices.Sorted(maps.Keys(links)) {
		d := links[index]
		at[index] = len(all)
		all = append(all, host.Iface{
			Name: d.name, Index: d.index, MTU: d.link.MTU, Up: d.link.Up, Running: d.carrier&unix.IFF_RUNNING != 0, MAC: d.link.MAC,
		})
	}
	for _, a := range addrs {
		if i, ok := at[a.index]; ok {
			all[i].Addrs = append(all[i].Addrs, host.Addr{
				Prefix:     a.prefix,
				Deprecated: a.flags&unix.IFA_F_DEPRECATED != 0,
				Dynamic:    a.flags&unix.IFA_F_PERMANENT == 0,
				Secondary:  a.flags&unix.IFA_F_SECONDARY != 0,
			})
		}
	}
	return all, at
}

func (k *Kernel) wantedRoutes(w Wanted) ([]routeEntry, error) {
	if !w.Routes && len(w.Targets) == 0 {
		return k.defaultRoutes()
	}
	wanted := func(dst netip.Prefix) bool { return w.Routes || dst.Bits() == 0 || containsAny(dst, w.Targets) }
	var u *underlay
	err := k.routes(unix.AF_INET, unix.RTN_UNICAST, func() { u = newUnderlay(w.Network, w.Targets) }, wanted, func(dst netip.Prefix, b []byte) {
		if e, ok := parseRoute(dst, b); ok {
			u.add(e)
		}
	})
	if err != nil {
		return nil, err
	}
	return u.routes(), nil
}

// defaultRoutes reads only the begin of the main table, where the default routes are: 0.0.0.0 is
// the first key of the trie, and a million other routes may follow.
func (k *Kernel) defaultRoutes() (all []routeEntry, err error) {
	c, err := k.ns.Dial(unix.NETLINK_ROUTE, netlink.RequestBuffer)
	if err != nil {
		return nil, err
	}
	defer c.Close() // discards the rest of the list
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	_, err = c.List(&r.Requests, func(b []byte) (more bool) {
		dst, ok := mainRoute(b)
		if !ok || b[0] != unix.AF_INET {
			return true
		}
		if e, ok := parseRoute(dst, b); ok && dst.Bits() == 0 && !e.route.Blackhole {
			all = append(all, e)
		}
		return dst.Addr().IsUnspecified()
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // the table does not exist yet
		return nil, fmt.Errorf("list default routes: %w", err)
	}
	return all, nil
}

// addrs lists the IPv4 addresses of all links.
func (k *Kernel) addrs() ([]addrEntry, error) {
	r := one(unix.RTM_GETADDR, 0)
	r.addrHeader(unix.AF_INET, 0, 0)
	var all []addrEntry
	err := k.conn.Dump(&r.Requests, func() { all = nil }, func(b []byte) {
		if a, ok := parseAddr(b); ok && a.prefix.Addr().Is4() {
			all = append(all, a)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return all, nil
}

// RouteTo returns the interface and the source address that the kernel uses for packets to dst. It
// is a host.Reach.
func (k *Kernel) RouteTo(dst netip.Addr) (iface string, src netip.Addr, err error) {
	e, _, err := k.lookUp(dst, 0)
	if err != nil {
		return "", src, fmt.Errorf("find route to %s: %w", dst, err)
	}
	d, err := k.byIndex(e.index)
	if err != nil {
		return "", src, fmt.Errorf("find interface %d of the route to %s: %w", e.index, dst, err)
	}
	return d.name, e.source, nil
}

// lookUp returns the route that the kernel uses for packets to dst, and its table.
func (k *Kernel) lookUp(dst netip.Addr, flags uint32) (e routeEntry, table int, err error) {
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: family(dst), Dst_len: uint8(dst.BitLen()), Flags: flags})
	r.Addr(unix.RTA_DST, dst)
	b, err := k.conn.Get(&r.Requests)
	_, table = e.parseAttrs(b)
	return e, table, err
}

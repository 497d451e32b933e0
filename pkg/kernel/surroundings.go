package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/netlink"
)

// Surroundings reads the configuration of other programs: links with IPv4 addresses, and routes of
// the main table whose destination is wanted. It omits routes by the given links, which are the
// overlay's, and those with the overlay's protocol number.
func (k *Kernel) Surroundings(wanted func(dst netip.Prefix) bool, ours []string) (s host.Surroundings, err error) {
	routes, err := k.surroundingRoutes(wanted, ours)
	if err != nil {
		return s, err
	}
	// After the routes, so that the address of each route that depends on one is included.
	addrs, err := k.addrs()
	if err != nil {
		return s, err
	}
	links, indexes := map[int]device{}, map[int]bool{}
	for _, a := range addrs {
		indexes[a.index] = true
	}
	for _, r := range routes {
		indexes[r.index] = true
	}
	if err := k.find(links, indexes); err != nil {
		return s, err
	}
	s.Links = addressed(addrs, links)
	for _, r := range routes {
		link, known := links[r.index]
		if !known && r.index != 0 {
			continue // the link is gone
		}
		r.path.Iface = link.name
		s.Paths = append(s.Paths, r.path)
	}
	return s, nil
}

// surroundingRoute is a route as the kernel reports it, with its link by index.
type surroundingRoute struct {
	path  host.Path
	index int
}

func (k *Kernel) surroundingRoutes(wanted func(dst netip.Prefix) bool, ours []string) (all []surroundingRoute, err error) {
	var except []int
	for _, name := range ours {
		switch d, err := k.byName(name); {
		case err == nil:
			except = append(except, d.index)
		case !isNoLink(err):
			return nil, fmt.Errorf("read link %s: %w", name, err)
		}
	}
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN})
	err = k.conn.Dump(&r.Requests, func() { all = nil }, func(b []byte) {
		dst, ok := mainRoute(b)
		if !ok || b[0] != unix.AF_INET || !wanted(dst) {
			return
		}
		if p, index, ok := parsePath(b, dst); ok && !slices.Contains(except, index) {
			all = append(all, surroundingRoute{p, index})
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // no such table: no routes yet
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return all, nil
}

// addressed returns the links that have IPv4 addresses, in the order of their first address.
func addressed(addrs []addrEntry, links map[int]device) (all []host.Link) {
	at := map[int]int{} // interface index to position
	for _, a := range addrs {
		d, known := links[a.index]
		if !known {
			continue
		}
		if _, seen := at[a.index]; !seen {
			at[a.index] = len(all)
			all = append(all, host.Link{Name: d.name, Kind: d.link.Kind})
		}
		all[at[a.index]].Addrs = append(all[at[a.index]].Addrs, a.prefix)
	}
	return all
}

// parsePath parses a route of any type. The index is that of its link, or 0 for a route without a
// link or with several.
func parsePath(b []byte, dst netip.Prefix) (p host.Path, index int, ok bool) {
	m := nl.DeserializeRtMsg(b)
	p.Type, ok = pathType(m.Type)
	if !ok || m.Protocol == dataplane.ProtoFlannel || m.Tos != 0 || m.Flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) != 0 {
		return p, 0, false
	}
	p.Dst, p.Kernel = dst, m.Protocol == unix.RTPROT_KERNEL
	for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
		switch kind {
		case unix.RTA_OIF:
			index = v.Number()
		case unix.RTA_PRIORITY:
			p.Metric = uint32(v.Number())
		case unix.RTA_GATEWAY:
			p.Gateway = v.Addr()
		case rtaNextHop:
			// Ours. With net.ipv4.nexthop_compat_mode=0 the kernel does not report its link.
			if id := dataplane.NextHopID(dst); id != 0 && uint32(v.Number()) == id {
				return p, 0, false
			}
		}
	}
	return p, index, true
}

// pathType returns the name of a route type, "" for unicast.
func pathType(t uint8) (name string, ok bool) {
	switch t {
	case unix.RTN_UNICAST:
		return "", true
	case unix.RTN_LOCAL:
		return "local", true
	case unix.RTN_BLACKHOLE:
		return "blackhole", true
	case unix.RTN_UNREACHABLE:
		return "unreachable", true
	case unix.RTN_PROHIBIT:
		return "prohibit", true
	case unix.RTN_THROW:
		return "throw", true
	}
	return "", false
}

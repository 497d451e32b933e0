package kernel

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
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
	overlay, err := k.existing(ours)
	if err != nil {
		return nil, err
	}
	err = k.routes(unix.AF_INET, unix.RTN_UNSPEC, func() { all = nil }, wanted, func(dst netip.Prefix, b []byte) {
		p, index, ok := parsePath(b, dst)
		if ok && !slices.ContainsFunc(overlay, func(d device) bool { return d.index == index }) {
			all = append(all, surroundingRoute{p, index})
		}
	})
	return all, err
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
			all = append(all, host.Link{Name: d.name, Kind: d.link.Kind, MTU: d.link.MTU})
		}
		all[at[a.index]].Addrs = append(all[at[a.index]].Addrs, a.prefix)
	}
	return all
}

// parsePath parses a route of any type. The index is that of its link, or 0 for a route without a
// link or with several.
func parsePath(b []byte, dst netip.Prefix) (p host.Path, index int, ok bool) {
	m := nl.DeserializeRtMsg(b)
	var e routeEntry
	e.parseAttrs(b)
	p.Type, ok = pathType(m.Type)
	// With net.ipv4.nexthop_compat_mode=0 the kernel does not report the link of a nexthop of ours.
	ours := m.Protocol == dataplane.ProtoFlannel || e.route.NextHop != 0 && e.route.NextHop == dataplane.NextHopID(dst)
	if !ok || ours || m.Tos != 0 || m.Flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) != 0 {
		return p, 0, false
	}
	p.Dst, p.Metric, p.Gateway, p.Kernel = dst, e.key.Metric, e.route.Via, m.Protocol == unix.RTPROT_KERNEL
	return p, e.index, true
}

// pathType returns the name of a route type, "" for unicast.
func pathType(t uint8) (name string, ok bool) {
	switch t {
	case unix.RTN_LOCAL:
		name = "local"
	case unix.RTN_BLACKHOLE:
		name = "blackhole"
	case unix.RTN_UNREACHABLE:
		name = "unreachable"
	case unix.RTN_PROHIBIT:
		name = "prohibit"
	case unix.RTN_THROW:
		name = "throw"
	}
	return name, name != "" || t == unix.RTN_UNICAST
}

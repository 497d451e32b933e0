package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
)

// Surroundings reads what others have set up where an IPv4 network is: links with
// addresses, and routes of the main table to anywhere inside it. Left out are routes by the
// links named, which are the overlay's, and those with its stamp.
func (k *Kernel) Surroundings(network netip.Prefix, ours []string) (s host.Surroundings, err error) {
	devices, err := k.conn.devices()
	if err != nil {
		return s, err
	}
	links := make(map[int]device, len(devices))
	for _, d := range devices {
		links[d.index] = d
	}
	if s.Links, err = k.addressed(links); err != nil {
		return s, err
	}
	s.Paths, err = k.paths(network, links, ours)
	return s, err
}

// paths lists the routes. Those by a link that is not among the links are left out: it came
// after them, its addresses are not known, and its coming is an event.
func (k *Kernel) paths(network netip.Prefix, links map[int]device, ours []string) (all []host.Path, err error) {
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN})
	inside := dataplane.Scope{Network: network}
	err = k.conn.dump(r, func() { all = nil }, func(b []byte) {
		dst, ok := mainRoute(b)
		if !ok || b[0] != unix.AF_INET || !inside.Inside(dst) {
			return
		}
		p, index, ok := parsePath(b, dst)
		link, known := links[index]
		if ok && (index == 0 || known && !slices.Contains(ours, link.name)) {
			p.Iface = link.name
			all = append(all, p)
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // no such table: no routes yet
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return all, nil
}

// addressed lists the links that have IPv4 addresses, in the order of the first ones.
func (k *Kernel) addressed(links map[int]device) ([]host.Link, error) {
	r := one(unix.RTM_GETADDR, 0)
	r.addrHeader(unix.AF_INET, 0, 0)
	var all []host.Link
	var at map[int]int // interface index to position
	err := k.conn.dump(r, func() { all, at = nil, map[int]int{} }, func(b []byte) {
		p, index, _, ok := parseAddr(b)
		d, known := links[index]
		if !ok || !known || !p.Addr().Is4() {
			return
		}
		if _, seen := at[index]; !seen {
			at[index] = len(all)
			all = append(all, host.Link{Name: d.name, Kind: d.link.Kind})
		}
		all[at[index]].Addrs = append(all[at[index]].Addrs, p)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return all, nil
}

// parsePath reads a route of others, of whatever type; the index is that of its link, 0 for
// a route without one or by several.
func parsePath(b []byte, dst netip.Prefix) (p host.Path, index int, ok bool) {
	m := nl.DeserializeRtMsg(b)
	p.Type, ok = pathType(m.Type)
	if !ok || m.Protocol == dataplane.ProtoFlannel || m.Tos != 0 || m.Flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) != 0 {
		return p, 0, false
	}
	p.Dst, p.Kernel = dst, m.Protocol == unix.RTPROT_KERNEL
	for kind, v := range attrs(b, unix.SizeofRtMsg) {
		switch kind {
		case unix.RTA_OIF:
			index = number(v)
		case unix.RTA_PRIORITY:
			p.Metric = uint32(number(v))
		case unix.RTA_GATEWAY:
			p.Gateway = address(v)
		case rtaNextHop:
			// One of ours, whose link the kernel does not tell with net.ipv4.nexthop_compat_mode=0.
			if id := dst.Addr().As4(); uint32(number(v)) == binary.BigEndian.Uint32(id[:]) {
				return p, 0, false
			}
		}
	}
	return p, index, true
}

// pathType names the types of routes that take packets to somewhere or nowhere.
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

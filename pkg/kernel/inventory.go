package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

// Inventory reads the interfaces with their addresses, and the unicast routes
// of the main table; both in the order in which the kernel lists them.
func (k *Kernel) Inventory() (host.Inventory, error) {
	devices, err := k.conn.devices()
	if err != nil {
		return host.Inventory{}, err
	}
	var inv host.Inventory
	if inv.IPv6, err = k.hasIPv6(); err != nil {
		return host.Inventory{}, err
	}
	at := map[int]int{} // interface index to position
	for _, d := range devices {
		at[d.index] = len(inv.Ifaces)
		inv.Ifaces = append(inv.Ifaces, host.Iface{
			Name: d.name, Index: d.index, MTU: d.link.MTU, Up: d.link.Up, Running: d.carrier&unix.IFF_RUNNING != 0, MAC: d.link.MAC,
		})
	}
	addrs, err := k.addrs()
	if err != nil {
		return host.Inventory{}, err
	}
	for _, a := range addrs {
		if i, ok := at[a.index]; ok {
			inv.Ifaces[i].Addrs = append(inv.Ifaces[i].Addrs, host.Addr{
				Prefix:     a.prefix,
				Deprecated: a.flags&unix.IFA_F_DEPRECATED != 0,
				Dynamic:    a.flags&unix.IFA_F_PERMANENT == 0,
				Secondary:  a.flags&unix.IFA_F_SECONDARY != 0,
			})
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var routes []routeEntry
		err := k.routes(family, func() { routes = nil }, func(r routeEntry) { routes = append(routes, r) })
		if err != nil {
			return host.Inventory{}, err
		}
		for _, r := range routes {
			if r.route.Blackhole {
				continue
			}
			route := host.Route{Dst: r.key.Dst, Gateway: r.route.Via, Source: r.source, Metric: r.key.Metric}
			if i, ok := at[r.index]; ok {
				route.Iface = inv.Ifaces[i].Name
			} else if r.index != 0 {
				continue // by an interface that came after the list
			}
			inv.Routes = append(inv.Routes, route)
		}
	}
	return inv, nil
}

type addrEntry struct {
	prefix       netip.Prefix
	index, flags int
}

func (k *Kernel) addrs() ([]addrEntry, error) {
	var all []addrEntry
	err := k.conn.dump(addrsRequest(0), func() { all = nil }, func(b []byte) {
		if p, index, flags, ok := parseAddr(b); ok {
			all = append(all, addrEntry{p, index, flags})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return all, nil
}

// RouteTo asks the kernel by which interface, and with which source address, it
// would send to dst. It is a host.Reach.
func (k *Kernel) RouteTo(dst netip.Addr) (iface string, src netip.Addr, err error) {
	r := one(unix.RTM_GETROUTE, 0)
	r.routeHeader(unix.RtMsg{Family: family(dst), Dst_len: uint8(dst.BitLen())})
	r.address(unix.RTA_DST, dst)
	b, err := k.conn.get(r)
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("find route to %s: %w", dst, err)
	}
	index := 0
	for kind, v := range attrs(b, unix.SizeofRtMsg) {
		switch kind {
		case unix.RTA_OIF:
			index = number(v)
		case unix.RTA_PREFSRC:
			src = address(v)
		}
	}
	d, err := k.byIndex(index)
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("find interface %d of the route to %s: %w", index, dst, err)
	}
	return d.name, src, nil
}

// hasIPv6 tells whether the kernel has IPv6 at all; one started with
// ipv6.disable=1 has not.
func (k *Kernel) hasIPv6() (bool, error) {
	has := false
	err := k.within(func() error {
		_, err := os.Stat("/proc/sys/net/ipv6/conf")
		has = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return has, err
}

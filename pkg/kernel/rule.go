package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
	"flanneld/pkg/netlink"
)

// Detour returns the routing table that the kernel uses for packets to dst, and reports whether a
// routing rule selects it ahead of the main table (ip-rule(8)), as rules of a VPN do.
func (k *Kernel) Detour(dst netip.Addr) (d host.Detour, ok bool, err error) {
	e, table, err := k.lookUp(dst, unix.RTM_F_LOOKUP_TABLE)
	if err != nil {
		return d, false, nil // unreachable, which the check of routes reports
	}
	switch table {
	case unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL, unix.RT_TABLE_DEFAULT, unix.RT_TABLE_UNSPEC:
		return d, false, nil
	}
	link, err := k.byIndex(e.index)
	if err != nil {
		return d, false, nil // gone meanwhile
	}
	d.Table, d.Iface = table, link.name
	d.Priority, err = k.rulePriority(table)
	return d, err == nil, err
}

// rulePriority returns the priority of the first rule for a table.
func (k *Kernel) rulePriority(table int) (least int, err error) {
	r := one(unix.RTM_GETRULE, 0)
	r.routeHeader(unix.RtMsg{Family: unix.AF_INET}) // struct fib_rule_hdr has the same layout
	err = k.conn.Dump(&r.Requests, func() { least = -1 }, func(b []byte) {
		if len(b) < unix.SizeofRtMsg {
			return
		}
		priority, names := 0, int(b[4])
		for kind, v := range netlink.After(b, unix.SizeofRtMsg).All() {
			switch kind {
			case unix.FRA_PRIORITY:
				priority = v.Number()
			case unix.FRA_TABLE:
				names = v.Number()
			}
		}
		if names == table && (least < 0 || priority < least) {
			least = priority
		}
	})
	if err != nil {
		return 0, fmt.Errorf("list routing rules: %w", err)
	}
	return max(least, 0), nil
}

package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

// Decide returns what the kernel does with a packet. For one that arrives by a device, this includes
// what the kernel checks before: forwarding, and the reverse path filter (net/ipv4/route.c,
// ip_route_input_slow).
func (k *Kernel) Decide(q host.Query) (d host.Decision, err error) {
	var in device
	if q.In != "" {
		if in, err = k.byName(q.In); err != nil {
			return d, fmt.Errorf("find interface %s: %w", q.In, err)
		}
	}
	r := one(unix.RTM_GETROUTE, 0)
	m := unix.RtMsg{Family: family(q.Dst), Dst_len: uint8(q.Dst.BitLen()), Flags: unix.RTM_F_LOOKUP_TABLE}
	if q.Src.IsValid() {
		m.Src_len = uint8(q.Src.BitLen())
	}
	r.routeHeader(m)
	r.Addr(unix.RTA_DST, q.Dst)
	if q.Src.IsValid() {
		r.Addr(unix.RTA_SRC, q.Src)
	}
	if q.In != "" {
		r.Uint32(unix.RTA_IIF, uint32(in.index))
	}
	b, err := k.conn.Get(&r.Requests)
	if d.Refused = refusal(err); d.Refused != "" {
		return d, nil
	}
	if err == nil && len(b) < unix.SizeofRtMsg {
		err = unix.EPROTO
	}
	if err != nil {
		return d, fmt.Errorf("find route to %s: %w", q, err)
	}
	var e routeEntry
	_, table := e.parseAttrs(b)
	out, err := k.byIndex(e.index)
	if err != nil {
		return d, fmt.Errorf("find interface %d of the route to %s: %w", e.index, q, err)
	}
	d = host.Decision{Iface: out.name, Gateway: e.route.Via, Source: e.source, Local: b[7] == unix.RTN_LOCAL}
	switch table {
	case unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL, unix.RT_TABLE_DEFAULT, unix.RT_TABLE_UNSPEC:
	default:
		d.Table = table
	}
	return d, nil
}

// refusal returns what an error means in an answer to RTM_GETROUTE, or "" if the kernel has not
// decided anything.
func refusal(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	switch errno {
	case unix.ENETUNREACH:
		return "there is no route"
	case unix.EHOSTUNREACH:
		return "the route is unreachable, or the device does not forward"
	case unix.EACCES:
		return "the route prohibits it"
	case unix.EINVAL: // since 6.13 also for reverse path filtering
		return "the route is a blackhole, or reverse path filtering drops it"
	case unix.EXDEV:
		return "reverse path filtering drops it"
	}
	return ""
}

// Neighbor returns the entry of an address in the neighbour table of an interface. Its Exists is not
// set if there is none.
func (k *Kernel) Neighbor(iface string, ip netip.Addr) (host.Neighbor, error) {
	d, err := k.byName(iface)
	if err != nil {
		return host.Neighbor{}, fmt.Errorf("look up neighbor %s: %w", ip, err)
	}
	n, known, err := k.neighbor(d.index, ip)
	return host.Neighbor{Exists: known, MAC: n.mac, State: neighborState(n.state)}, err
}

// neighborState returns the name of a state (NUD_* of linux/neighbour.h).
func neighborState(state int) string {
	switch state {
	case unix.NUD_INCOMPLETE:
		return "INCOMPLETE"
	case unix.NUD_REACHABLE:
		return "REACHABLE"
	case unix.NUD_STALE:
		return "STALE"
	case unix.NUD_DELAY:
		return "DELAY"
	case unix.NUD_PROBE:
		return "PROBE"
	case unix.NUD_FAILED:
		return "FAILED"
	case unix.NUD_NOARP:
		return "NOARP"
	case unix.NUD_PERMANENT:
		return "PERMANENT"
	}
	return ""
}

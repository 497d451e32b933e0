package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// Solicit makes the kernel resolve the link-layer address of ip by ARP on an interface, as if it
// had a packet to send; Answered reports the result. The existing entry is deleted first, because
// it may be outdated. If the administrator has set an entry, it is left, and no request is sent.
func (k *Kernel) Solicit(iface string, ip netip.Addr) error {
	d, err := k.byName(iface)
	if err != nil {
		return fmt.Errorf("solicit %s: %w", ip, err)
	}
	n, known, err := k.neighbor(d.index, ip)
	if err != nil || known && n.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 {
		return err
	}
	entry := func(kind, flags uint16, m unix.NdMsg) *netlink.Requests {
		r := one(kind, flags)
		m.Family, m.Ifindex, m.Type = family(ip), int32(d.index), unix.RTN_UNICAST
		r.neighHeader(m)
		r.Addr(unix.NDA_DST, ip)
		return &r.Requests
	}
	if err := k.conn.Do(entry(unix.RTM_DELNEIGH, 0, unix.NdMsg{})); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget neighbor %s dev %s: %w", ip, iface, err)
	}
	if err := k.conn.Do(entry(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, unix.NdMsg{Flags: unix.NTF_USE})); err != nil {
		return fmt.Errorf("solicit %s dev %s: %w", ip, iface, err)
	}
	return nil
}

// Answered reports whether the kernel has resolved ip on an interface.
func (k *Kernel) Answered(iface string, ip netip.Addr) (bool, error) {
	d, err := k.byName(iface)
	if err != nil {
		return false, fmt.Errorf("look up neighbor %s: %w", ip, err)
	}
	n, known, err := k.neighbor(d.index, ip)
	return known && n.state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0, err
}

// neighbor returns the entry of ip on a link.
func (k *Kernel) neighbor(index int, ip netip.Addr) (found neighbor, known bool, err error) {
	err = k.neighbors(family(ip), index, func() { known = false }, func(n neighbor) {
		if n.dst == ip {
			found, known = n, true
		}
	})
	if err != nil {
		err = fmt.Errorf("look up neighbor %s: %w", ip, err)
	}
	return found, known, err
}

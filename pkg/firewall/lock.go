package firewall

import (
	"fmt"
	"net/netip"
)

// Lock describes rules that drop packets to a network's tunnel port unless they come from a peer,
// and packets that got this host's address by source NAT on the way to peers. The peers change too
// often to be listed in rules, so the rules look up a set of addresses.
//
// Tunnels of several networks may share a port, so a Lock matches only packets that its own
// network's tunnel would receive.
type Lock struct {
	Network netip.Prefix
	Port    uint16
	Local   netip.Addr // source address of the tunnel
	Bound   bool       // the tunnel receives on Local only; otherwise on all addresses, and selects packets by VNI
	VNI     uint32     // of VXLAN (RFC 7348)
}

func (l Lock) String() string {
	if l.Bound {
		return fmt.Sprintf("UDP to %s", netip.AddrPortFrom(l.Local, l.Port))
	}
	return fmt.Sprintf("UDP to port %d with VNI %d", l.Port, l.VNI)
}

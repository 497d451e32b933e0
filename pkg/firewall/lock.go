package firewall

import (
	"fmt"
	"net/netip"
)

// Lock drops what comes to the tunnel of a network from anybody but peers, and what
// others send to those with this host's address, which source NAT has given them. Who peers
// are changes too often for a rule, so it looks at a set of addresses.
//
// Tunnels of several networks may share a port, so a Lock is about those packets
// alone that only its own network's tunnel takes.
type Lock struct {
	Network netip.Prefix
	Port    uint16
	Local   netip.Addr // that the tunnel sends from
	Bound   bool       // it receives there only; else at all addresses, and knows its packets by the VNI
	VNI     uint32     // of VXLAN (RFC 7348)
}

func (l Lock) String() string {
	if l.Bound {
		return fmt.Sprintf("UDP to %s", netip.AddrPortFrom(l.Local, l.Port))
	}
	return fmt.Sprintf("UDP to port %d with VNI %d", l.Port, l.VNI)
}

package firewall

import (
	"fmt"
	"net/netip"
)

// Lock drops what comes to the tunnel of a network from anybody but peers. Which
// those are changes too often for a rule, so it looks at a set of addresses.
//
// Tunnels of several networks may share a port, so a Lock is about those packets
// alone that only its own network's tunnel takes.
type Lock struct {
	Network netip.Prefix
	Port    uint16
	// Local is the only address that the tunnel receives at; not valid: it does at all, and
	// knows its packets by the VNI.
	Local netip.Addr
	VNI   uint32 // of VXLAN (RFC 7348)
}

func (l Lock) String() string {
	if l.Local.IsValid() {
		return fmt.Sprintf("UDP to %s", netip.AddrPortFrom(l.Local, l.Port))
	}
	return fmt.Sprintf("UDP to port %d with VNI %d", l.Port, l.VNI)
}

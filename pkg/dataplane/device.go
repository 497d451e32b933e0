package dataplane

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// deviceName matches the names of our devices.
var deviceName = regexp.MustCompile(`^flannel(\.?)[0-9]+$`)

// IsDeviceName reports whether a name is one that flanneld uses for its devices.
func IsDeviceName(name string) bool { return deviceName.MatchString(name) }

// DeviceOf reports whether a link is the device of a network: its name and kind are those that
// flanneld uses, and it has an address or a route inside the network. s must have no routes outside
// the network. foreign is an address on the link outside the network, which may belong to another
// network.
func (s State) DeviceOf(network netip.Prefix, name string) (is bool, foreign netip.Prefix) {
	l := s.Links[name]
	vxlan := l.Kind == KindVXLAN && name == fmt.Sprintf("flannel.%d", l.VNI)
	tun := l.Kind == KindTUN && !strings.Contains(name, ".")
	if !vxlan && !tun {
		return false, foreign
	}
	for a := range s.Addrs {
		switch {
		case a.Link != name || !a.Prefix.Addr().Is4():
		case network.Contains(a.Prefix.Addr()):
			is = true
		default:
			foreign = a.Prefix
		}
	}
	for k := range s.Routes {
		is = is || k.Link == name
	}
	return is, foreign
}

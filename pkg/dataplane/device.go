package dataplane

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// deviceName matches what devices of ours are called.
var deviceName = regexp.MustCompile(`^flannel(\.?)[0-9]+$`)

// IsDeviceName reports whether a link is called as a daemon calls its own.
func IsDeviceName(name string) bool { return deviceName.MatchString(name) }

// DeviceOf reports whether a link is a network's: of a name and kind as its daemon makes, and with
// an address or a route inside the network; s has the routes inside it only. foreign is an address
// that another network may have on the link.
func (s State) DeviceOf(network netip.Prefix, name string) (is bool, foreign netip.Prefix) {
	switch l := s.Links[name]; l.Kind {
	case KindVXLAN:
		if name != fmt.Sprintf("flannel.%d", l.VNI) {
			return false, foreign
		}
	case KindTUN:
		if strings.Contains(name, ".") {
			return false, foreign
		}
	default:
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

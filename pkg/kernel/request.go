package kernel

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// requests is a sequence of rtnetlink(7) requests.
type requests struct{ netlink.Requests }

// one starts a single request; its header and attributes follow.
func one(kind, flags uint16) *requests {
	r := &requests{}
	r.Begin(kind, flags)
	return r
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// families returns the families of networks, each once.
func families(networks []netip.Prefix) (all []uint8) {
	for _, n := range networks {
		if f := family(n.Addr()); n.IsValid() && !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

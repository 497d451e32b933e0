package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"flanneld/pkg/netlink"
)

// requests are requests of rtnetlink(7).
type requests struct{ netlink.Requests }

// one returns a single request, to be completed by its header and attributes.
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

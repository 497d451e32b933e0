package kernel

import (
	"net/netip"

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

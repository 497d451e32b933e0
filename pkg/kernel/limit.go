package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// explain adds to the kernel's refusal of a Put which of its limits was reached,
// where the error number alone leaves that open. There is none for nexthops and
// for IPv4 routes.
func explain(op *dataplane.Op, err error) error {
	if op.Verb != dataplane.Put {
		return err
	}
	for _, limit := range []struct {
		kind   dataplane.Kind
		family uint8 // 0: whichever
		errno  unix.Errno
		text   string
	}{
		// net/core/neighbour.c, neigh_alloc: "neighbor table overflow". Since Linux
		// 5.0 permanent entries are not counted.
		{dataplane.KindNeigh, unix.AF_INET, unix.ENOBUFS, "sysctl net.ipv4.neigh.default.gc_thresh3 limits the neighbours of all links"},
		{dataplane.KindNeigh, unix.AF_INET6, unix.ENOBUFS, "sysctl net.ipv6.neigh.default.gc_thresh3 limits the neighbours of all links"},
		// drivers/net/vxlan/vxlan_core.c, vxlan_fdb_create: addrcnt and addrmax,
		// which vxlan_nl2conf does not let anybody change.
		{dataplane.KindFDB, 0, unix.ENOSPC, "the link was made with a limit, maxaddress of ip-link(8), and only one made anew is without"},
		// net/ipv6/route.c, ip6_dst_gc. Since Linux 4.17 these routes are not counted.
		{dataplane.KindRoute, unix.AF_INET6, unix.ENOMEM, "sysctl net.ipv6.route.max_size limits the routes of IPv6"},
	} {
		if limit.kind == op.Kind && (limit.family == 0 || limit.family == familyOf(op)) && errors.Is(err, limit.errno) {
			return fmt.Errorf("%w (%s)", err, limit.text)
		}
	}
	return err
}

func familyOf(op *dataplane.Op) uint8 {
	if op.Kind == dataplane.KindNeigh {
		k, _ := dataplane.KindNeigh.Of(*op)
		return family(k.IP)
	}
	k, _ := dataplane.KindRoute.Of(*op)
	return family(k.Dst.Addr())
}

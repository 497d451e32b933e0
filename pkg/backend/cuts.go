package backend

import (
	"fmt"
	"maps"
	"slices"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
)

// withoutCuts takes those routes out of base that would lead the uplink's own link into
// one of the overlay's devices: where the network is that of the link, or lies in it and
// contains this host's address. The other hosts and etcd would be cut off.
//
// The kernel has a place for one of two equal routes only, and for a longer one always, so
// no attempt would tell.
func withoutCuts(base dataplane.State, h host.Facts) (refused []dataplane.Conflict) {
	for _, k := range slices.SortedFunc(maps.Keys(base.Routes), func(a, b dataplane.RouteKey) int { return a.Dst.Compare(b.Dst) }) {
		if _, ours := base.Links[k.Link]; !ours || !k.Dst.Contains(h.Addr) {
			continue
		}
		link, ok := host.Lookup(h.Underlay, h.Addr)
		if !ok || link.Iface != h.Uplink || link.Gateway.IsValid() || link.Dst.Bits() == 0 || link.Dst.Bits() > k.Dst.Bits() {
			continue
		}
		refused = append(refused, dataplane.Conflict{
			Op: dataplane.Op{Kind: dataplane.KindRoute, RouteKey: k, Route: base.Routes[k]},
			Reason: fmt.Sprintf("the network %s takes the addresses of %s dev %s, which the hosts need themselves: choose another Network, or a smaller one without them, and restart flanneld",
				k.Dst, link.Dst, h.Uplink),
		})
		delete(base.Routes, k)
	}
	return refused
}

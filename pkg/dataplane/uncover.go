package dataplane

import (
	"cmp"
	"net/netip"
	"slices"
)

// Uncover returns the deletions after which no route of ours leads to an address: of those
// that the kernel would take for it, one after the other, all up to the first that is not
// ours.
func Uncover(have State, scope Scope, addr netip.Addr) (ops []Op) {
	var leads []RouteKey
	for k := range have.Routes {
		if k.Dst.Contains(addr) {
			leads = append(leads, k)
		}
	}
	slices.SortFunc(leads, func(a, b RouteKey) int {
		return cmp.Or(b.Dst.Bits()-a.Dst.Bits(), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Link, b.Link))
	})
	for _, k := range leads {
		r := have.Routes[k]
		if !scope.OwnsRoute(k, r) || r.Proto == ProtoKernel {
			break
		}
		ops = append(ops, Op{Verb: Del, Kind: KindRoute, RouteKey: k, Route: r})
	}
	return ops
}

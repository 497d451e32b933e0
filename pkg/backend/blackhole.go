package backend

import (
	"math"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// WithBlackhole adds a route that drops what is for this host's subnet while
// nobody there takes it. Otherwise packets for containers that are gone would
// follow the default route, or, with a route for the whole network, return into
// the overlay. In a command:
//
//	ip route replace blackhole 10.42.7.0/24 proto 70 metric 4294967295
//
// The metric makes it the last choice: docker's bridge has the same destination,
// and whichever of two routes with one metric came first would win.
func WithBlackhole(b Backend) Backend { return blackhole{b} }

type blackhole struct{ Backend }

func (b blackhole) Base(h host.Facts, own lease.Lease) dataplane.State {
	s := b.Backend.Base(h, own)
	k := dataplane.RouteKey{Dst: own.Subnets.V4, Metric: math.MaxUint32}
	s.Routes[k] = dataplane.Route{Blackhole: true, Proto: dataplane.ProtoFlannel}
	return s
}

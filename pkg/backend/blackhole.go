package backend

import (
	"math"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// WithBlackhole returns a backend that adds a route to drop packets for this host's subnet that no
// container receives. Without it, packets for containers that are gone would follow the default
// route, or loop through the overlay if there is a route for the whole network. As a command:
//
//	ip route replace blackhole 10.42.7.0/24 proto 70 metric 4294967295
//
// The metric gives it the lowest precedence: Docker's bridge has a route to the same destination,
// and of two routes with the same metric the kernel would use the older one.
func WithBlackhole(b Backend) Backend { return blackhole{b} }

type blackhole struct{ Backend }

func (b blackhole) Base(h host.Facts, own lease.Lease) dataplane.State {
	s := b.Backend.Base(h, own)
	k := dataplane.RouteKey{Dst: own.Subnets.V4(), Metric: math.MaxUint32}
	s.Routes[k] = dataplane.Route{Blackhole: true, Proto: dataplane.ProtoFlannel}
	return s
}

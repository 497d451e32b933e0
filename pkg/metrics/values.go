package metrics

import (
	"iter"
	"net/netip"
	"time"

	"flanneld/pkg/filter"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lease"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnet"
	"flanneld/pkg/tunnel"
)

// Values are what the metrics are computed from: the state of the daemon at one moment. Before it
// serves a network, most are zero.
type Values struct {
	Version    string
	Backend    string // type
	Ready      bool
	Conditions int
	StoreUp    *bool // nil: not known yet

	View  *lease.View // nil before there is one
	Pool  lease.Pool  // zero before there is a network config
	Lease subnet.Stats
	Store store.Stats
	Loop  reconcile.Stats // Drift is nil if it is not known
	Rules filter.Stats
	Lock  filter.Stats // of the underlay's lock

	Device *kernel.Counters // nil if the backend has no device, or if it does not exist
	Tunnel *tunnel.Stats    // nil if the backend has no tunnel
	Probes *Probes          // nil if peers are not probed
}

// Probes are the results of probing the peers.
type Probes struct {
	Failures    uint64 // probes without an answer
	Unreachable int    // peers that have answered before and do not answer now
	// Peers are those that have answered before, as often as they are asked for.
	Peers iter.Seq[Probe]
}

// Probe is the result of probing a peer that has answered before.
type Probe struct {
	Peer        netip.Prefix
	RTT         time.Duration // 0 if there is none at present
	Failures    uint64
	Unreachable bool
}

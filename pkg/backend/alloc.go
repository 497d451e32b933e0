package backend

import (
	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

func init() { backends["alloc"] = func(netconf.Config) (Backend, error) { return alloc{}, nil } }

// alloc leases a subnet but programs nothing, because another program does the routing.
type alloc struct{}

func (alloc) MTU(h host.Facts) int { return h.MTU }

func (alloc) Attrs(h host.Facts, _ lease.Attrs, _ []lease.Lease) (lease.Attrs, error) {
	return lease.Attrs{PublicIP: h.PublicIP}, nil
}

func (alloc) Base(host.Facts, lease.Lease) dataplane.State { return dataplane.NewState() }

func (alloc) Accept(host.Facts, *lease.Lease) (Peer, error) { return Peer{}, errNoPeer }

func (alloc) Via(host.Facts, *lease.Lease) string { return "" }

func (alloc) Add(dataplane.State, host.Facts, Peer) {}

package backend

import (
	"fmt"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

func init() { backends["host-gw"] = func(netconf.Config) (Backend, error) { return hostGW{}, nil } }

// hostGW makes every host the gateway to its subnet. All hosts must be on one link. As a command,
// for a peer 10.42.9.0/24 at 198.51.100.9:
//
//	ip route replace 10.42.9.0/24 via 198.51.100.9 dev eth0 proto 70
//
// The protocol number is the proof of ownership, because the uplink is a foreign link.
type hostGW struct{}

func (hostGW) MTU(h host.Facts) int { return h.MTU }

func (hostGW) Attrs(h host.Facts, _ lease.Attrs, _ []lease.Lease) (lease.Attrs, error) {
	if h.PublicIP != h.Addr {
		return lease.Attrs{}, fmt.Errorf("public IP %s is not the address of %s, %s: host-gw cannot reach hosts behind NAT", h.PublicIP, h.Uplink, h.Addr)
	}
	return lease.Attrs{PublicIP: h.PublicIP, BackendType: "host-gw"}, nil
}

func (hostGW) Base(host.Facts, lease.Lease) dataplane.State { return dataplane.NewState() }

func (hostGW) Accept(h host.Facts, l *lease.Lease) (Peer, error) {
	if err := sameType(l, "host-gw"); err != nil {
		return Peer{}, err
	}
	if iface, ok := h.OnLink(l.PublicIP); !ok || iface != h.Uplink {
		return Peer{}, fault("public IP is not on the link of "+h.Uplink, "%s", l.PublicIP)
	}
	return newPeer(l), nil
}

func (hostGW) Via(h host.Facts, _ *lease.Lease) string { return h.Uplink }

func (hostGW) Add(s dataplane.State, h host.Facts, p Peer) {
	s.Routes[dataplane.RouteKey{Dst: p.Subnets.V4(), Link: h.Uplink}] = dataplane.Route{Via: p.PublicIP, Proto: dataplane.ProtoFlannel}
}

package backend

import (
	"fmt"
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

func init() { backends["host-gw"] = newHostGW }

// hostGW makes every host the gateway to its subnet. All hosts must be on one
// link. In commands, for a peer 10.42.9.0/24 at 198.51.100.9:
//
//	ip route replace 10.42.9.0/24 via 198.51.100.9 dev eth0 proto 70
//
// The protocol number is the proof that the route is ours, for the uplink is not.
type hostGW struct{ network netip.Prefix }

func newHostGW(c netconf.Config) (Backend, error) { return hostGW{c.Network}, nil }

func (hostGW) MTU(h host.Facts) int { return h.MTU }

func (hostGW) Attrs(h host.Facts, _ lease.Attrs) (lease.Attrs, error) {
	if h.PublicIP != h.Addr {
		return lease.Attrs{}, fmt.Errorf("public IP %s is not the address of %s, %s: host-gw cannot reach hosts behind NAT", h.PublicIP, h.Uplink, h.Addr)
	}
	return lease.Attrs{PublicIP: h.PublicIP, BackendType: "host-gw"}, nil
}

func (b hostGW) Desired(h host.Facts, v lease.View) (dataplane.State, []Skipped) {
	s := dataplane.NewState()
	good, skipped := peers(b.network, h, v, func(l lease.Lease) error {
		if err := sameType(l, "host-gw"); err != nil {
			return err
		}
		if iface, ok := host.OnLink(h.Underlay, l.PublicIP); !ok || iface != h.Uplink {
			return fmt.Errorf("public IP %s is not on the link of %s", l.PublicIP, h.Uplink)
		}
		return nil
	})
	for _, l := range good {
		s.Routes[dataplane.RouteKey{Dst: l.Subnet, Link: h.Uplink}] = dataplane.Route{Via: l.PublicIP, Proto: dataplane.ProtoFlannel}
	}
	return s, skipped
}

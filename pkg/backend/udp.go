package backend

import (
	"cmp"
	"fmt"
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
)

func init() { backends["udp"] = newUDP }

// udp carries each packet in a UDP datagram. It works in user space (package tunnel) and is for
// environments where VXLAN is blocked or unavailable. As commands, with our subnet 10.42.7.0/24:
//
//	ip tuntap add flannel0 mode tun
//	ip link set flannel0 mtu 1472 up
//	ip addr add 10.42.7.0/32 dev flannel0
//	ip route replace 10.42.0.0/16 dev flannel0 scope global
//
// One route sends the whole network to the device, unless that would divert packets that the host
// needs (safeBase). A forwarding table in user space with an entry for each peer selects the
// destination host.
//
// The lease has only the public IP. So, as in the original, any lease counts as a peer, whatever
// its backend.
type udp struct {
	network   netip.Prefix
	port      int
	anySource bool // accept packets from any source
	noOffload bool // do not use the kernel's offloads
}

const (
	udpDevice = "flannel0"
	udpPort   = 8285
	// udpOverhead is the size of the outer IPv4 and UDP headers.
	udpOverhead = 20 + 8
)

func newUDP(c netconf.Config) (Backend, error) {
	f := c.Backend
	b := &udp{
		network:   c.V4.Network,
		port:      f.Int("Port", udpPort, 1, 65535),
		anySource: f.Bool("AllowUnknownSources", false),
		noOffload: !f.Bool("Offload", true),
	}
	return b, f.Err()
}

func (*udp) MTU(h host.Facts) int { return h.MTU - udpOverhead }

func (b *udp) Attrs(h host.Facts, _ lease.Attrs, _ []lease.Lease) (lease.Attrs, error) {
	if b.MTU(h) < minMTU {
		return lease.Attrs{}, fmt.Errorf("MTU %d of %s leaves no room for UDP: at least %d is needed", h.MTU, h.Uplink, minMTU+udpOverhead)
	}
	return lease.Attrs{PublicIP: h.PublicIP}, nil
}

func (b *udp) Base(h host.Facts, own lease.Lease) dataplane.State {
	s, device := dataplane.NewState(), tunDevice(h)
	s.Links[device] = dataplane.Link{Kind: dataplane.KindTUN, Local: h.Addr, Port: b.port, AnySource: b.anySource, NoOffload: b.noOffload, MTU: b.MTU(h), Up: true}
	s.Addrs[dataplane.Addr{Link: device, Prefix: netip.PrefixFrom(own.Subnets.V4().Addr(), 32)}] = struct{}{}
	s.Tunnel[dataplane.TunnelKey{Link: device, Subnet: own.Subnets.V4()}] = netip.AddrPort{}
	s.Routes[dataplane.RouteKey{Dst: b.network, Link: device}] = dataplane.Route{Proto: dataplane.ProtoBoot}
	return s
}

// tunDevice returns the device: the default one, unless another network uses it.
func tunDevice(h host.Facts) string { return cmp.Or(h.TUN, udpDevice) }

func (*udp) Accept(_ host.Facts, l *lease.Lease) (Peer, error) { return newPeer(l), nil }

func (*udp) Via(h host.Facts, _ *lease.Lease) string { return tunDevice(h) }

func (b *udp) Add(s dataplane.State, h host.Facts, p Peer) {
	s.Tunnel[dataplane.TunnelKey{Link: tunDevice(h), Subnet: p.Subnets.V4()}] = netip.AddrPortFrom(p.PublicIP, uint16(b.port))
}

package filter

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"flanneld/pkg/backend"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
)

// Feed computes the inputs of a Filter and a Lock from the latest facts and the latest view of a
// network. Its methods never block. They may be called by several goroutines, except SetView, which
// is for one.
type Feed struct {
	Network backend.Network
	Rules   *Filter
	Lock    *Lock

	mu    sync.Mutex
	facts *host.Facts // nil before the first
	known bool        // facts are current
	view  *lease.View // nil before the first
}

// SetFacts sets the facts about this host. While they are unknown, rules follow from the last known
// facts, and nothing is probed.
func (f *Feed) SetFacts(facts host.Facts, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known = err == nil; f.known {
		f.facts = &facts
	}
	f.push()
}

// SetView sets the view of the network.
func (f *Feed) SetView(v lease.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = &v
	f.Lock.SetView(v)
	f.push()
}

func (f *Feed) push() {
	if f.facts == nil || f.view == nil {
		return
	}
	in, lock := InputOf(f.Network, *f.facts, *f.view)
	if !f.known {
		in.Probes = nil
	}
	f.Rules.Set([]Input{in})
	f.Lock.SetTunnel(lock)
}

// InputOf returns the inputs of a Filter and a Lock that follow from facts and a view.
func InputOf(n backend.Network, f host.Facts, v lease.View) (Input, firewall.Lock) {
	network := n.V4.Network
	_, link := n.Link(f, v.Own)
	in := Input{
		Overlay: firewall.Overlay{Network: network, Subnet: v.Own.Subnets.V4()},
		Probes:  probesOf(network, f, v, link),
	}
	if link.Port != 0 {
		in.Tunnel = tunnelOf(network, f, link)
	}
	return in, firewall.Lock{
		Network: network, Port: uint16(link.Port), Local: link.Local, Bound: bindsPort(link), VNI: uint32(link.VNI),
	}
}

// bindsPort reports whether the link receives on one address only and sends from its port.
func bindsPort(link dataplane.Link) bool { return link.Kind == dataplane.KindTUN }

// tunnelOf returns the description of a tunnel link for the packet filter.
func tunnelOf(network netip.Prefix, f host.Facts, link dataplane.Link) firewall.Tunnel {
	t := firewall.Tunnel{Port: uint16(link.Port), Bound: bindsPort(link)}
	inside := false // the uplink's address is in one of t.Hosts
	for _, r := range f.Underlay {
		if r.Iface == f.Uplink && !r.Gateway.IsValid() && r.Dst.Bits() > network.Bits() && network.Contains(r.Dst.Addr()) {
			t.Hosts = append(t.Hosts, r.Dst)
			inside = inside || r.Dst.Contains(f.Addr)
		}
	}
	if !inside && network.Contains(f.Addr) {
		t.Hosts = append(t.Hosts, netip.PrefixFrom(f.Addr, f.Addr.BitLen()))
	}
	return t
}

const (
	// vxlanSourcePort is an example: the kernel chooses source ports of VXLAN packets from a range.
	vxlanSourcePort = 40000
	// mostPeers is how many peers are examples of sources of packets.
	mostPeers = 8
)

// probesOf returns packets that other programs' rules might drop.
func probesOf(network netip.Prefix, f host.Facts, v lease.View, link dataplane.Link) *Probes {
	var p Probes
	for _, peer := range v.Peers[:min(len(v.Peers), mostPeers)] {
		p.Peers = append(p.Peers, peer.PublicIP)
	}
	if link.Port != 0 {
		p.Tunnel = &firewall.Packet{
			In: f.Uplink, Dst: f.Addr, ToHost: true,
			Protocol: unix.IPPROTO_UDP, SrcPort: uint16(link.Port), DstPort: uint16(link.Port),
		}
		if link.Kind == dataplane.KindVXLAN {
			p.Tunnel.SrcPort = vxlanSourcePort
		}
	}
	here, there := v.Own.Subnets.V4().Addr().Next(), network.Addr().Next()
	if v.Own.Subnets.V4().Contains(there) {
		there = lease.LastAddr(network)
	}
	p.Inner = []firewall.Packet{{Src: here, Dst: there}, {Src: there, Dst: here}}
	return &p
}

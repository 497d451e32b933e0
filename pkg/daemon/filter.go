package daemon

import (
	"context"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/filter"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/host"
	"flanneld/pkg/iptables"
	"flanneld/pkg/lease"
	"flanneld/pkg/nftables"
	"flanneld/pkg/presence"
)

// newFilter makes what keeps the packet filter's rules, and the underlay's lock.
func (d *daemon) newFilter(nft *nftables.Keeper) (*filter.Filter, *filter.Lock) {
	ipt := iptables.NewTools(d.options.Rules.Resync)
	rules := filter.New(filter.Config{
		Options: d.options.Rules, Choice: d.net.NFTables,
		Keepers:    filter.Keepers{IPTables: ipt.Installed(), Compat: ipt.Compat(), Legacy: ipt.Legacy(), NFTables: nft},
		Former:     []firewall.Overlay{{Network: d.former.Network, Subnet: d.former.Subnet}},
		Taken:      taken,
		Firewalld:  func(ctx context.Context) (filter.Firewalld, error) { return firewalld.Dial(ctx) },
		Conditions: d.conditions, Log: d.log,
	})
	lock := filter.NewLock(filter.LockConfig{
		Wanted: d.options.Rules.Lock, Network: d.net.Network, Former: d.former.Network, Taken: taken,
		Open:  func() (filter.Locker, error) { return nft.OpenLock() },
		Table: nftables.LockTable(d.net.Network), Conditions: d.conditions, Log: d.log,
	})
	lock.SetView(*d.view.Load())
	return rules, lock
}

// taken reports whether another daemon of this host serves the network of a former overlay by
// now. Doubt means yes: better that rules stay than that another's go.
func taken(o firewall.Overlay) bool {
	holders, err := presence.Holders()
	return err != nil || slices.ContainsFunc(holders, func(h presence.Holder) bool { return h.Network == o.Network })
}

// setFilter tells the packet filter what its rules follow from. While the facts are not known, it
// goes by the last ones, and asks nothing.
func (d *daemon) setFilter(f host.Facts, known bool) {
	own := d.view.Load().Own
	in := filter.Input{
		Overlay: firewall.Overlay{Network: d.net.Network, Subnet: own.Subnet},
		Tunnel:  d.tunnel(f, own),
	}
	link, ok := d.tunnelLink(f, own)
	if known {
		in.Probes = d.probes(link, ok)
	}
	d.rules.Set([]filter.Input{in})
	d.lock.SetTunnel(firewall.Lock{
		Network: d.net.Network, Port: uint16(link.Port), Local: link.Local, Bound: bindsPort(link), VNI: uint32(link.VNI),
	}, ok)
}

// tunnelLink returns the link that other hosts send to, if the backend has one.
func (d *daemon) tunnelLink(f host.Facts, own lease.Lease) (link dataplane.Link, ok bool) {
	for _, l := range d.net.Base(f, own).Links {
		if l.Port != 0 {
			return l, true
		}
	}
	return link, false
}

// bindsPort reports whether the link has its port at one address, and sends from there.
func bindsPort(link dataplane.Link) bool { return link.Kind == dataplane.KindTUN }

// tunnel is what the packet filter has to know of that link.
func (d *daemon) tunnel(f host.Facts, own lease.Lease) (t firewall.Tunnel) {
	link, ok := d.tunnelLink(f, own)
	if !ok {
		return t
	}
	t.Port, t.Bound = uint16(link.Port), bindsPort(link)
	inside := false // the uplink's address is in one of them
	for _, r := range f.Underlay {
		if r.Iface == f.Uplink && !r.Gateway.IsValid() && r.Dst.Bits() > d.net.Network.Bits() && d.net.Network.Contains(r.Dst.Addr()) {
			t.Hosts = append(t.Hosts, r.Dst)
			inside = inside || r.Dst.Contains(f.Addr)
		}
	}
	if !inside && d.net.Network.Contains(f.Addr) {
		t.Hosts = append(t.Hosts, netip.PrefixFrom(f.Addr, f.Addr.BitLen()))
	}
	return t
}

// probes are packets that others' rules might drop.
func (d *daemon) probes(link dataplane.Link, tunnel bool) *filter.Probes {
	var p filter.Probes
	view, uplink := d.view.Load(), d.uplink.Load()
	for _, peer := range view.Peers[:min(len(view.Peers), filter.MostPeers)] {
		p.Peers = append(p.Peers, peer.PublicIP)
	}
	if tunnel {
		p.Tunnel = &firewall.Packet{
			In: uplink.Iface, Dst: uplink.Addr, ToHost: true,
			Protocol: unix.IPPROTO_UDP, SrcPort: uint16(link.Port), DstPort: uint16(link.Port),
		}
		if link.Kind == dataplane.KindVXLAN {
			p.Tunnel.SrcPort = vxlanSourcePort
		}
	}
	here, there := view.Own.Subnet.Addr().Next(), d.net.Network.Addr().Next()
	if view.Own.Subnet.Contains(there) {
		there = lastOf(d.net.Network)
	}
	p.Inner = []firewall.Packet{{Src: here, Dst: there}, {Src: there, Dst: here}}
	return &p
}

// vxlanSourcePort is any source port of a VXLAN packet: the kernel chooses among many.
const vxlanSourcePort = 40000

// lastOf is a prefix's last address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

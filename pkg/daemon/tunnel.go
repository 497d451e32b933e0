package daemon

import (
	"net/netip"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/host"
)

// tunnelLink returns the link that other hosts send to, if the backend has one.
func (d *daemon) tunnelLink(f host.Facts) (link dataplane.Link, ok bool) {
	for _, l := range d.net.Base(f, d.view.Load().Own).Links {
		if l.Port != 0 {
			return l, true
		}
	}
	return link, false
}

// bindsPort reports whether the link has its port at one address, and sends from there.
func bindsPort(link dataplane.Link) bool { return link.Kind == dataplane.KindTUN }

// tunnel is what the packet filter has to know of that link.
func (d *daemon) tunnel() (t firewall.Tunnel) {
	f := d.facts.last()
	link, ok := d.tunnelLink(f)
	if !ok {
		return t
	}
	t.Port, t.Bound = uint16(link.Port), bindsPort(link)
	own := false // the uplink's address is in one of them
	for _, r := range f.Underlay {
		if r.Iface == f.Uplink && !r.Gateway.IsValid() && r.Dst.Bits() > d.net.Network.Bits() && d.net.Network.Contains(r.Dst.Addr()) {
			t.Hosts = append(t.Hosts, r.Dst)
			own = own || r.Dst.Contains(f.Addr)
		}
	}
	if !own && d.net.Network.Contains(f.Addr) {
		t.Hosts = append(t.Hosts, netip.PrefixFrom(f.Addr, f.Addr.BitLen()))
	}
	return t
}

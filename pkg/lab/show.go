package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FlannelLink returns the name and MTU of the host's first device named flannel*; of its uplink if there is none,
// since a backend without a device of its own uses that.
func (h *Host) FlannelLink() (name string, mtu int, err error) {
	err = h.NS.configure(func(own *netlink.Handle) error {
		links, err := flannelLinks(own)
		if err != nil {
			return err
		}
		if len(links) == 0 {
			uplink, err := own.LinkByName(h.Uplink)
			if err != nil {
				return fmt.Errorf("find link %s: %w", h.Uplink, err)
			}
			links = []netlink.Link{uplink}
		}
		name, mtu = links[0].Attrs().Name, links[0].Attrs().MTU
		return nil
	})
	return name, mtu, err
}

// Show tells what flanneld has programmed on the host, one object a line in the notation of ip(8): its devices with
// their addresses, neighbours and forwarding entries, and every route inside network that the kernel did not make.
func (h *Host) Show(network netip.Prefix) (string, error) {
	var lines []string
	err := h.NS.configure(func(own *netlink.Handle) error {
		links, err := flannelLinks(own)
		if err != nil {
			return err
		}
		for _, link := range links {
			text, err := showLink(own, link)
			if err != nil {
				return err
			}
			lines = append(lines, text...)
		}
		text, err := showRoutes(own, network)
		lines = append(lines, text...)
		return err
	})
	return strings.Join(lines, "\n"), err
}

func flannelLinks(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !strings.HasPrefix(l.Attrs().Name, "flannel") }), nil
}

func showLink(h *netlink.Handle, link netlink.Link) ([]string, error) {
	name := link.Attrs().Name
	text := fmt.Sprintf("link  %s mtu %d", name, link.Attrs().MTU)
	if mac := link.Attrs().HardwareAddr; len(mac) > 0 {
		text += " address " + mac.String()
	}
	text += " type " + link.Type()
	if vxlan, ok := link.(*netlink.Vxlan); ok {
		text += fmt.Sprintf(" id %d local %s dstport %d", vxlan.VxlanId, vxlan.SrcAddr, vxlan.Port)
		if !vxlan.Learning {
			text += " nolearning"
		}
	}
	lines := []string{text}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("addr  %s dev %s", a.IPNet, name))
	}
	neighs, err := h.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list neighbours on %s: %w", name, err)
	}
	for _, n := range neighs {
		if n.State&unix.NUD_PERMANENT != 0 {
			lines = append(lines, fmt.Sprintf("neigh %s lladdr %s dev %s nud permanent", n.IP, n.HardwareAddr, name))
		}
	}
	fdb, err := h.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries of %s: %w", name, err)
	}
	for _, n := range fdb {
		if n.IP != nil {
			lines = append(lines, fmt.Sprintf("fdb   %s dev %s dst %s self permanent", n.HardwareAddr, name, n.IP))
		}
	}
	return lines, nil
}

func showRoutes(h *netlink.Handle, network netip.Prefix) ([]string, error) {
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var lines []string
	for _, r := range routes {
		if r.Dst == nil || !inside(network, r.Dst) || r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		text := "route " + r.Dst.String()
		if r.Gw != nil {
			text += " via " + r.Gw.String()
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			text += " dev " + link.Attrs().Name
		}
		text += " proto " + r.Protocol.String()
		if r.Flags&int(netlink.FLAG_ONLINK) != 0 {
			text += " onlink"
		}
		lines = append(lines, text)
	}
	return lines, nil
}

func inside(network netip.Prefix, n *net.IPNet) bool {
	addr, ok := netip.AddrFromSlice(n.IP)
	return ok && network.Contains(addr.Unmap())
}

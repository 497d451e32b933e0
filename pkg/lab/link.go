package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// onLink does something to a link.
func onLink(h *netlink.Handle, name string, do func(netlink.Link) error) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = do(link)
	}
	if err != nil {
		return fmt.Errorf("configure link %s: %w", name, err)
	}
	return nil
}

func setUp(h *netlink.Handle, name string) error { return onLink(h, name, h.LinkSetUp) }

// addBridge creates a bridge and sets it up. Its MAC address is set explicitly: else it would
// change when ports are added or removed, and leave neighbours with stale ARP entries.
func addBridge(h *netlink.Handle, name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, randomMAC()
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return setUp(h, name)
}

// A cable is a veth pair between a port of a bridge and a device in another namespace.
type cable struct {
	bridge, port string     // in the namespace of the handle
	peer         *Namespace // namespace of the other end
	device       string     // name of the other end
	mtu          int
	mac          net.HardwareAddr // of the device; nil for a random one
}

// addCable creates the pair and sets both ends up.
func addCable(h *netlink.Handle, c cable) error {
	if err := addPair(h, c); err != nil {
		return err
	}
	if err := setUp(h, c.port); err != nil {
		return err
	}
	return c.peer.configure(func(h *netlink.Handle) error { return setUp(h, c.device) })
}

// addPair creates the pair and leaves both ends down.
func addPair(h *netlink.Handle, c cable) error {
	bridge, err := h.LinkByName(c.bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.bridge, err)
	}
	err = c.peer.WithFD(func(fd int) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = c.port, c.mtu, bridge.Attrs().Index
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = c.device, uint32(c.mtu), netlink.NsFd(fd)
		veth.PeerHardwareAddr = c.mac
		return h.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("add veth %s to %s in %s: %w", c.port, c.device, c.peer.Name, err)
	}
	return nil
}

// setMaster makes a link a port of a bridge, or of none if the bridge's name is empty.
func setMaster(h *netlink.Handle, name, bridge string) error {
	return onLink(h, name, func(port netlink.Link) error {
		if bridge == "" {
			return h.LinkSetNoMaster(port)
		}
		return onLink(h, bridge, func(master netlink.Link) error { return h.LinkSetMaster(port, master) })
	})
}

// setAddr makes addr the only IPv4 address of a link.
func setAddr(h *netlink.Handle, name string, addr netip.Prefix) error {
	return onLink(h, name, func(link netlink.Link) error {
		have, err := h.AddrList(link, netlink.FAMILY_V4)
		want := &netlink.Addr{IPNet: ipNet(addr)}
		for _, a := range have {
			if a.IPNet.String() != want.IPNet.String() {
				err = errors.Join(err, h.AddrDel(link, &a))
			}
		}
		return errors.Join(err, h.AddrReplace(link, want))
	})
}

// connect gives a device its address and a default route via a router.
func (n *Namespace) connect(device string, addr netip.Prefix, router netip.Addr) error {
	return n.configure(func(h *netlink.Handle) error {
		if err := setAddr(h, device, addr); err != nil {
			return err
		}
		return onLink(h, device, func(link netlink.Link) error {
			return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: router.AsSlice()})
		})
	})
}

// offset returns the address n after a.
func offset(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// randomMAC returns a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

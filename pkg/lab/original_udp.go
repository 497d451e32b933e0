package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An OriginalUDP behaves in the kernel and on the wire like the udp backend of the original, of any
// release from 0.11 on, for a fixed set of peers: a TUN device flannel%d, the subnet's address with
// /32, a route for the network, and a socket at port 8285 with one packet in each datagram.
type OriginalUDP struct {
	Device string // name chosen by the kernel
	tun    *os.File
	udp    *net.UDPConn
	peers  map[netip.Prefix]netip.Addr
}

const (
	originalUDPPort     = 8285
	originalUDPOverhead = 28
)

// StartOriginalUDP starts one in the network namespace of the calling thread. addr is the uplink's
// address, peers are public IPs by subnet.
func StartOriginalUDP(network, subnet netip.Prefix, addr netip.Addr, mtu int, peers map[netip.Prefix]netip.Addr) (*OriginalUDP, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open TUN: %w", err)
	}
	request, err := unix.NewIfreq("flannel%d")
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, request), unix.SetNonblock(fd, true))
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN device: %w", err)
	}
	o := &OriginalUDP{Device: request.Name(), tun: os.NewFile(uintptr(fd), request.Name()), peers: peers}
	if o.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, originalUDPPort))); err == nil {
		err = o.configure(network, subnet, mtu)
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	go o.send()
	go o.receive()
	return o, nil
}

func (o *OriginalUDP) configure(network, subnet netip.Prefix, mtu int) error {
	link, err := netlink.LinkByName(o.Device)
	if err != nil {
		return fmt.Errorf("find %s: %w", o.Device, err)
	}
	if err := errors.Join(
		netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(subnet.Addr(), 32))}),
		netlink.LinkSetMTU(link, mtu-originalUDPOverhead),
		netlink.LinkSetUp(link),
	); err != nil {
		return fmt.Errorf("configure %s: %w", o.Device, err)
	}
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_UNIVERSE, Dst: ipNet(network)})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route %s: %w", network, err)
	}
	return nil
}

// Close stops it. The kernel removes the device.
func (o *OriginalUDP) Close() error {
	err := o.tun.Close()
	if o.udp != nil {
		err = errors.Join(err, o.udp.Close())
	}
	return err
}

func (o *OriginalUDP) send() {
	packet := make([]byte, 64<<10)
	for {
		n, err := o.tun.Read(packet)
		if err != nil {
			return
		}
		if !decrementTTL(packet[:n]) {
			continue
		}
		dst := netip.AddrFrom4([4]byte(packet[16:]))
		for subnet, peer := range o.peers {
			if subnet.Contains(dst) {
				o.udp.WriteToUDPAddrPort(packet[:n], netip.AddrPortFrom(peer, originalUDPPort))
			}
		}
	}
}

func (o *OriginalUDP) receive() {
	packet := make([]byte, 64<<10)
	for {
		n, err := o.udp.Read(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && decrementTTL(packet[:n]) {
			o.tun.Write(packet[:n])
		}
	}
}

// decrementTTL decrements the TTL of an IPv4 packet and reports whether the packet may be
// forwarded.
func decrementTTL(packet []byte) bool {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[8] <= 1 {
		return false
	}
	packet[8]--
	sum := uint32(binary.BigEndian.Uint16(packet[10:])) + 0x100 // RFC 1141
	binary.BigEndian.PutUint16(packet[10:], uint16(sum+sum>>16))
	return true
}

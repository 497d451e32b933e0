package tunnel

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

// Descriptors keeps descriptors open under names, also for the next run of this program, so that
// device and socket outlive the process and queue packets meanwhile. Otherwise both are closed with
// the process: a TUN device without a process discards what is routed to it.
type Descriptors interface {
	Names() []string                           // names of all descriptors, sorted
	Take(name string) (duplicate int, ok bool) // duplicates the descriptor
	Keep(name string, fd int)                  // keeps a duplicate of fd
	Remove(name string)
}

// descriptorStore keeps the descriptors of tunnels.
type descriptorStore struct{ Descriptors }

const (
	// tunPrefix is the prefix of the names of TUN devices.
	tunPrefix = "tun-"
	// tunDevices is the number of TUN devices that are tried.
	tunDevices = 64
)

// chooseTUN opens the TUN device of this host's overlay, and returns its name: the one that is
// kept, else the one with an address of the network, else the first of flannel0, flannel1, … that
// no other program uses and that has no addresses of networks other than the former one. If none
// can be opened, opening the returned one fails with the reason.
func (s descriptorStore) chooseTUN(inv host.Inventory, network, former netip.Prefix) string {
	name := s.findTUN(inv, network, former)
	for _, other := range s.Names() {
		if device, ok := strings.CutPrefix(other, tunPrefix); ok && device != name {
			s.Remove(other)
		}
	}
	return name
}

func (s descriptorStore) findTUN(inv host.Inventory, network, former netip.Prefix) string {
	names := make([]string, tunDevices)
	for n := range names {
		names[n] = "flannel" + strconv.Itoa(n)
	}
	// Devices with addresses of the network, of the former one, and of others.
	ours, stale, foreign := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, i := range inv.Ifaces {
		for _, a := range i.Addrs {
			switch ip := a.Prefix.Addr(); {
			case network.Contains(ip):
				ours[i.Name] = true
			case former.Contains(ip):
				stale[i.Name] = true
			case ip.Is4():
				foreign[i.Name] = true
			}
		}
	}
	for _, name := range s.Names() {
		device, ok := strings.CutPrefix(name, tunPrefix)
		if before := stale[device] || foreign[device]; !ok || before && !ours[device] {
			continue // it was another network's, whose routes would remain
		}
		if s.tryTUN(device) == nil {
			return device
		}
	}
	for _, name := range names {
		if ours[name] {
			return name
		}
	}
	for n, name := range names {
		if foreign[name] {
			continue
		}
		if stale[name] { // closing deletes it with its addresses and routes
			if tun, err := OpenTUN(name, Offloads{}); err == nil {
				tun.Close()
			}
		}
		if err := s.tryTUN(name); err == nil || n == 0 && !errors.Is(err, unix.EBUSY) {
			return name
		}
	}
	return names[0]
}

// tryTUN opens a TUN device.
func (s descriptorStore) tryTUN(device string) error {
	tun, err := s.openTUN(device, AllOffloads())
	if err != nil {
		return err
	}
	return tun.Close() // the kept descriptor remains open
}

// open returns the device and the socket of a tunnel: the kept ones if they still match, else new
// ones.
func (s descriptorStore) open(device string, local netip.AddrPort, o Offloads) (*TUN, *UDP, error) {
	tun, err := s.openTUN(device, o)
	if err != nil {
		return nil, nil, err
	}
	udp, err := s.openUDP(local, o)
	if err != nil {
		tun.Close()
		return nil, nil, err
	}
	return tun, udp, nil
}

func (s descriptorStore) openTUN(device string, o Offloads) (*TUN, error) {
	name := tunPrefix + device
	if fd, ok := s.Take(name); ok {
		tun, err := AdoptTUN(fd, o)
		if err == nil && tun.Name() == device {
			return tun, nil
		}
		if err == nil {
			tun.Close()
		} else {
			unix.Close(fd) // the device was deleted meanwhile
		}
		s.Remove(name)
	}
	tun, err := OpenTUN(device, o)
	if err == nil {
		s.Keep(name, tun.FD())
	}
	return tun, err
}

func (s descriptorStore) openUDP(local netip.AddrPort, o Offloads) (*UDP, error) {
	const name = "udp-tunnel"
	if fd, ok := s.Take(name); ok {
		if bound(fd) == local {
			if udp, err := AdoptUDP(fd, o); err == nil {
				return udp, nil
			}
		}
		unix.Close(fd)
		s.Remove(name)
	}
	udp, err := ListenUDP(local, o)
	if err == nil {
		s.Keep(name, udp.FD())
	}
	return udp, err
}

func bound(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if in, ok := sa.(*unix.SockaddrInet4); err == nil && ok {
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	}
	return netip.AddrPort{}
}

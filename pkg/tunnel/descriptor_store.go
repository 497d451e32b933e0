package tunnel

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
)

// Descriptors keeps descriptors open under names, for the next run of this program too, so that
// device and socket outlive it and packets wait in them meanwhile. Without that, both go with
// it: a TUN device without a program behind it swallows what is routed there.
type Descriptors interface {
	Names() []string                           // of those that are kept, sorted
	Take(name string) (duplicate int, ok bool) // of the one that is kept
	Keep(name string, fd int)                  // a duplicate of it
	Remove(name string)
}

// descriptorStore is what is kept of tunnels.
type descriptorStore struct{ Descriptors }

const (
	// tunPrefix begins the names under which TUN devices are kept.
	tunPrefix = "tun-"
	// tunDevices is how many TUN devices are tried.
	tunDevices = 64
)

// chooseTUN takes the TUN device that this host's overlay has, and returns its name: the
// one that is kept, else the one that bears an address of the network, else the first of
// flannel0, flannel1, … that no other program has and that bears no addresses of
// other networks than the former one. Where none can be had, opening the one that is
// returned says why.
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
	// Which devices have addresses of the network, of the former one, of others.
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
			continue // it was another network's, whose routes would stay
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
		if stale[name] { // its addresses and routes go with it
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

// tryTUN takes a TUN device.
func (s descriptorStore) tryTUN(device string) error {
	tun, err := s.openTUN(device, AllOffloads())
	if err != nil {
		return err
	}
	return tun.Close() // what is kept remains
}

// open returns the device and the socket of a tunnel: those that were kept if they
// still fit, else new ones.
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

package tunnel

import (
	"errors"
	"net/netip"
	"slices"
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
	names := tunNames()
	ours, stale, foreign := devicesByNetwork(inv, network, former)
	for _, name := range s.Names() {
		device, ok := strings.CutPrefix(name, tunPrefix)
		if before := stale[device] || foreign[device]; !ok || before && !ours[device] {
			continue // it was another network's, whose routes would remain
		}
		if s.tryTUN(device) == nil {
			return device
		}
	}
	if i := slices.IndexFunc(names, func(name string) bool { return ours[name] }); i >= 0 {
		return names[i]
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

// Candidate returns the name of the TUN device that Driver.Choose would probably choose. It opens no
// device, so it does not know which ones other programs use.
func Candidate(inv host.Inventory, network, former netip.Prefix) string {
	names := tunNames()
	ours, _, foreign := devicesByNetwork(inv, network, former)
	if i := slices.IndexFunc(names, func(name string) bool { return ours[name] }); i >= 0 {
		return names[i]
	}
	return names[max(0, slices.IndexFunc(names, func(name string) bool { return !foreign[name] }))]
}

// tunNames returns the names of devices that are tried.
func tunNames() []string {
	names := make([]string, tunDevices)
	for n := range names {
		names[n] = "flannel" + strconv.Itoa(n)
	}
	return names
}

// devicesByNetwork returns the devices with addresses of a network, of the former one, and of
// others.
func devicesByNetwork(inv host.Inventory, network, former netip.Prefix) (ours, stale, foreign map[string]bool) {
	ours, stale, foreign = map[string]bool{}, map[string]bool{}, map[string]bool{}
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
	return ours, stale, foreign
}

// tryTUN opens a TUN device.
func (s descriptorStore) tryTUN(device string) error {
	tun, err := s.openTUN(device, AllOffloads())
	if err != nil {
		return err
	}
	return tun.Close() // the kept descriptor remains open
}

// open returns the device and the socket of a tunnel.
func (s descriptorStore) open(device string, local netip.AddrPort, o Offloads) (*TUN, *UDP, error) {
	tun, err := s.openTUN(device, o)
	if err != nil {
		return nil, nil, err
	}
	udp, err := keptOrNew(s, "udp-tunnel",
		func(fd int) (*UDP, error) { return AdoptUDP(fd, o) },
		func(u *UDP) bool { return u.Addr() == local },
		func() (*UDP, error) { return ListenUDP(local, o) })
	if err != nil {
		tun.Close()
	}
	return tun, udp, err
}

func (s descriptorStore) openTUN(device string, o Offloads) (*TUN, error) {
	return keptOrNew(s, tunPrefix+device,
		func(fd int) (*TUN, error) { return AdoptTUN(fd, o) },
		func(t *TUN) bool { return t.Name() == device },
		func() (*TUN, error) { return OpenTUN(device, o) })
}

// keptOrNew adopts the descriptor that is kept under a name, if it still fits. Otherwise it opens
// and keeps a new one.
func keptOrNew[E interface {
	FD() int
	Close() error
}](s descriptorStore, name string, adopt func(fd int) (E, error), fits func(E) bool, open func() (E, error)) (E, error) {
	if fd, ok := s.Take(name); ok {
		e, err := adopt(fd)
		switch {
		case err != nil:
			unix.Close(fd) // the device was deleted meanwhile
		case fits(e):
			return e, nil
		default:
			e.Close()
		}
		s.Remove(name)
	}
	e, err := open()
	if err == nil {
		s.Keep(name, e.FD())
	}
	return e, err
}

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"flanneld/pkg/host"
	"flanneld/pkg/tunnel"
)

// fdStore keeps the descriptors of tunnels open, here and in systemd's
// descriptor store (sd_pid_notify_with_fds(3)), so that device and socket outlive
// the daemon, and packets wait in them while it starts again. Without systemd both
// go with it: a TUN device without a daemon behind it swallows what is routed there.
type fdStore struct {
	log     *slog.Logger
	program executable
	kept    map[string]*os.File // by name; each has duplicates in use
}

const (
	// tunPrefix begins the names under which TUN devices are kept.
	tunPrefix = "tun-"
	// tunDevices is how many TUN devices are tried.
	tunDevices = 64
)

func newFDStore(log *slog.Logger) *fdStore {
	s := &fdStore{log: log, program: newExecutable(), kept: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		s.kept[f.Name()] = f
	}
	return s
}

// close gives the descriptors up here; systemd's remain, unless what it will start next
// is another program: that would have them without knowing, could not bind the socket's
// address and would leave the device without anybody behind it.
func (s *fdStore) close() {
	if len(s.kept) > 0 && s.program.replaced() {
		s.log.Info("another program is in this one's place now: giving up the tunnel's device and socket", "path", s.program.paths[0])
		s.removeAll()
	}
	for _, f := range s.kept {
		f.Close()
	}
}

// chooseTUN takes the TUN device that this host's overlay has, and returns its name: the
// one that is kept, else the one that bears an address of the network, else the first of
// flannel0, flannel1, … that no other program has and that bears no addresses of
// other networks than the former one. Where none can be had, opening the one that is
// returned says why.
func (s *fdStore) chooseTUN(inv host.Inventory, network, former netip.Prefix) string {
	name := s.takeTUN(inv, network, former)
	for kept := range s.kept {
		if device, ok := strings.CutPrefix(kept, tunPrefix); ok && device != name {
			s.remove(kept)
		}
	}
	return name
}

func (s *fdStore) takeTUN(inv host.Inventory, network, former netip.Prefix) string {
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
	for _, kept := range slices.Sorted(maps.Keys(s.kept)) {
		device, ok := strings.CutPrefix(kept, tunPrefix)
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
			if tun, err := tunnel.OpenTUN(name, tunnel.Offloads{}); err == nil {
				tun.Close()
			}
		}
		if err := s.tryTUN(name); err == nil || n == 0 && !errors.Is(err, unix.EBUSY) {
			return name
		}
	}
	return names[0]
}

// removeAll gives up what was kept for a backend that is no longer used.
func (s *fdStore) removeAll() {
	for name := range s.kept {
		s.remove(name)
	}
}

// tryTUN takes a TUN device.
func (s *fdStore) tryTUN(device string) error {
	tun, err := s.openTUN(device, tunnel.AllOffloads())
	if err != nil {
		return err
	}
	return tun.Close() // what is kept remains
}

// open gives the device and the socket of a tunnel: those that were kept if they
// still fit, else new ones.
func (s *fdStore) open(device string, local netip.AddrPort, o tunnel.Offloads) (*tunnel.TUN, *tunnel.UDP, error) {
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

func (s *fdStore) openTUN(device string, o tunnel.Offloads) (*tunnel.TUN, error) {
	name := tunPrefix + device
	if fd, ok := s.take(name); ok {
		tun, err := tunnel.AdoptTUN(fd, o)
		if err == nil && tun.Name() == device {
			return tun, nil
		}
		if err == nil {
			tun.Close()
		} else {
			unix.Close(fd) // the device was deleted meanwhile
		}
		s.remove(name)
	}
	tun, err := tunnel.OpenTUN(device, o)
	if err == nil {
		s.keep(name, tun.FD())
	}
	return tun, err
}

func (s *fdStore) openUDP(local netip.AddrPort, o tunnel.Offloads) (*tunnel.UDP, error) {
	const name = "udp-tunnel"
	if fd, ok := s.take(name); ok {
		if bound(fd) == local {
			if udp, err := tunnel.AdoptUDP(fd, o); err == nil {
				return udp, nil
			}
		}
		unix.Close(fd)
		s.remove(name)
	}
	udp, err := tunnel.ListenUDP(local, o)
	if err == nil {
		s.keep(name, udp.FD())
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

// take gives a duplicate of what is kept under a name.
func (s *fdStore) take(name string) (fd int, ok bool) {
	f, ok := s.kept[name]
	if !ok {
		return 0, false
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return fd, err == nil
}

// keep keeps a duplicate of fd under a name.
func (s *fdStore) keep(name string, fd int) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.log.Warn("cannot use systemd's descriptor store", "err", err)
		return
	}
	s.kept[name] = os.NewFile(uintptr(dup), name)
	s.notify("FDSTORE=1\nFDNAME="+name, dup)
}

// remove gives up what is kept under a name, for it does not fit any more.
func (s *fdStore) remove(name string) {
	s.kept[name].Close()
	delete(s.kept, name)
	s.notify("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// notify tells systemd something, if it listens. What fails is worth no more
// than a line: the next restart will lose a few packets.
func (s *fdStore) notify(state string, fds ...int) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if err := send(path, state, fds); err != nil {
		s.log.Warn("cannot use systemd's descriptor store", "err", err)
	}
}

func send(path, state string, fds []int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s, []byte(state), rights, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		return fmt.Errorf("notify %s: %w", path, err)
	}
	return nil
}

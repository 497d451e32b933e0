package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"flanneld/pkg/tunnel"
)

// fdStore keeps the descriptors of tunnels open, here and in systemd's
// descriptor store (sd_pid_notify_with_fds(3)), so that packets wait in them
// while a tunnel or the whole daemon starts again. Without systemd a TUN device
// stays by itself, and only what arrives at the socket in between is lost.
type fdStore struct {
	log  *slog.Logger
	kept map[string]*os.File // by name; each has duplicates in use
}

func newFDStore(log *slog.Logger) *fdStore {
	s := &fdStore{log: log, kept: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		s.kept[f.Name()] = f
	}
	return s
}

// close gives the descriptors up here; systemd's remain.
func (s *fdStore) close() {
	for _, f := range s.kept {
		f.Close()
	}
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
	name := "tun-" + device
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
		return // out of descriptors: there are worse worries than the next restart
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

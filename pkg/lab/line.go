package lab

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A line connects two TUN devices, one on the router and one on a host, as PPP or a VPN does:
// without a link layer and neighbours.
type line struct {
	near *os.File // the router's end

	mu  sync.Mutex
	far *os.File // the host's end; nil while the host is powered off
}

func (s *Site) addLine(port string) (*line, error) {
	near, err := openTUN(s.Router, port)
	if err != nil {
		return nil, err
	}
	l := &line{near: near}
	s.mu.Lock()
	s.lines = append(s.lines, l)
	s.mu.Unlock()
	go copyPackets(near, l.host)
	return l, nil
}

// connect creates the host's end with the name of its device.
func (l *line) connect(ns *Namespace, device string) error {
	far, err := openTUN(ns, device)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.far = far
	l.mu.Unlock()
	go copyPackets(far, func() *os.File { return l.near })
	return nil
}

// disconnect removes the host's end.
func (l *line) disconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.far != nil {
		l.far.Close()
		l.far = nil
	}
}

func (l *line) close() {
	l.disconnect()
	l.near.Close()
}

func (l *line) host() *os.File {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.far
}

// copyPackets copies packets from one end to the other until reading fails. Packets that the other
// end does not accept, for example because it is down, are lost.
func copyPackets(from *os.File, to func() *os.File) {
	packet := make([]byte, 1<<16)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		if f := to(); f != nil {
			f.Write(packet[:n])
		}
	}
}

// openTUN creates a TUN device that is removed when the file is closed.
func openTUN(ns *Namespace, name string) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("make TUN device %s in %s: %w", name, ns.Name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

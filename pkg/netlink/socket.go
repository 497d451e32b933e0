package netlink

import (
	"cmp"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readSize is more than the kernel puts into one datagram of a list (32 KiB), and more than any
// single message that is requested.
const readSize = 64 << 10

// socket is a netlink socket that never blocks a thread.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	port uint32

	// The last datagram and its error. The functions are allocated once, because there may be very
	// many datagrams.
	buf        []byte
	n          int
	err        error
	read       func(fd uintptr)
	readOrWait func(fd uintptr) bool
}

// openSocket also returns the size of the receive buffer, as the kernel accounts it.
func openSocket(protocol, receiveBuffer int) (s *socket, size int, err error) {
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_NETLINK, kind, protocol)
	if err != nil {
		return nil, 0, err
	}
	s = &socket{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, readSize)}
	s.read = func(fd uintptr) { s.n, s.err = s.receive(int(fd)) }
	s.readOrWait = func(fd uintptr) bool { s.read(fd); return s.err != unix.EAGAIN }
	if size, err = s.prepare(fd, receiveBuffer); err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err != nil {
		s.file.Close()
		return nil, 0, err
	}
	return s, size, nil
}

func (s *socket) prepare(fd, receiveBuffer int) (size int, err error) {
	for _, o := range []struct{ force, option, size int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, RequestBuffer},
	} {
		// Exceed net.core.rmem_max and wmem_max if permitted.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, o.size) != nil {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.option, o.size); err != nil {
				return 0, fmt.Errorf("set buffer size: %w", err)
			}
		}
	}
	for _, option := range []int{
		unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK,
	} {
		// Older kernels lack these options: then errors have no explanation, and lists contain more
		// than was requested, which their readers must check.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("read port: %w", err)
	}
	if a, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = a.Pid
	}
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
}

// control calls f with the descriptor.
func (s *socket) control(f func(fd int) error) (err error) {
	closed := s.raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return cmp.Or(closed, err)
}

func (s *socket) setOption(level, option, value int) error {
	return s.control(func(fd int) error { return unix.SetsockoptInt(fd, level, option, value) })
}

func (s *socket) setFilter(f *Filter) error {
	program, err := f.Assemble()
	if err == nil {
		code := make([]unix.SockFilter, len(program))
		for i, r := range program {
			code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		p := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
		err = s.control(func(fd int) error {
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, p)
		})
	}
	if err != nil {
		// Remove the previous filter, which may drop too much. The only possible error is that
		// there was none.
		_ = s.setOption(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	}
	return err
}

// interrupt makes this and all later calls of wait return.
func (s *socket) interrupt() {
	// It fails only if the socket is closed, when wait does not block either.
	_ = s.file.SetReadDeadline(time.Unix(1, 0))
}

func (s *socket) send(datagram []byte) error {
	return s.control(func(fd int) (err error) {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Sendto(fd, datagram, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
		return err
	})
}

// pending returns the next datagram from the kernel, valid until the next call of pending or wait,
// or unix.EAGAIN if there is none.
func (s *socket) pending() ([]byte, error) {
	return s.result(s.raw.Control(s.read))
}

// wait waits for the next datagram from the kernel.
func (s *socket) wait() ([]byte, error) {
	return s.result(s.raw.Read(s.readOrWait))
}

// result returns the datagram that was read.
func (s *socket) result(closed error) ([]byte, error) {
	if err := cmp.Or(closed, s.err); err != nil {
		return nil, err
	}
	return s.buf[:s.n], nil
}

func (s *socket) receive(fd int) (int, error) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buf, unix.MSG_TRUNC)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case !ok || sender.Pid != 0: // ignore messages of other processes
		case n > len(s.buf):
			return 0, unix.EMSGSIZE
		default:
			return n, nil
		}
	}
}

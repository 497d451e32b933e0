package tunnel

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is the kernel's UDP_MAX_SEGMENTS, which is 128 in newer kernels.
	maxSegments = 64

	// socketBuffer is the wanted buffer size in each direction, in bytes: some milliseconds of a
	// fast link.
	socketBuffer = 7 << 20

	// receiveRoom is the distance between the buffers of a batch, in bytes. It is more than any
	// datagram needs, and not a multiple of a large power of two, which would map all headers to
	// the same few cache lines.
	receiveRoom = maxPacket + 1 + 192
)

// A UDP is a UDP socket (udp(7)) whose datagrams may be fragmented on the path, so that no packet
// is lost because a path has a smaller MTU than our device assumes.
type UDP struct {
	descriptor
	addr        netip.AddrPort
	maxSegments int
	gro         bool

	sending struct {
		headers  [sendMessages]mmsghdr
		names    [sendMessages]unix.RawSockaddrInet4
		controls [sendMessages]segmentControl
		iovecs   []unix.Iovec
	}
	receiving struct {
		drained  bool // the last call has emptied the receive queue
		headers  [receiveBatch]mmsghdr
		names    [receiveBatch]unix.RawSockaddrInet4
		controls [receiveBatch]groControl
		iovecs   [receiveBatch]unix.Iovec
		buf      []byte
	}
}

var _ Socket = (*UDP)(nil)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// segmentControl is a UDP_SEGMENT control message, padded to CMSG_SPACE.
type segmentControl struct {
	header unix.Cmsghdr
	size   uint16
	_      [unix.SizeofPtr - 2]byte
}

// groControl has room for a UDP_GRO control message and for others.
type groControl struct {
	header unix.Cmsghdr
	size   int32
	_      [64]byte
}

// ListenUDP opens a socket at an IPv4 address in the network namespace of the calling thread.
func ListenUDP(addr netip.AddrPort, o Offloads) (*UDP, error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_INET, kind, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	local := &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	if err := unix.Bind(fd, local); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on udp %s: %w", addr, err)
	}
	u, err := AdoptUDP(fd, o)
	if err != nil {
		unix.Close(fd)
	}
	return u, err
}

// AdoptUDP returns a UDP for a descriptor that ListenUDP has opened, perhaps in an earlier process.
// The UDP owns it, unless there is an error.
func AdoptUDP(fd int, o Offloads) (*UDP, error) {
	proto, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	name, err := unix.Getsockname(fd)
	local, ok := name.(*unix.SockaddrInet4)
	if !ok || proto != unix.IPPROTO_UDP {
		return nil, fmt.Errorf("adopt descriptor %d: it is not a UDP socket of IPv4: %w",
			fd, cmp.Or(err, error(unix.EPROTOTYPE)))
	}
	// Do not set DF. The path MTU is only used for fragmentation by the kernel.
	err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	if err != nil {
		return nil, fmt.Errorf("allow fragments on udp descriptor %d: %w", fd, err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4(local.Addr), uint16(local.Port))
	u := &UDP{addr: addr, maxSegments: 1}
	if err := u.open(fd); err != nil {
		return nil, err
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	u.setOffloads(o)
	u.prepareHeaders()
	return u, nil
}

// setBuffer sets the buffer size, limited by a sysctl without CAP_NET_ADMIN.
func setBuffer(fd, force, option int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
}

// setOffloads uses what the kernel supports. Before Linux 5.12, UDP_GRO has bugs; there it can be
// set but not read.
func (u *UDP) setOffloads(o Offloads) {
	_, err := unix.GetsockoptInt(u.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	if o.UDPSegment && err == nil {
		u.maxSegments = maxSegments
	}
	_, err = unix.GetsockoptInt(u.fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	u.gro = o.UDPGRO && err == nil
	on := 0
	if u.gro {
		on = 1
	}
	unix.SetsockoptInt(u.fd, unix.IPPROTO_UDP, unix.UDP_GRO, on)
}

// prepareHeaders sets what is the same for all messages.
func (u *UDP) prepareHeaders() {
	s, r := &u.sending, &u.receiving
	s.iovecs = make([]unix.Iovec, 0, sendParts)
	for i := range s.headers {
		s.names[i].Family = unix.AF_INET
		h := &s.headers[i].header
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), unix.SizeofSockaddrInet4
		c := &s.controls[i].header
		c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
	}
	r.buf = make([]byte, receiveBatch*receiveRoom)
	for i := range r.headers {
		room := r.buf[i*receiveRoom:][:maxPacket]
		r.iovecs[i].Base = &room[0]
		r.iovecs[i].SetLen(len(room))
		h := &r.headers[i].header
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&r.names[i])), &r.iovecs[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&r.controls[i]))
	}
}

// Addr returns the address that the socket is bound to.
func (u *UDP) Addr() netip.AddrPort { return u.addr }

// MaxSegments implements Socket.
func (u *UDP) MaxSegments() int { return u.maxSegments }

// GRO reports whether the kernel merges received datagrams.
func (u *UDP) GRO() bool { return u.gro }

// Receive implements Socket.
func (u *UDP) Receive(ds []Datagram) (int, error) {
	r := &u.receiving
	batch := min(len(ds), len(r.headers))
	for {
		if err := u.check(); err != nil {
			return 0, err
		}
		if r.drained {
			if err := u.wait(unix.POLLIN); err != nil {
				return 0, err
			}
		}
		for i := range r.headers[:batch] {
			h := &r.headers[i].header
			h.Namelen = unix.SizeofSockaddrInet4
			h.SetControllen(int(unsafe.Sizeof(groControl{})))
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG,
			uintptr(u.fd), uintptr(unsafe.Pointer(&r.headers[0])), uintptr(batch), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EAGAIN:
			r.drained = true
			continue
		case unix.EINTR, unix.ENOBUFS, unix.ENOMEM:
			continue
		default:
			return 0, errno
		}
		r.drained = int(n) < batch
		for i := range ds[:n] {
			u.datagram(i, &ds[i])
		}
		return int(n), nil
	}
}

// datagram describes the content of buffer i.
func (u *UDP) datagram(i int, d *Datagram) {
	m, c := &u.receiving.headers[i], &u.receiving.controls[i]
	name := &u.receiving.names[i]
	*d = Datagram{
		Source:    netip.AddrPortFrom(netip.AddrFrom4(name.Addr), port(name)),
		Data:      u.receiving.buf[i*receiveRoom:][:m.length],
		Truncated: m.header.Flags&unix.MSG_TRUNC != 0,
	}
	if u.gro && int(m.header.Controllen) >= unix.CmsgLen(4) &&
		c.header.Level == unix.IPPROTO_UDP && c.header.Type == unix.UDP_GRO {
		d.SegmentSize = int(c.size)
	}
}

func port(name *unix.RawSockaddrInet4) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
}

func setPort(name *unix.RawSockaddrInet4, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], port)
}

// Send implements Socket.
func (u *UDP) Send(ms []Message) (n int, err error) {
	for n < len(ms) {
		if err := u.check(); err != nil {
			return n, err
		}
		batch := u.prepare(ms[n:])
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(u.fd),
			uintptr(unsafe.Pointer(&u.sending.headers[0])), uintptr(batch), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			n += int(sent)
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			if err := u.wait(unix.POLLOUT); err != nil {
				return n, err
			}
		case ms[n].Segments > 1 &&
			(errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE):
			return n, fmt.Errorf("%w: %w", ErrNoSegmentation, errno)
		default:
			return n, errno
		}
	}
	return n, nil
}

// prepare fills in headers for as many messages as possible, and returns their number.
func (u *UDP) prepare(ms []Message) int {
	s := &u.sending
	ms = ms[:min(len(ms), len(s.headers))]
	s.iovecs = s.iovecs[:0]
	for i := range ms {
		m, h := &ms[i], &s.headers[i].header
		s.names[i].Addr = m.To.Addr().As4()
		setPort(&s.names[i], m.To.Port())
		first := len(s.iovecs)
		for _, p := range m.Parts {
			s.iovecs = appendIovec(s.iovecs, p)
		}
		h.Iov = nil
		if len(s.iovecs) > first {
			h.Iov = &s.iovecs[first]
		}
		h.SetIovlen(len(s.iovecs) - first)
		h.Control = nil
		h.SetControllen(0)
		if m.Segments > 1 {
			s.controls[i].size = uint16(m.SegmentSize)
			h.Control = (*byte)(unsafe.Pointer(&s.controls[i]))
			h.SetControllen(unix.CmsgSpace(2))
		}
	}
	return len(ms)
}

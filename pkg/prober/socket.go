package prober

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// request is an echo request to send.
type request struct {
	echo
	device string     // by which the packet leaves; "" for the one of the kernel's route
	source netip.Addr // address of this host; invalid for the one of the kernel's choice
}

// socket sends echo requests and receives the replies.
type socket interface {
	send(request) error
	// receive returns the next reply, or the zero value for a packet that is none. After the given
	// time, the error is os.ErrDeadlineExceeded.
	receive(until time.Time) (echo, error)
	Close() error
}

// rawSocket is a raw ICMP socket (CAP_NET_RAW). It is not bound to a device, but each packet names
// its device as the output interface of its route lookup. So a packet never takes another way: if
// the device is gone, the kernel refuses the packet.
type rawSocket struct {
	conn   *ipv4.PacketConn
	raw    syscall.RawConn
	id     uint16
	buffer []byte
}

// sendTimeout limits the time that a full queue of the device may take.
const sendTimeout = 50 * time.Millisecond

// openRaw opens a raw socket in the network namespace of the calling thread.
func openRaw() (socket, error) {
	packets, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open a socket for ICMP: %w", err)
	}
	c := packets.(*net.IPConn)
	raw, err := c.SyscallConn()
	if err == nil {
		err = setDF(raw)
	}
	s := &rawSocket{conn: ipv4.NewPacketConn(c), raw: raw, id: uint16(rand.Uint32()), buffer: make([]byte, maxSize)}
	if err == nil {
		err = s.filter()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("set up a socket for ICMP: %w", err)
	}
	return s, nil
}

// setDF has packets not fragmented, neither here nor on the path. A path MTU that the kernel has
// learned is ignored, so that each packet shows what the path carries.
func setDF(raw syscall.RawConn) (err error) {
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}); failed != nil {
		return failed
	}
	return err
}

// filter has the kernel drop what is no reply to this socket.
func (s *rawSocket) filter() error {
	filter, err := bpf.Assemble(replyFilter(s.id))
	if err != nil {
		return err
	}
	return s.conn.SetBPF(filter)
}

// replyFilter returns a program that accepts echo replies with an identifier, so that other ICMP
// packets do not wake this process.
func replyFilter(id uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadMemShift{Off: 0},          // X: length of the IP header
		bpf.LoadIndirect{Off: 0, Size: 1}, // type
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(ipv4.ICMPTypeEchoReply), SkipTrue: 3},
		bpf.LoadIndirect{Off: 4, Size: 2}, // identifier
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(id), SkipTrue: 1},
		bpf.RetConstant{Val: maxSize},
		bpf.RetConstant{Val: 0},
	}
}

func (s *rawSocket) send(r request) error {
	control := new(ipv4.ControlMessage)
	if r.source.IsValid() {
		control.Src = r.source.AsSlice()
	}
	if r.device != "" {
		var err error
		if control.IfIndex, err = s.index(r.device); err != nil {
			return fmt.Errorf("find device %s: %w", r.device, err)
		}
	}
	message, err := r.encode(s.id)
	if err == nil {
		err = s.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	if err == nil {
		_, err = s.conn.WriteTo(message, control, &net.IPAddr{IP: r.addr.AsSlice()})
	}
	return err
}

// index returns the index of a device, which is another one after the device was created again.
func (s *rawSocket) index(device string) (int, error) {
	ifreq, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if failed := s.raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, ifreq) }); failed != nil {
		return 0, failed
	}
	return int(ifreq.Uint32()), err
}

func (s *rawSocket) receive(until time.Time) (echo, error) {
	if err := s.conn.SetReadDeadline(until); err != nil {
		return echo{}, err
	}
	n, _, from, err := s.conn.ReadFrom(s.buffer)
	if err != nil {
		return echo{}, err
	}
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return echo{}, nil
	}
	addr, _ := netip.AddrFromSlice(ip.IP.To4())
	e, _ := decode(addr, s.id, s.buffer[:n])
	return e, nil
}

func (s *rawSocket) Close() error { return s.conn.Close() }

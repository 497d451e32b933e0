package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// inner returns an IPv4 packet with a UDP datagram from and to a port.
func inner(src, dst netip.Addr, port uint16, payload string) []byte {
	b := ipv4Header(src, dst, 8+len(payload))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, inUDP(port, port, []byte(payload))...)
}

// ipv4Header returns the header of a packet with a UDP length, without a checksum.
func ipv4Header(src, dst netip.Addr, size int) []byte {
	b := make([]byte, 20, 20+size)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(20+size))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return b
}

// inUDP is a UDP datagram without a checksum.
func inUDP(from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// inVXLAN returns the payload of a VXLAN packet (RFC 7348) with an IPv4 packet, for the VTEP with a
// MAC.
func inVXLAN(vni uint32, mac net.HardwareAddr, packet []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	b = append(append(b, mac...), 2, 0, 0, 0, 0, 9, 8, 0)
	return append(b, packet...)
}

// A forger sends whole IPv4 packets of any source from a host. The kernel computes the checksum of
// their header.
type forger struct{ fd int }

func (c *cluster) forger(h *lab.Host) (f forger) {
	c.t.Helper()
	c.must(h.Do(func() (err error) {
		f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	c.t.Cleanup(func() { unix.Close(f.fd) })
	return f
}

// fragment sends a part of what follows the IP header. offset counts 8 bytes. What the kernel has
// no room for is lost, as on any way.
func (f forger) fragment(from, to netip.Addr, id uint16, offset int, more bool, part []byte) error {
	b := ipv4Header(from, to, len(part))
	binary.BigEndian.PutUint16(b[4:], id)
	word := uint16(offset)
	if more {
		word |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], word)
	return unix.Sendto(f.fd, append(b, part...), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.As4()})
}

// dial opens a UDP socket on a host.
func (c *cluster) dial(h *lab.Host, to netip.AddrPort) net.Conn {
	c.t.Helper()
	conn, err := h.NS.DialContext(c.ctx, "udp4", to.String())
	c.must(err)
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// dialFrom opens a UDP socket of a host or a container at a port of its own, 0 for any.
func (c *cluster) dialFrom(e *lab.Endpoint, port int, to netip.AddrPort) net.Conn {
	c.t.Helper()
	var conn net.Conn
	c.must(e.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(to))
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// listener returns the datagrams that a port of a host or a container receives.
func (c *cluster) listener(e *lab.Endpoint, port int) func(time.Duration) string {
	c.t.Helper()
	var conn *net.UDPConn
	c.must(e.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: e.Addr.AsSlice(), Port: port})
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return func(d time.Duration) string {
		b := make([]byte, 100)
		conn.SetReadDeadline(time.Now().Add(d))
		n, _ := conn.Read(b)
		return string(b[:n])
	}
}
